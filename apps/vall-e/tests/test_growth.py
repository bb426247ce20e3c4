"""Autoregressive steps: what makes them fast does not change what is decoded."""

import numpy as np
import pytest
import torch
from vall_e import Sample
from vall_e.model import growth
from vall_e.model.model import VallE
from vall_e.model.spec import ModelSpec

SPEC = ModelSpec(dim=16, heads=2, layers=2, ffn=2, audio_tokens=8, phoneme_tokens=9, text_tokens=1, levels=3)
OPTIONS = (
    {"temperature": 0},
    {"temperature": 1.5, "seed": 2},
    {"temperature": 1.5, "cfg_strength": 2.0},
    {"temperature": 1.5, "mirostat_tau": 2.0},
    {"beam_width": 3},
)


def model(device="cpu", **flags) -> VallE:
    torch.manual_seed(0)
    return VallE(ModelSpec(**{**SPEC.__dict__, **flags})).to(device).eval()


def samples() -> list[Sample]:
    """Of many lengths, one of them to be continued; with these weights they stop at different frames."""
    rng = np.random.default_rng(0)
    made = [
        Sample(rng.integers(0, 9, phones), rng.integers(0, 8, (frames, 3)) if frames else None)
        for phones, frames in ((4, 7), (6, 0), (5, 12), (3, 300))
    ]
    return [*made, made[0].with_response(rng.integers(0, 8, (5, 3)))]


def assert_alike(one: VallE, other: VallE, asked: list[Sample], **options) -> None:
    decoded = [m.generate(asked, "delay" if one.spec.delay else "ar", max_frames=40, **options) for m in (one, other)]
    for a, b in zip(*decoded, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def uncompiled(monkeypatch):
    """The steps as they are compiled, without the compiler's time."""
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("unified", [False, True])
def test_static_steps_decode_alike(uncompiled, options, unified):
    eager, static = model(unified_position_ids=unified), model(unified_position_ids=unified)
    static.compile_steps()
    asked = samples()
    ends = {len(c) for c in eager.generate(asked, "ar", max_frames=40, temperature=1.5)}
    assert len(ends) > 2, "the rows should leave the batch one after the other"
    for _ in range(2):  # the buffers are used again
        assert_alike(eager, static, asked, **options)


def test_static_steps_of_delayed_levels_decode_alike(uncompiled):
    eager, static = model(delay=True), model(delay=True)
    static.compile_steps()
    assert_alike(eager, static, samples()[:4], temperature=1.5)


def test_compiled_steps_decode_alike():
    eager, compiled = model(), model()
    compiled.compile_steps()
    for options in ({"temperature": 0}, {"temperature": 1.5, "seed": 2}):
        assert_alike(eager, compiled, samples()[:3], **options)


@pytest.mark.gpu
def test_recorded_steps_decode_alike():
    eager, compiled = model("cuda", dim=64), model("cuda", dim=64)
    compiled.compile_steps()
    for asked in (samples()[:3], samples()[2:4], samples()[:3]):
        assert_alike(eager, compiled, asked, temperature=0)


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(growth.shutil, "which", lambda _: None)
    with pytest.raises(ValueError, match="need a C\\+\\+ compiler"):
        model().compile_steps()


def test_the_weights_layout_changes_no_value():
    plain, laid_out = model(), model()
    growth.lay_out_weights(laid_out)
    up = laid_out.model.layers[0].mlp.up_proj.weight
    assert up.t().is_contiguous()
    assert laid_out.model.layers[0].mlp.down_proj.weight.is_contiguous()
    for name, tensor in laid_out.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name])
    assert_alike(plain, laid_out, samples(), temperature=0)
