"""Helpers for the tests of basecfg."""

import json
import os
import struct
import subprocess
import sys

import hypothesis
import pytest

hypothesis.settings.register_profile("basecfg", deadline=None, print_blob=True)
hypothesis.settings.load_profile("basecfg")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file in the working folder of the test and return its name, as a user would type it."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="exp.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text, encoding="utf-8")
        return name

    return write


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Write a SafeTensors file with one tensor and a configuration in its metadata."""
    monkeypatch.chdir(tmp_path)

    def checkpoint(config, name="model.sft"):
        header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
        if config is not None:
            header["__metadata__"] = {"config": config if isinstance(config, str) else json.dumps(config)}
        raw = json.dumps(header).encode()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
        return name

    return checkpoint


@pytest.fixture(scope="session")
def python():
    """Run Python code in a process of its own."""

    def run(*arguments, check=True, cwd=None, **environment):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("BASECFG_")}
        result = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**kept, **environment},
            timeout=300,
        )
        if check and result.returncode:
            raise AssertionError(f"exit {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    return run


@pytest.fixture
def lines():
    """The lines of the error that a call raises."""
    from basecfg import ConfigError

    def lines(call, *arguments, **keywords):
        with pytest.raises(ConfigError) as caught:
            call(*arguments, **keywords)
        return str(caught.value).splitlines()

    return lines
