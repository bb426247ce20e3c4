"""Every example runs and prints what it is there to show."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PRINTS = {
    "diffusion.py": ["the loss halved: True", "the average has it too: True"],
    "gan.py": ["steps: {'d': 1000, 'g': 500}", "the generator's mean is near 3: True"],
    "teacher_student.py": ["teachers above 0.95: True", "student without a label above 0.9: True"],
    "two_backends.py": ["steps: {'slow': 7, 'fast': 20}", "equal to the bit: True"],
    "by_hand.py": ["steps: 80, weight: 2.92"],
    "cached_teachers.py": ["loads: 3", "student without a label above 0.9: True"],
    "keras_model.py": ["stopped early: True", "the rate was lowered: True", "it learned: True"],
    "lora.py": ["it learned to count: True", "merged: True"],
    "quickstart.py": ["equal to the bit: True"],
    "schedules.py": ["equal to the bit: True"],
}
NEEDS = {"diffusion.py": "diffusers", "keras_model.py": "keras", "lora.py": "peft", "two_backends.py": "deepspeed"}
FOLDER = Path(__file__).parents[1] / "examples"


def test_none_is_left_out():
    assert {p.name for p in FOLDER.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_example(name):
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    # Two threads that wait for each other stall where another program has one of the cores.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, str(FOLDER / name)], capture_output=True, text=True, timeout=200, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-len(PRINTS[name]) :] == PRINTS[name]
