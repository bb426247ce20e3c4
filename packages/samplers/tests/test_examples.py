"""What the documentation shows runs, and prints what it says."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import samplers

ROOT = Path(__file__).parents[1]
MODULES = [f"samplers.{m.name}" for m in pkgutil.iter_modules(samplers.__path__) if m.name != "__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_quickstart():
    done = subprocess.run([sys.executable, ROOT / "examples/quickstart.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme():
    """Each python block is followed by a text block with what it prints."""
    blocks = re.findall(
        r"```python\n(.*?)```\n+```text\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S
    )
    assert blocks
    for code, printed in blocks:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == printed


def test_the_public_names_exist_and_say_what_they_are():
    for name in samplers.__all__:
        assert getattr(samplers, name).__doc__
