"""The command line, the checkpoint, the run, and what importing costs."""

import json
import sys
from pathlib import Path
from typing import Any

import basecfg
import pytest
from basecfg import BaseConfig, Field, Section
from basecfg.__main__ import main

APP = """
from basecfg import BaseConfig, Field, Section

class Trainer(Section):
    iterations: int = 100
    "Optimizer steps to take."
    amp: bool = False

class Config(BaseConfig):
    migrations = {}
    trainer: Trainer
    seed: int = Field(0, ge=0, description="Of everything random.")

if __name__ == "__main__":
    config = Config.from_cli(prog="app", description="Trains a model.", env_prefix="APP_")
    print(config.trainer.iterations, config.trainer.amp, config.source_of("trainer.iterations"))
"""


class Model(Section):
    name: str = "x"
    version: int = 0
    path: Path | None = None


class Config(BaseConfig):
    models: list[Model] = Field(default_factory=list)
    seed: int = 0

    @classmethod
    def model_values(cls, config, path) -> dict[str, Any]:
        return {"models": [{**config, "path": str(path)}]}


def test_help_lists_every_key_without_pydantic_or_yaml(write, python):
    write(APP, "app.py")
    result = python("-X", "importtime", "app.py", "--help")
    assert "trainer.iterations  int = 100\n        Optimizer steps to take.\n" in result.stdout
    assert "seed  int = 0\n        Of everything random.\n" in result.stdout
    assert not [line for line in result.stderr.splitlines() if "pydantic" in line or "yaml" in line]


def test_overrides_and_switches(write, python):
    write(APP, "app.py")
    assert python("app.py", "--trainer.amp", "trainer.iterations=3").stdout == "3 True cli\n"
    assert python("app.py", "--trainer.amp", "false", "--trainer.iterations=4").stdout == "4 False cli\n"
    assert python("app.py", APP_TRAINER__ITERATIONS="5").stdout == "5 False env APP_TRAINER__ITERATIONS\n"


def test_all_problems_go_to_stderr_and_the_exit_code_is_2(write, python):
    write(APP, "app.py")
    result = python("app.py", "junk", "--trainr.amp", "seed=-1", check=False, APP_SED="1")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "app: 4 problems (--help lists all keys)",
        "cli: expected key=value, --key value or a file option, found 'junk'",
        "env APP_SED: sed: unknown key; did you mean seed?",
        "cli: trainr: unknown key; did you mean trainer?",
        "cli: seed: expected greater than or equal to 0, found -1 (int)",
    ]


