# ruff: noqa: RUF012 - mutable defaults are copied for each instance
"""The JSON Schema: a valid one, and of one mind with `from_yaml` about which files are valid."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import basecfg
import jsonschema
import pytest
import yaml
from basecfg import BaseConfig, DtypeName, Field, Section


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Adam(Section):
    kind: Literal["adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)


class Sgd(Section):
    kind: Literal["sgd"] = "sgd"
    momentum: float = 0.0


class Node(Section):
    name: str = ""
    children: "list[Node]" = []


class Trainer(Section):
    iterations: int = Field(100, ge=1)
    "Optimizer steps to take."
    rate: Annotated[float, Field(gt=0)] = 1e-3
    out: Path | None = None
    color: Color = Color.RED
    dtype: DtypeName = "float32"
    token: str = Field("", secret=True, description="Of the tracking server.")


class Config(BaseConfig):
    trainer: Trainer
    optimizer: Adam | Sgd = Field(default_factory=Adam)
    optimizers: list[Adam | Sgd] = []
    named: dict[str, Trainer] = {}
    either: dict[str, Any] | Trainer = {}
    loose: dict[str, Any] = {}
    tree: Node


@pytest.fixture(scope="module")
def schema():
    return Config.json_schema()


def test_it_is_a_schema(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]
    with pytest.raises(jsonschema.SchemaError):  # the check can fail
        jsonschema.Draft202012Validator.check_schema({**schema, "properties": 3})


VALID = [
    "{}",
    "trainer: {iterations: 3, rate: 1, out: a/b, color: blue, dtype: bfloat16}",
    "optimizer: {kind: sgd, momentum: 0.5}",
    "optimizers: [{kind: adam, betas: [0.1, 0.2]}, {kind: sgd}]",
    "named: {a: {rate: 2}}\nloose: {any: [1, {x: y}]}",
    "tree: {name: a, children: [{name: b, children: [{name: c}]}]}",
    "trainer: {out: null}",
]
INVALID = {
    "trainer: {iteration: 3}": "iteration",
    "other: 1": "other",
    "trainer: {iterations: 0}": "iterations",
    "trainer: {iterations: many}": "iterations",
    "trainer: {rate: 0}": "rate",
    "trainer: {color: green}": "color",
    "trainer: {dtype: float23}": "dtype",
    "optimizer: {kind: lion}": "optimizer",
    "optimizer: {kind: sgd, betas: [1, 2]}": "betas",
    "optimizers: [{kind: adam, betas: [1]}]": "betas",
    "named: {a: {rates: 2}}": "rates",
    "either: {rates: 2}": "rates",
    "tree: {children: [{nam: b}]}": "nam",
}


@pytest.mark.parametrize("text", VALID)
def test_what_it_accepts_is_read(schema, write, text):
    jsonschema.validate(yaml.safe_load(text), schema)
    Config.from_yaml(write(text))


@pytest.mark.parametrize(("text", "key"), INVALID.items())
def test_what_it_refuses_is_refused(schema, write, lines, text, key):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), schema)
    assert any(key in line for line in lines(Config.from_yaml, write(text)))


def test_an_include_is_no_unknown_key(schema):
    for include in ("base.yaml", ["base.yaml", "more.yaml"]):
        jsonschema.validate({"include": include}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"include": 3}, schema)


def test_editors_show_descriptions(schema):
    properties = schema["$defs"]["Trainer"]["properties"]
    assert properties["iterations"]["description"] == "Optimizer steps to take."
    assert properties["token"]["description"] == "Of the tracking server."
    assert basecfg.Section.__doc__ not in str(schema)
