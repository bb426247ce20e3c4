import json
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"


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
