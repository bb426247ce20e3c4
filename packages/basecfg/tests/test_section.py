# ruff: noqa: RUF012 - mutable defaults are copied for each instance, which is tested here
"""Sections: what a class body may say, and what instances are."""

import copy
import pickle
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
from basecfg import BaseConfig, ConfigError, DtypeName, Field, Section


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Adam(Section):
    kind: Literal["adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)


class Sgd(Section):
    kind: Literal["sgd"] = "sgd"
    momentum: float = 0.0


class Trainer(Section):
    iterations: int = 100
    lr: Annotated[float, Field(gt=0)] = 1e-3
    tags: list[str] = []
    out: Path = "a/b"
    color: Color = Color.RED
    dtype: DtypeName = "float32"
    token: str = Field("", secret=True)

    @property
    def double(self) -> int:
        return 2 * self.iterations

    @cached_property
    def cached(self) -> list:
        return [self.iterations]


class Config(BaseConfig):
    trainer: Trainer
    optimizer: Adam | Sgd = Field(default_factory=Adam)
    optimizers: list[Adam | Sgd] = []
    named: dict[str, Trainer] = {}
    loose: dict[str, Any] | Trainer = {}
    maybe: Trainer | None = None
    custom: Trainer = Field(default_factory=lambda: Trainer(lr=0.5))


def test_nested_sections_need_no_default():
    config = Config()
    assert isinstance(config, Config)
    assert isinstance(config.trainer, Trainer)
    assert (config.trainer.iterations, config.trainer.double, config.trainer.cached) == (100, 200, [100])


def test_a_section_with_a_required_field_is_required(lines):
    class Inner(Section):
        n: int

    class Outer(BaseConfig):
        inner: Inner

    assert lines(Outer) == ["argument: inner.n: required: expected int, found nothing"]
    assert Outer(inner={"n": 1}).inner.n == 1


def test_values_are_converted_to_their_types_defaults_included():
    config = Config(trainer={"color": "blue", "lr": 1})
    assert config.trainer.out.parent == Path("a")
    assert config.trainer.color is Color.BLUE
    assert type(config.trainer.lr) is float


def test_instances_are_frozen():
    config = Config()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.trainer.iterations = 3
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.trainer = Trainer()


def test_defaults_are_not_shared_between_instances():
    first, second = Config(), Config()
    first.trainer.tags.append("x")
    first.named["a"] = Trainer()
    assert second.trainer.tags == []
    assert Config().named == {}
    assert not hasattr(Trainer, "tags")


def test_tagged_unions_choose_by_tag_and_report_on_that_member_alone(lines):
    config = Config(
        optimizer={"kind": "sgd", "momentum": 0.9}, optimizers=[{"kind": "adam"}, {"kind": "sgd"}]
    )
    assert isinstance(config.optimizer, Sgd)
    assert [type(item).__name__ for item in config.optimizers] == ["Adam", "Sgd"]
    (line,) = lines(Config, optimizer={"kind": "sgd", "betas": [1, 2]})
    assert line.startswith("argument: optimizer.betas: unknown key")
    (line,) = lines(Config, optimizer={"kind": "sgdd"})
    assert line.startswith("argument: optimizer: ")
    assert "'adam', 'sgd'" in line


def test_a_union_with_dict_does_not_swallow_misspelt_keys(lines):
    assert Config(loose={"iterations": 3}).loose.iterations == 3
    assert lines(Config, loose={"iteration": 3}) == [
        "argument: loose.iteration: unknown key; did you mean loose.iterations?"
    ]


def test_custom_default_instances_are_laid_below_what_is_set():
    assert Config(custom={"iterations": 3}).custom.lr == 0.5
    assert Config(custom={"iterations": 3}).custom.iterations == 3
    assert Config().custom.lr == 0.5


def test_all_errors_of_a_construction_at_once(lines):
    assert lines(Trainer, iteration=1, lr=-1, color="rad", dtype="float23") == [
        "argument: iteration: unknown key; did you mean iterations?",
        "argument: lr: expected greater than 0, found -1 (int)",
        "argument: color: expected 'red' or 'blue', found 'rad' (str); did you mean 'red'?",
        "argument: dtype: expected 'float64', 'float32', 'float16', 'bfloat16', 'float8_e4m3fn', "
        "'float8_e5m2', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool', 'complex64' or 'complex128', "
        "found 'float23' (str); did you mean 'float32'?",
    ]


def test_positional_arguments_are_refused():
    with pytest.raises(TypeError, match="Trainer takes keyword arguments only"):
        Trainer(3)


def test_subclasses_inherit_and_override_fields():
    class Longer(Trainer):
        iterations: int = 500
        extra: str = "x"

    longer = Longer(lr=1)
    assert (longer.iterations, longer.extra, longer.lr, longer.double) == (500, "x", 1.0, 1000)
    assert isinstance(longer, Trainer)
    assert Trainer().iterations == 100


def test_pydantic_validators_in_the_body_run(lines):
    class Even(Section):
        n: int = 0

        @pydantic.field_validator("n")
        @classmethod
        def _even(cls, value):
            if value % 2:
                raise ValueError("expected an even number")
            return value

        @pydantic.model_validator(mode="after")
        def _small(self):
            if self.n > 10:
                raise ValueError("expected at most 10")
            return self

    assert Even(n=4).n == 4
    assert lines(Even, n=3) == ["argument: n: expected an even number, found 3 (int)"]
    assert "expected at most 10" in lines(Even, n=12)[0]


def test_equality_is_by_class_and_fields():
    assert Trainer(iterations=3) == Trainer(iterations=3)
    assert Trainer(iterations=3) != Trainer(iterations=4)
    assert Adam() != Sgd()
    assert hash(Adam()) == hash(Adam())
    assert Trainer() != "x"


def test_copies_and_pickles_are_equal_and_keep_their_sources(write):
    name = write("trainer:\n  lr: 0.5\n")
    config = Config.from_yaml(name, overrides=["trainer.iterations=7"])
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), copy.copy(config)):
        assert other == config
        assert isinstance(other, Config)
        assert other.source_of("trainer.lr") == "exp.yaml:2:3"
        assert other.source_of("trainer.iterations") == "override"
        assert other.source_of("trainer.tags") == "default"
        assert other.replace(**{"trainer.iterations": 8}).trainer.lr == 0.5
        assert other.cfg_path == config.cfg_path
    deep = copy.deepcopy(config)
    deep.trainer.tags.append("x")
    assert config.trainer.tags == []


def test_secrets_are_masked_wherever_a_configuration_is_written_down():
    config = Config(trainer={"token": "hunter2"}, named={"a": {"token": "hunter2"}})
    assert "hunter2" not in repr(config) + config.dumps() + str(config.to_state())
    assert config.to_state()["trainer"]["token"] == "**********"
    assert Config().to_state()["trainer"]["token"] == ""
    assert config.trainer.token == "hunter2"


def test_annotations_may_be_strings():
    class Local(Section):
        n: int = 1

    class Holder(BaseConfig):
        items: "list[Local]" = []
        one: "Local"

    assert Holder(items=[{"n": 2}]).items[0].n == 2


class Node(Section):
    name: str = ""
    children: "list[Node]" = []


def test_sections_may_contain_themselves(lines):
    tree = Node(children=[{"name": "a", "children": [{"name": "b"}]}])
    assert tree.children[0].children[0].name == "b"
    assert lines(Node, children=[{"children": [{"nam": "b"}]}]) == [
        "argument: children.0.children.0.nam: unknown key; did you mean children.0.children.0.name?"
    ]


def test_errors_can_be_pickled():
    with pytest.raises(ConfigError) as caught:
        Config(x=1)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.problems == caught.value.problems
    assert again.problems[0].path == "x"
