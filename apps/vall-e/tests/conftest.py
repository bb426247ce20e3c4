import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"

SMALL = """
demo: {enabled: true, utterances: 240, validation: 24}
codec: {levels: 2, entries: 32, stack: 8, iterations: 2, minutes: 1}
models:
- size: {dim: 32, heads: 2, layers: 1, ffn: 2, text_tokens: 1}
dataset: {duration_range: [0.3, 8.0], prompt_duration_range: [0.7, 0.7]}
hyperparameters: {batch_size: 8, learning_rate: 2.0e-3}
evaluation: {frequency: 0, size: 1, loss_size: 16}
trainer: {iterations: 12, save_frequency: 2}
"""


def command(name, *arguments, cwd, stdin=subprocess.DEVNULL, **environment):
    """Start a command of the application in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", f"vall_e.cli.{name}", *arguments],
        cwd=cwd,
        env=env,
        text=True,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="session")
def start():
    return command


@pytest.fixture(scope="session")
def run():
    """Run a command to its end: (exit code, stdout, stderr)."""

    def run(name, *arguments, cwd, **environment):
        process = command(name, *arguments, cwd=cwd, **environment)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, run) -> Path:
    """A finished small run."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(SMALL)
    code, out, err = run("train", "--yaml", "config.yaml", cwd=folder)
    assert code == 0, err
    (folder / "summary.txt").write_text(out)
    return folder


@pytest.fixture
def fresh(prepared, tmp_path) -> Path:
    """The same dataset without any training."""
    for name in ("config.yaml", "codec.sft", "data.h5"):
        shutil.copy(prepared / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Compatibility data: numbers drawn from a seeded recipe, see its README."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny():
    """The tiny model of the golden data, its samples and the stored results."""
    from vall_e import Sample, load_model

    inputs = np.load(GOLDEN / "tiny" / "inputs.npz")
    samples = [
        Sample(inputs[f"phn_{i}"], inputs[f"prom_{i}"], inputs[f"resp_{i}"], int(inputs[f"lang_{i}"][0]))
        for i in (0, 1)
    ]
    losses = json.loads((GOLDEN / "tiny" / "losses.json").read_text())["losses"]
    return load_model(GOLDEN / "tiny" / "fp32.sft"), samples, np.load(GOLDEN / "tiny" / "outputs.npz"), losses


@pytest.fixture(scope="session")
def speech() -> list[np.ndarray]:
    """A few seconds of speech at 24 kHz."""
    from vall_e import audio, espeak

    texts = ["The old man walked home.", "Seven birds sang about rain.", "Nobody knew why it was cold."]
    return [audio.resample(espeak.speak(t, "en-us+m3"), espeak.SAMPLE_RATE, 24000) for t in texts]


@pytest.fixture(scope="session")
def train():
    """Train in this process: (the training, the parameters at the end)."""
    from vall_e.config import Config
    from vall_e.training import Training

    def train(folder, until, *overrides):
        settings = [
            f"trainer.iterations={until}",
            "evaluation.size=0",
            "evaluation.loss_size=4",
            "trainer.save_frequency=3",
        ]
        cfg = Config.from_yaml(folder / "config.yaml", overrides=[*settings, *overrides])
        training = Training(cfg, commands=False)
        training.run()
        return training, {k: v.clone() for k, v in training.model.state_dict().items()}

    return train