def test_the_argument_list_is_not_changed(monkeypatch):
    arguments = ["prog", "seed=3"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert Config.from_cli().seed == 3
    assert arguments == ["prog", "seed=3"]


def test_a_checkpoint_alone_is_enough_and_torch_is_not_needed(checkpoint, python):
    name = checkpoint({"name": "ar+nar", "version": 5})
    config = Config.from_model(name)
    assert config.models == [Model(name="ar+nar", version=5, path=name)]
    assert config.source_of("models.0.name") == "model.sft#config"
    code = "import sys, basecfg\nclass C(basecfg.BaseConfig):\n    name: str\n    version: int\n"
    code += "print(C.from_model('model.sft').name, 'torch' in sys.modules)"
    assert python("-c", code).stdout == "ar+nar False\n"


def test_old_checkpoints_may_have_keys_that_are_gone(checkpoint, lines):
    name = checkpoint({"nam": "x"})
    with pytest.warns(basecfg.ConfigWarning, match=r"models\.0\.nam: unknown key"):
        Config.from_model(name)
    assert Config.from_model(name, unknown="drop").models[0].name == "x"
    assert "unknown key" in lines(Config.from_model, name, unknown="error")[0]


@pytest.mark.parametrize("config", [None, "{not json", "[1]"])
def test_checkpoints_without_a_configuration(checkpoint, lines, config):
    (line,) = lines(Config.from_model, checkpoint(config))
    assert line.startswith("model.sft")


def test_other_formats_through_a_callable(write, lines):
    name = write("", "model.pth")
    assert Config.from_model(name, load=lambda path: {"config": {"name": "y"}}).models[0].name == "y"
    assert lines(Config.from_model, name) == [
        "model.pth: expected a .sft or .safetensors file; load= reads other formats"
    ]
    assert "not a SafeTensors file" in lines(Config.from_model, write("junk", "x.sft"))[0]


START = "from basecfg._run import start_time; print(start_time(), flush=True)"


def test_all_processes_of_a_run_agree_on_its_start(python):
    first, second = python("-c", START).stdout, python("-c", START).stdout
    assert first != second  # started in the same second or not
    inherit = f"{START}\nimport subprocess, sys\nsubprocess.run([sys.executable, '-c', {START!r}])"
    once, again = python("-c", inherit).stdout.split()
    assert once == again


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_ranks_of_a_launcher_agree_without_talking(python):
    code = f"""
import os, subprocess, sys
env = {{**os.environ, "TORCHELASTIC_RUN_ID": "none"}}
start = [sys.executable, "-c", {START!r}]
ranks = [subprocess.Popen(start, env=env, stdout=subprocess.PIPE) for _ in range(2)]
print(*(rank.communicate()[0].decode().strip() for rank in ranks))
"""
    first, second = python("-c", code).stdout.split(), python("-c", code).stdout.split()
    assert len(first) == len(second) == 2
    assert len(set(first)) == len(set(second)) == 1
    assert first != second


def test_tasks_of_a_slurm_step_agree_across_hosts(python):
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "1700000000"}
    assert python("-c", START, **slurm).stdout == python("-c", START, **slurm).stdout


def test_git_is_asked_only_when_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config()
    assert (config.git_commit, config.git_status) == ("", "")
    import subprocess

    def fail(*_, **__):
        raise AssertionError("git ran")

    monkeypatch.setattr(subprocess, "run", fail)
    config.dumps()
    config.dump(tmp_path / "x.json")


def test_tools(write, capsys, monkeypatch, tmp_path):
    write(APP.replace("migrations = {}", 'migrations = {"steps": "trainer.iterations"}'), "app_for_tools.py")
    monkeypatch.syspath_prepend(tmp_path)
    good, bad = write("seed: 1\n", "good.yaml"), write("sed: 1\n", "bad.yaml")
    old = write("steps: 3\n", "old.yaml")
    assert main(["check", "app_for_tools:Config", good]) == 0
    assert main(["check", "app_for_tools:Config", bad, old]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "bad.yaml:1:1: sed: unknown key; did you mean seed?",
        "old.yaml:1:1: steps: now trainer.iterations; change it there (warning)",
    ]
    assert main(["migrate", "app_for_tools:Config", old]) == 0
    assert main(["check", "app_for_tools:Config", old]) == 0
    capsys.readouterr()
    assert main(["schema", "app_for_tools:Config"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["seed"]["description"] == "Of everything random."
    assert schema["$defs"]["Trainer"]["properties"]["iterations"]["description"] == "Optimizer steps to take."
    assert "include" in schema["properties"]


def test_importing_is_cheap(python):
    code = "import time; a = time.process_time(); import basecfg; from basecfg import BaseConfig; "
    code += "print(time.process_time() - a)"
    assert min(float(python("-c", code).stdout) for _ in range(3)) < 0.04


def test_the_readme_runs_and_prints_what_it_says(tmp_path, python):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    expected = text.split("```text\n")[1].split("```")[0]
    assert python("-c", code, cwd=tmp_path).stdout == expected


def test_the_quickstart_runs(python):
    script = str(Path(__file__).parents[1] / "examples" / "quickstart.py")
    assert python(script, "trainer.iterations=10").stdout.endswith("cli\n")
    assert "Optimizer steps to take." in python(script, "--help").stdout
