"""The variant that predicts all levels at once, one behind the other."""

import dataclasses

import numpy as np
import pytest
import torch
from vall_e import Sample, load_model
from vall_e.config import Config
from vall_e.hf import export_llama
from vall_e.model.model import VallE, request_of
from vall_e.model.sequence import lay_out
from vall_e.model.spec import ModelSpec
from vall_e.training import Training
from vall_e.weights import load_weights

SPEC = ModelSpec(
    dim=32, heads=2, layers=2, ffn=2, audio_tokens=16, phoneme_tokens=16, text_tokens=1, levels=3, delay=True
)
OFFSETS = {"one by one": True, "together": (0, 0, 0), "any": (0, 4, 1)}


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(rng.integers(0, 16, phones), rng.integers(0, 16, (3, 3)), rng.integers(0, 16, (frames, 3)))
        for phones, frames in ((4, 7), (6, 2), (5, 12))
    ]


@pytest.fixture(scope="module", params=OFFSETS)
def memorised(request) -> tuple[VallE, list[float]]:
    """A model that knows three sequences by heart, and its losses on the way there."""
    torch.manual_seed(0)
    model = VallE(dataclasses.replace(SPEC, delay=OFFSETS[request.param]))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    batch, losses = model.batch_of(samples(), "delay"), []
    for _ in range(120):
        optimizer.zero_grad()
        loss = model(batch).nll.mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, losses


def test_steps_train(memorised):
    _, losses = memorised
    assert losses[0] == pytest.approx(np.log(16), abs=0.2)
    assert losses[-1] < 0.02


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 0.3, "seed": 3}, {"cfg_strength": 1.2, "temperature": 0}]
)
def test_what_was_memorised_is_decoded(memorised, options):
    model, _ = memorised
    asked = [s.with_response(None) for s in samples()]
    for codes, sample in zip(model.generate(asked, max_frames=20, **options), samples(), strict=True):
        np.testing.assert_array_equal(codes, sample.response)
    (alone,) = model.generate(asked[:1], max_frames=20, **options)
    np.testing.assert_array_equal(alone, samples()[0].response)


def test_a_limit_ends_all_levels_together(memorised):
    model, _ = memorised
    asked = [s.with_response(None) for s in samples()]
    codes = model.generate(asked, "delay", temperature=0, max_frames=[3, 20, 5])
    assert [len(c) for c in codes] == [3, 2, 5]
    for c, sample in zip(codes, samples(), strict=True):
        # A level near the end is read after the first level's stop token, which training has elsewhere.
        np.testing.assert_array_equal(c[:, 0], sample.response[: len(c), 0])


def test_a_code_is_predicted_from_earlier_steps_alone(memorised):
    model, _ = memorised
    sample, offsets = samples()[0], model.spec.offsets

    def by_place(s):  # (frame, level) -> the loss of its code
        batch = lay_out([request_of(s, "delay", 0)], model.spec)
        with torch.inference_mode():
            rows = [
                (level, row) for (level, _), z in zip(batch.heads, model.batch_logits(batch), strict=True) for row in z
            ]
        return {(int(o) - offsets[level], level): row for o, (level, row) in zip(batch.output, rows, strict=True)}

    before = by_place(sample)
    assert len(before) == sample.response.size + 1  # and the stop token
    changed = sample.response.copy()
    changed[3, 1] = (changed[3, 1] + 1) % 16
    after = by_place(sample.with_response(changed))
    for (frame, level), row in before.items():
        late = frame + offsets[level] > 3 + offsets[1]
        assert torch.equal(row, after[frame, level]) != late, (frame, level)


def test_a_run_trains_exports_and_speaks(fresh):
    cfg = Config.from_yaml(
        fresh / "config.yaml",
        overrides=["models.0.experimental.delay=true", "trainer.iterations=6", "models.0.name=delayed"],
    )
    training = Training(cfg, commands=False)
    batch = next(iter(training.loader))
    assert len(batch.owner_head) == len(batch.lengths) * training.spec.levels
    training.run()
    measured = training.evaluator.losses("val", 8)
    assert measured["val.loss"] < np.log(training.spec.audio_tokens) + 0.1
    (codes,) = training.evaluator.codes(training.evaluator._samples(training.splits["val"][:1]))
    assert codes.shape[1] == training.spec.levels
    voice = load_weights(training.weights_path)
    assert voice.model.spec.modality == "delay"
    (again,) = voice.model.generate(
        [s.with_response(None) for s in training.evaluator._samples(training.splits["val"][:1])],
        temperature=0,
        max_frames=5,
    )
    assert again.shape[1] == training.spec.levels


def test_what_cannot_be(memorised, golden, tmp_path):
    model, _ = memorised
    asked = [s.with_response(None) for s in samples()]
    with pytest.raises(ValueError, match=r"made for delay, not for ar\+nar"):
        model.generate(asked, "ar+nar")
    with pytest.raises(ValueError, match=r"made for ar\+nar, not for delay"):
        load_model(golden / "tiny/fp32.sft").generate(asked, "delay")
    with pytest.raises(ValueError, match="neither beam search nor"):
        model.generate(samples(), "delay")
    with pytest.raises(ValueError, match="llama's layout has no place"):
        export_llama(model, tmp_path / "llama")
    for offsets in ((0, 1), (1, 2, 3), (0, 1, -1)):
        with pytest.raises(ValueError, match="expected 3 offsets"):
            VallE(dataclasses.replace(SPEC, delay=offsets))
    with pytest.raises(ValueError, match="no level 0 to be demasked"):
        dataclasses.replace(SPEC, masking_train_p=0.5)
