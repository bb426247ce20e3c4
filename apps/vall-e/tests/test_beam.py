"""Beam search against all sequences there are."""

import itertools

import numpy as np
import pytest
import torch
from vall_e import Sample
from vall_e.model.generate import null_of
from vall_e.model.model import VallE
from vall_e.model.sampling import guided
from vall_e.model.spec import ModelSpec

SPEC = ModelSpec(dim=16, heads=2, layers=1, ffn=2, audio_tokens=3, phoneme_tokens=9, text_tokens=1, levels=2)
FRAMES = 3


def likelihood(model, sample, codes, strength) -> float:
    """The mean log-probability of codes and the stop token behind a sample's response."""
    held = np.zeros((0, 2), int) if sample.response is None else sample.response
    added = np.stack([codes, np.zeros_like(codes)], 1).astype(int).reshape(-1, 2)
    whole = sample.with_response(np.concatenate([held, added]))
    logits = model.logits([whole, null_of(whole)])
    z = logits[0] if strength == 1 else guided(*logits, strength, 0.75)
    targets = torch.tensor([*codes, SPEC.stop])
    return float(z[len(held) :].log_softmax(-1).gather(1, targets[:, None]).mean())


@pytest.mark.parametrize("strength", [1.0, 2.0])
@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_of_all_sequences_finds_the_best(strength, continued, seed):
    torch.manual_seed(seed)
    model = VallE(SPEC).eval()
    with torch.no_grad():
        model.classifiers.proj[0].weight.mul_(40)  # decided enough that a choice has consequences
    rng = np.random.default_rng(seed)
    sample = Sample(rng.integers(0, 9, 4), rng.integers(0, 3, (5, 2)))
    if continued:
        sample = sample.with_response(rng.integers(0, 3, (2, 2)))
    with torch.inference_mode():
        every = [np.array(c, int) for n in range(FRAMES) for c in itertools.product(range(3), repeat=n)]
        best = max(every, key=lambda codes: likelihood(model, sample, codes, strength))
        (found,) = model.generate([sample], "ar", beam_width=200, max_frames=FRAMES, cfg_strength=strength)
    held = [] if sample.response is None else sample.response[:, 0]
    np.testing.assert_array_equal(found[:, 0], [*held, *best])


def test_an_unlikely_stop_ends_nothing():
    torch.manual_seed(0)
    model = VallE(SPEC).eval()
    with torch.no_grad():
        model.classifiers.proj[0].bias.copy_(torch.tensor([3.0, 0.0, 0.0, -2.0]))
    (found,) = model.generate([Sample([1, 2], None)], "ar", beam_width=2, max_frames=6)
    assert len(found) == 6
