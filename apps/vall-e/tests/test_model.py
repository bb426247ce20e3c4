"""The model against results stored by the system whose weights it loads."""

import numpy as np
import pytest
import torch
from vall_e.model.generate import refine
from vall_e.model.model import request_of
from vall_e.model.sampling import Sampling
from vall_e.model.sequence import Request, Sample, head_of, lay_out


def every_row(model, request) -> np.ndarray:
    with torch.inference_mode():
        states = model.hidden(lay_out([request], model.spec))
        return model.classifiers.proj[head_of(request, model.spec)](states).numpy()


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got[-len(want) :], want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("index", [0, 1])
def test_logits_of_each_level(tiny, level, index):
    model, samples, outputs, _ = tiny
    assert_close(every_row(model, request_of(samples[index], "tts", level)), outputs[f"logits/tts{level}/s{index}"])


@pytest.mark.parametrize("index", [0, 1])
def test_logits_of_masked_decoding(tiny, index):
    model, samples, outputs, _ = tiny
    request = Request(samples[index], "nar-len", masked=outputs[f"mask_{index}"])
    assert_close(every_row(model, request), outputs[f"logits/narlen/s{index}"])


def test_logits_without_condition(tiny):
    model, samples, outputs, _ = tiny
    null = Sample([1, 2], None, samples[0].response, samples[0].language)
    assert_close(every_row(model, Request(null)), outputs["logits/null/s0"])


@pytest.mark.parametrize("key", ["tts0/0", "tts0/1", "tts0/01", "tts3/0", "tts3/01", "len/0", "len/01"])
def test_losses(tiny, key):
    model, samples, _, losses = tiny
    task, _, chosen = key.partition("/")
    level = int(task.removeprefix("tts") or 0) if task.startswith("tts") else 0
    loss = model.loss([samples[int(i)] for i in chosen], task.rstrip("0123456789"), level)
    assert loss.item() == pytest.approx(losses[key]["nll"], abs=1e-5)


@pytest.mark.parametrize("batched", [False, True])
def test_greedy_decoding_token_for_token(tiny, batched):
    model, samples, outputs, _ = tiny
    asked = [s.with_response(None) for s in (samples[::-1] if batched else samples[:1])]
    codes = model.generate(asked, "ar+nar", temperature=0, max_frames=40)[-1]
    np.testing.assert_array_equal(codes, outputs["greedy/ar+nar/s0"])
    np.testing.assert_array_equal(codes[:, 0], outputs["greedy/ar/s0"])


def test_levels_above_given_codes(tiny):
    model, samples, outputs, _ = tiny
    with torch.inference_mode():
        (codes,) = refine(model, samples[:1], [samples[0].response], Sampling(0), torch.Generator())
    np.testing.assert_array_equal(codes, outputs["greedy/nar_from_gt0/s0"])


def test_guided_and_demasked_decoding(tiny):
    model, samples, outputs, _ = tiny
    asked = [samples[0].with_response(None)]
    (guided,) = model.generate(asked, "ar", temperature=0, max_frames=24, cfg_strength=2)
    np.testing.assert_array_equal(guided[:, 0], outputs["greedy/ar_cfg2/s0"])
    (demasked,) = model.generate(asked, "nar-len", temperature=0, frames=[24], steps=4, cfg_strength=3)
    np.testing.assert_array_equal(demasked, outputs["greedy/narlen_steps4_cfg3_top_no0/s0"])


def test_a_batch_of_two_lengths_gives_each_sample_what_it_gets_alone(tiny):
    model, samples, _, _ = tiny
    with torch.inference_mode():
        together = model.logits(samples, level=3)
        alone = [model.logits([s], level=3)[0] for s in samples]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_bf16_training_on_a_cpu_has_the_gradients_of_the_fused_kernel(tiny):
    model, samples, _, _ = tiny
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(samples, level=2).backward()
    ours = model.model.layers[0].self_attn.q_proj.weight.grad.clone()
    model.zero_grad()
    model.loss(samples, level=2).backward()
    exact = model.model.layers[0].self_attn.q_proj.weight.grad
    assert (ours - exact).norm() / exact.norm() < 0.05
    model.zero_grad()


def test_a_code_outside_its_table_is_named(tiny):
    model, samples, _, _ = tiny
    broken = samples[0].with_response(np.full((3, 8), 128))
    with pytest.raises(ValueError, match=r"sample 0: audio code 128 is outside 0\.\.127"):
        model.loss([broken])
