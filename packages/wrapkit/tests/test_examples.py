"""What the documentation shows runs and prints what it says; importing stays cheap."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import wrapkit

ROOT = Path(__file__).parents[1]
MODULES = [m.name for m in pkgutil.walk_packages(wrapkit.__path__, "wrapkit.")]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_quickstart():
    done = subprocess.run([sys.executable, ROOT / "examples/quickstart.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme():
    """Each python block is followed by a text block with what it prints."""
    blocks = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert blocks
    for code, printed in blocks:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == printed


def loaded_by(code):
    watched = {"torch", "safetensors", "bitsandbytes", "torchao", "transformer_engine"}
    watched |= {"prodigyopt", "schedulefree", "dadaptation"}
    code += f"\nimport sys; print(*sorted({watched} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_loads_nothing_and_using_loads_no_backend():
    assert loaded_by("import wrapkit") == []
    assert loaded_by("import wrapkit; wrapkit.replace, wrapkit.inject, wrapkit.optimizer") == ["torch"]
    assert "torch" in loaded_by("import torch, wrapkit")  # the check can fail


def test_the_table_of_contents():
    assert set(wrapkit.__all__) <= set(dir(wrapkit))
    for name in wrapkit.__all__:
        assert getattr(wrapkit, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        wrapkit.nothing  # noqa: B018
