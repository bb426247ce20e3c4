"""YAML files: places of errors, includes, precedence, provenance, interpolation, migrations."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import basecfg
import pytest
from basecfg import BaseConfig, ConfigWarning, Field, Section
from hypothesis import given
from hypothesis import strategies as st


class Hyper(Section):
    batch_size: int = 8
    learning_rate: float = 1e-3


class Trainer(Section):
    iterations: int = 100
    name: str = "x"
    langs: list[str] = Field(default_factory=list)


class Model(Section):
    size: int | str = 1
    path: Path | None = None


class Config(BaseConfig):
    hyperparameters: Hyper
    trainer: Trainer
    models: list[Model] = Field(default_factory=list)
    extra: dict[str, Any] = Field(default_factory=dict)


def test_every_error_at_once_each_with_its_place(write, lines):
    name = write("trainer:\n  batch_sise: 3\n  iterations: many\nmodels:\n  - size: [1]\n  - sizee: 2\n")
    assert lines(Config.from_yaml, name, overrides=["trainer.nme=x", "models.7.size=1", "oops"]) == [
        "override: expected path.to.key=value, found 'oops'",
        "override: models.7.size: the list has 2 entries; 7 is neither one of them nor the next",
        "exp.yaml:2:3: trainer.batch_sise: unknown key; did you mean hyperparameters.batch_size?",
        "override: trainer.nme: unknown key; did you mean trainer.name?",
        "exp.yaml:6:5: models.1.sizee: unknown key; did you mean models.1.size?",
        "exp.yaml:3:15: trainer.iterations: expected a valid integer, unable to parse string as an integer, "
        "found 'many' (str)",
        "exp.yaml:5:11: models.0.size: expected a valid integer or expected a valid string, found [1] (list)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "exp.yaml:3:1: duplicate key 'a'; it is first set on line 1"),
        ("trainer:\n\titerations: 3\n", "exp.yaml:2:1: not valid YAML: while scanning for the next token"),
        ("a: *b\n", "exp.yaml:1:4: not valid YAML: found undefined alias"),
        ("a: &b [*b]\n", "exp.yaml:1:4: an alias that contains itself"),
        ("a: !!python/object/apply:os.system [ls]\n", "exp.yaml:1:4: the tag "),
        ("- 1\n", "exp.yaml:1:1: expected a mapping of keys, found a list"),
        ("a: [\n", "exp.yaml:2:1: not valid YAML"),
        (b"a: 1\nb: \xff\n", "exp.yaml:2:4: expected UTF-8 text, found the byte 0xff"),
        ("? [1]\n: 2\n", "exp.yaml:1:3: expected a plain value as key, found a list or mapping"),
    ],
)
def test_files_that_are_not_plain_yaml(write, lines, text, message):
    assert any(line.startswith(message) for line in lines(Config.from_yaml, write(text)))


def test_missing_file(write, lines):
    write("")
    assert lines(Config.from_yaml, "nope.yaml") == ["nope.yaml: cannot be read: No such file or directory"]


def test_a_billion_laughs_are_refused(write, lines):
    text = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    (line,) = lines(Config.from_yaml, write(text))
    assert "its aliases stand for" in line


@pytest.mark.soak
def test_a_ten_megabyte_file(write):
    name = write("extra:\n" + "".join(f"  key{i}: [1, 2.5, text {i}]\n" for i in range(300_000)))
    assert Path(name).stat().st_size > 8_000_000
    assert len(Config.from_yaml(name).extra) == 300_000


def test_anchors_and_merge_keys(write):
    text = "extra:\n  base: &b {x: 1, y: 2}\n  more:\n    <<: *b\n    y: 3\n  both:\n    <<: [*b, {z: 9}]\n"
    config = Config.from_yaml(write(text))
    assert config.extra["more"] == {"x": 1, "y": 3}
    assert config.extra["both"] == {"x": 1, "y": 2, "z": 9}


SCALARS = {
    "1e-4": 1e-4,
    "1E3": 1000.0,
    "-1.5": -1.5,
    ".5": 0.5,
    "0x1F": 31,
    "1_000": 1000,
    "true": True,
    "off": False,
    "~": None,
    "": None,
    "2020-01-01": "2020-01-01",
    "1:30": "1:30",
    "-": "-",
    "1.2.3": "1.2.3",
    "'1'": "1",
    "!!str 1": "1",
    "!!float 1": 1.0,
    ".inf": float("inf"),
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_plain_scalars(write, text, value):
    if text == "-":
        text = '"-"'
    found = Config.from_yaml(write(f"extra:\n  a: {text}\n")).extra["a"]
    assert (found, type(found)) == (value, type(value))


def test_a_bare_no_in_a_text_field_is_text_with_a_warning(write):
    name = write("trainer:\n  name: on\n  langs: [en, no]\n")
    with pytest.warns(ConfigWarning) as caught:
        config = Config.from_yaml(name)
    assert (config.trainer.name, config.trainer.langs) == ("on", ["en", "no"])
    assert sorted(f"{place}: {path}" for w in caught for place, path, _ in w.message.problems) == [
        "exp.yaml:2:9: trainer.name",
        "exp.yaml:3:15: trainer.langs.1",
    ]


def test_a_number_in_a_text_field_of_a_file_is_an_error_but_not_on_the_command_line(write, lines):
    name = write("trainer:\n  name: 1.0\n")
    assert lines(Config.from_yaml, name) == [
        "exp.yaml:2:9: trainer.name: expected a valid string, found 1.0 (float)"
    ]
    assert Config.from_yaml(name, overrides=["trainer.name=1.0"]).trainer.name == "1.0"


def test_precedence_and_sources(write, checkpoint, monkeypatch, capsys):
    write(
        "trainer: {iterations: 2, name: inc, langs: [a]}\nhyperparameters: {batch_size: 2}\n", "sub/base.yaml"
    )
    name = write("include: sub/base.yaml\ntrainer:\n  name: file\nmodels:\n- size: 1\n- size: 2\n")
    checkpoint({"trainer": {"langs": ["m"]}, "models": [{"size": "ckpt"}]})
    monkeypatch.setenv("T_HYPERPARAMETERS__BATCH_SIZE", "4")
    config = Config.from_cli(
        ["--yaml", name, "--model=model.sft", "models.0.path=x", "--trainer.iterations", "9"],
        env_prefix="T_",
        base={"hyperparameters": {"learning_rate": 0.5}, "trainer": {"iterations": 1}},
    )
    assert config.trainer.iterations == 9
    assert config.models == [Model(size="ckpt", path="x")]
    sources = {
        "trainer.iterations": "cli",
        "trainer.name": "exp.yaml:3:3",
        "trainer.langs": "model.sft#config",
        "models.0.size": "model.sft#config",
        "models.0.path": "cli",
        "hyperparameters.batch_size": "env T_HYPERPARAMETERS__BATCH_SIZE",
        "hyperparameters.learning_rate": "base",
        "extra": "default",
    }
    assert {path: config.source_of(path) for path in sources} == sources
    with pytest.raises(KeyError, match=r"did you mean trainer\.iterations"):
        config.source_of("trainer.iteration")


def test_several_files_merge_in_order_and_lists_replace(write):
    first = write("trainer: {iterations: 1, langs: [a, b]}\n", "a.yaml")
    second = write("trainer: {langs: [c]}\n", "b.yaml")
    config = Config.from_yaml(first, second)
    assert (config.trainer.iterations, config.trainer.langs) == (1, ["c"])
    assert config.source_of("trainer.langs.0") == "b.yaml:1:19"
    assert config.yaml_path == Path("a.yaml")


def test_includes_that_lead_back_or_nowhere(write, lines):
    write("include: b.yaml\n", "a.yaml")
    write("include: [a.yaml]\n", "b.yaml")
    (line,) = lines(Config.from_yaml, "a.yaml")
    assert line.startswith("b.yaml:1:11: include: a file that includes itself: ")
    assert lines(Config.from_yaml, write("include: no.yaml\n")) == [
        "exp.yaml:1:10: include: the file no.yaml does not exist"
    ]


@pytest.mark.parametrize("policy", ["warn", "drop"])
def test_unknown_keys_can_be_warned_about_or_dropped(write, policy, recwarn):
    config = Config.from_yaml(write("trainer: {iteration: 3, iterations: 4}\nold: 1\n"), unknown=policy)
    assert config.trainer.iterations == 4
    messages = [str(w.message) for w in recwarn]
    assert messages == (
        [
            "what to change:\n"
            "  exp.yaml:1:11: trainer.iteration: unknown key; did you mean trainer.iterations? (ignored)\n"
            "  exp.yaml:2:1: old: unknown key (ignored)"
        ]
        if policy == "warn"
        else []
    )


def test_references(write, monkeypatch):
    monkeypatch.setenv("SIZE", "12")
    text = (
        "trainer:\n  iterations: ${hyperparameters.batch_size}\n  name: run-${env:SIZE}-$${x}\n"
        "hyperparameters:\n  batch_size: ${env:SIZE}\n  learning_rate: 0.5\n"
        "extra:\n  lr: ${hyperparameters.learning_rate}\n"
    )
    config = Config.from_yaml(write(text))
    assert (config.trainer.iterations, config.trainer.name) == (12, "run-12-${x}")
    assert config.extra == {"lr": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extra: {a: '${extra.b}', b: '${extra.a}'}", "leads back to itself: extra.a -> extra.b -> extra.a"),
        ("extra: {a: '${extra}'}", "contains the reference itself"),
        (
            "extra: {a: '${trainer.nam}'}",
            "refers to nothing that is set or has a default; did you mean ${trainer.name}?",
        ),
        ("extra: {a: '${env:NOT_SET_HERE}'}", "the environment variable NOT_SET_HERE"),
        ("extra: {a: 'x${trainer.langs}'}\ntrainer: {langs: [a]}", "is a list, which text cannot hold"),
    ],
)
def test_references_that_cannot_be_filled_in(write, lines, text, message):
    found = lines(Config.from_yaml, write(text))
    assert all(line.startswith("exp.yaml:1:12: extra.a: ") for line in found[:1])
    assert message in found[0]


def one_or_none(value):
    """`trainer.name`: two names of old are others, one means what is so anyway, and one cannot be had."""
    if value == "y":
        raise ValueError("there is no y any more; take x")
    return {
        "first": {"trainer.name": "1"},
        "often": ({"trainer.name": "many"}, "as many as there are"),
        "idle": ({}, ""),
    }.get(value, {"trainer.name": value})


class Migrated(Config):
    migrations: ClassVar[Mapping[str, str | Callable[[Any], Mapping[str, Any]]]] = {
        "trainer.batch": "hyperparameters.batch_size",
        "trainer.steps": "trainer.iterations",
        "trainer.kilo": lambda value: {"trainer.iterations": 1000 * value},
        "gone": lambda value: {},
        "trainer.called": "trainer.name",
        "trainer.name": one_or_none,
        "models.*.width": "models.*.size",
        "models.*.kind": lambda value: {"models.*.size": f"{value}s"},
    }


def test_old_keys_are_read_with_one_warning_that_names_the_lines(write):
    name = write("trainer:\n  kilo: 2\n  batch: 3\ngone: 1\n")
    with pytest.warns(ConfigWarning) as caught:
        config = Migrated.from_yaml(name)
    assert (config.trainer.iterations, config.hyperparameters.batch_size) == (2000, 3)
    assert config.source_of("hyperparameters.batch_size") == "exp.yaml:3:3"
    assert [str(w.message) for w in caught] == [
        "what to change:\n"
        "  exp.yaml:3:3: trainer.batch: now hyperparameters.batch_size; change it there\n"
        "  exp.yaml:2:3: trainer.kilo: now trainer.iterations; change it there\n"
        "  exp.yaml:4:1: gone: has no effect any more; remove it"
    ]
    with pytest.warns(ConfigWarning, match=r"override: trainer\.steps: now trainer\.iterations"):
        assert Migrated.from_yaml(write(""), overrides=["trainer.steps=5"]).trainer.iterations == 5


def test_the_warning_is_shown_without_a_line_of_source(write, python):
    write("import basecfg\nclass C(basecfg.BaseConfig):\n    a: str = ''\nC.from_yaml('exp.yaml')\n", "app.py")
    write("a: on\n")
    assert python("app.py").stderr.splitlines() == [
        "exp.yaml:0: ConfigWarning: exp.yaml:1:4: a: read as the text 'on'; quote it, since YAML 1.1 readers take it "
        "for a boolean"
    ]


@pytest.mark.parametrize(
    ("old", "new", "remark"),
    [
        ("x", "x", None),
        ("idle", "x", None),
        ("first", "1", "read as '1'; change it to that"),
        ("often", "many", "as many as there are"),
    ],
)
@pytest.mark.parametrize("override", [False, True])
def test_a_value_of_old_is_read_as_what_it_means(write, recwarn, old, new, remark, override):
    name = write("" if override else f"trainer:\n  name: {old}\n")
    config = Migrated.from_yaml(name, overrides=[f"trainer.name={old}"] if override else [])
    assert config.trainer.name == new
    place = "override" if override else "exp.yaml:2:3"
    assert [str(w.message) for w in recwarn] == ([f"{place}: trainer.name: {remark}"] if remark else [])
    assert config.replace(extra={"a": 1}).trainer.name == new


def test_a_value_that_is_no_more_is_an_error_beside_the_others(write):
    name = write("extr: 1\ntrainer: {name: y}\n")
    with pytest.raises(basecfg.ConfigError) as caught:
        Migrated.from_yaml(name)
    assert str(caught.value).splitlines() == [
        "exp.yaml:2:17: trainer.name: there is no y any more; take x",
        "exp.yaml:1:1: extr: unknown key; did you mean extra?",
    ]
    assert basecfg.migrate_file(Migrated, name) == []
    with pytest.raises(basecfg.ConfigError, match=r"^override: trainer\.name: there is no y any more; take x$"):
        Migrated.from_yaml(write(""), overrides=["trainer.name=y"])


@pytest.mark.filterwarnings("ignore::basecfg.ConfigWarning")
def test_a_star_stands_for_every_entry(write):
    name = write("models:\n" + "".join(f"- width: {i}\n" for i in range(6)) + "- kind: wide\n")
    config = Migrated.from_yaml(name, overrides=["models.7.width=9"])
    assert [m.size for m in config.models] == [0, 1, 2, 3, 4, 5, "wides", 9]
    assert config.source_of("models.4.size") == "exp.yaml:6:3"
    assert len(basecfg.migrate_file(Migrated, name)) == 7
    assert [m.size for m in Migrated.from_yaml(name).models] == [0, 1, 2, 3, 4, 5, "wides"]


@pytest.mark.filterwarnings("ignore::basecfg.ConfigWarning")
def test_a_key_moved_twice_keeps_its_line(write):
    config = Migrated.from_yaml(write("extra: {a: 1}\ntrainer:\n  called: first\n"))
    assert (config.trainer.name, config.source_of("trainer.name")) == ("1", "exp.yaml:3:3")


def test_nothing_below_a_section_or_list_leaves_its_defaults(write):
    config = Config.from_yaml(write("trainer:\n  langs:\nhyperparameters:\nextra: null\nmodels:\n"))
    assert config == Config.from_yaml(write(""))
    with pytest.raises(basecfg.ConfigError, match=r"iterations: expected a valid integer, found None"):
        Config.from_yaml(write("trainer:\n  iterations:\n"))


def test_a_file_is_rewritten_with_its_comments(write):
    name = write(
        "# head\ntrainer:\n  steps: 5  # how long\n  name: 'q'  # quoted\n# between\nextra: {a: 1}\n"
    )
    assert basecfg.migrate_file(Migrated, name) == ["trainer.steps -> trainer.iterations"]
    assert Path(name).read_text() == (
        "# head\ntrainer:\n  iterations: 5 # how long\n  name: 'q'  # quoted\n# between\nextra: {a: 1}\n"
    )
    assert basecfg.migrate_file(Migrated, name) == []
    assert Migrated.from_yaml(name).trainer.iterations == 5


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=3), st.text(), st.integers(), st.floats(allow_nan=False))
def test_a_dump_reads_back_equal(tmp_path_factory, extra, name, number, rate):
    extra = json.loads(json.dumps(extra).replace("${", "$"))
    config = Config(
        extra=extra,
        trainer={"name": name.replace("${", "$"), "iterations": number},
        hyperparameters={"learning_rate": rate},
        models=[{"size": "1e3", "path": "a/b"}],
    )
    folder = tmp_path_factory.mktemp("dump")
    for suffix in ("json", "yaml"):
        assert Config.from_yaml(config.dump(folder / f"cfg.{suffix}")) == config
    assert Config(**json.loads(json.dumps(config.to_state()))) == config


def test_saving_goes_to_the_log_folder_with_the_mode_of_the_umask(write):
    config = Config.from_yaml(write("trainer: {name: ü}\n"))
    path = config.dump()
    assert path == config.log_dir / "cfg.json"
    assert "ü" in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_folders(write, tmp_path):
    config = Config.from_yaml(write("", "run/exp.yaml"))
    assert config.cfg_path == tmp_path / "run"
    assert config.rel_path == Path("run")
    assert (config.data_dir, config.ckpt_dir) == (Path("run/data"), Path("run/ckpt"))
    assert (config.metadata_dir, config.cache_dir) == (Path("run/metadata"), Path("run/.cache"))
    assert Config().rel_path == Path()


def test_differences_name_both_sides(write):
    config = Config.from_yaml(write("trainer:\n  iterations: 5\n"))
    assert [str(c) for c in config.diff()] == ["trainer.iterations: 5 (exp.yaml:2:3) != 100 (default)"]
    other = config.replace(models=[{"size": 2}])
    assert [c.path for c in other.diff(config)] == ["models"]
    assert config.diff(config.to_state()) == []


def test_hash_keys(write, python, tmp_path):
    class Cached(BaseConfig):
        rate: float = 1e-3
        workers: int = Field(1, affects_cache=False)
        names: list[str] = Field(default_factory=list)

    config = Cached()
    assert config.hash_key() == config.replace(workers=9).hash_key()
    assert config.hash_key() != config.replace(rate=2).hash_key()
    assert config.hash_key("names") == config.replace(rate=2).hash_key("names")
    assert config.hash_key("names", "rate") != config.hash_key("rate", "names")
    assert config.hash_key("rate") == "f395ef2f87f08adf"  # must never change: caches are named by it
    with pytest.raises(KeyError, match="nme"):
        config.hash_key("nme")
