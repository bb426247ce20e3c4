"""Runs `deepspeed_cases.py` in a process of its own: DeepSpeed changes torch's functions for the whole process."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="installs on Linux alone")
CASES = Path(__file__).with_name("deepspeed_cases.py")


def run(marks):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--import-mode=importlib",
        "-o",
        "addopts=",
        "-m",
        marks,
        str(CASES),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


def test_deepspeed():
    run("not soak and not gpu")


@pytest.mark.soak
def test_deepspeed_soak():
    run("soak")
