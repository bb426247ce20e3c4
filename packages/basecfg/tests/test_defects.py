"""Defects of configurations of this kind, one test each: none may come back."""

import ast
import sys
from pathlib import Path

import basecfg
import pytest
from basecfg import BaseConfig, Field, Section

SOURCES = sorted(Path(basecfg.__file__).parent.glob("*.py"))


class Trainer(Section):
    iterations: int = 100
    tags: list[str] = []  # noqa: RUF012


class Config(BaseConfig):
    trainer: Trainer
    getter: str = "name"
    token: str = Field("", secret=True)

    @property
    def expensive(self) -> str:
        raise AssertionError("a property was evaluated")


def test_an_unknown_key_is_not_dropped(write, lines):
    assert lines(Config.from_yaml, write("trainer:\n  iteration: 3\n")) == [
        "exp.yaml:2:3: trainer.iteration: unknown key; did you mean trainer.iterations?"
    ]


def test_a_path_given_as_text_is_a_path(write):
    """`.parent` was asked of a string."""
    config = Config.from_yaml(str(write("getter: x\n", "runs/exp.yaml")))
    assert config.yaml_path == Path("runs/exp.yaml")
    assert config.cfg_path.name == "runs"
    assert isinstance(config.dump(str(config.log_dir / "cfg.yaml")), Path)


def test_text_in_a_file_is_never_code(write):
    """`lambda` in YAML was passed to `eval`: a getter is chosen by name."""
    text = "__import__('os').system('touch ran')"
    config = Config.from_yaml(write(f'getter: "lambda path: {text}"\n'), overrides=[f"trainer.tags=[{text!r}]"])
    assert config.getter.startswith("lambda")
    assert config.trainer.tags == [text]
    assert not Path("ran").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_evaluated_anywhere(path):
    called = {node.func.id for node in ast.walk(ast.parse(path.read_text())) if _is_plain_call(node)}
    assert not called & {"eval", "exec", "compile"}


def _is_plain_call(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def test_the_arguments_of_the_process_are_left_alone(monkeypatch, write):
    arguments = ["prog", "--yaml", write("getter: x\n"), "trainer.iterations=5"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert Config.from_cli().trainer.iterations == 5
    assert arguments == ["prog", "--yaml", "exp.yaml", "trainer.iterations=5"]


def test_dumps_holds_the_declared_fields_alone(monkeypatch):
    """It walked `dir(self)`: it ran git, every property, and wrote secrets."""
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("git ran"))
    config = Config(token="hunter2")
    assert config.to_state().keys() == {"trainer", "getter", "token"}
    assert "hunter2" not in config.dumps() + repr(config)


def test_instances_share_nothing(write):
    first, second = Config(), Config.from_yaml(write(""))
    first.trainer.tags.append("x")
    assert second.trainer.tags == Config().trainer.tags == []
    third = second.replace(getter="y")
    assert (second.getter, third.getter) == ("name", "y")


def test_two_runs_of_one_second_have_two_log_folders(python):
    code = "from basecfg import BaseConfig\nprint(BaseConfig().log_dir)"
    assert python("-c", code).stdout != python("-c", code).stdout


def test_a_state_survives_weights_only(tmp_path):
    torch = pytest.importorskip("torch")
    config = Config(trainer={"iterations": 3})
    torch.save({"config": config.to_state()}, tmp_path / "x.pt")
    state = torch.load(tmp_path / "x.pt", weights_only=True)["config"]
    assert Config(**state) == config
    assert config.diff(state) == []
