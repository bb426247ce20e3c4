"""Sequences packed without padding: each gets what it gets alone, whatever lies beside it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vall_e.model.attention import Packed
from vall_e.model.generate import lengths
from vall_e.model.model import VallE, request_of
from vall_e.model.sequence import Request, Sample, lay_out
from vall_e.model.spec import ModelSpec

SPEC = ModelSpec(dim=16, heads=2, layers=2, ffn=2, audio_tokens=8, phoneme_tokens=9, text_tokens=1, levels=3)


def attention(q, k, v, lengths, causal):
    """Each sequence for itself, by the formula."""
    out, start = torch.empty_like(q), 0
    for length, past_only in zip(lengths, causal, strict=True):
        a, b, c = (x[start : start + length].transpose(0, 1) for x in (q, k, v))
        scores = a @ b.transpose(1, 2) / q.shape[-1] ** 0.5
        if past_only:
            scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        out[start : start + length] = (scores.softmax(-1) @ c).transpose(0, 1)
        start += length
    return out


@given(
    sequences=st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=6),
    half=st.booleans(),
    training=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_attention_stays_within_each_sequence(sequences, half, training):
    sizes, causal = zip(*sequences, strict=True)
    generator = torch.Generator().manual_seed(sum(sizes))
    q, k, v = torch.randn(3, sum(sizes), 2, 4, generator=generator)
    dtype = torch.bfloat16 if half else torch.float32
    with torch.set_grad_enabled(training):
        got = Packed(sizes, causal)(q.to(dtype), k.to(dtype), v.to(dtype), 0).float()
    torch.testing.assert_close(got, attention(q, k, v, sizes, causal), atol=0.05 if half else 1e-5, rtol=0)


def requests() -> list[Request]:
    """All kinds, of many lengths, with and without a prompt."""
    torch.manual_seed(1)
    made = []
    for i, (task, level) in enumerate(
        [("tts", 0), ("tts", 2), ("len", 0), ("stt", 0), ("tts", 1), ("nar-len", 0), ("tts", 0), ("delay", 0)]
    ):
        prompt = torch.randint(8, (i, 3)).numpy() if i % 3 else None
        sample = Sample(torch.randint(9, (3 + i,)).numpy(), prompt, torch.randint(8, (2 + i, 3)).numpy())
        made.append(request_of(sample, task, level))
    return made


def model_of(**changes) -> VallE:
    torch.manual_seed(0)
    return VallE(replace(SPEC, **changes))


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("noncausal", [False, True])
def test_the_loss_and_gradient_of_a_mixed_batch_are_those_of_its_requests(unified, noncausal):
    model = model_of(unified_position_ids=unified, noncausal_masks=noncausal)
    model.spec = replace(model.spec, delay=True)  # the same tensors, so that all kinds can be asked of it
    together = model(lay_out(requests(), model.spec)).nll
    together.sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = torch.cat([model(lay_out([r], model.spec)).nll for r in requests()])
    alone.sum().backward()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_what_is_kept_is_the_whole_at_these_positions():
    model = model_of()
    batch = lay_out([r for r in requests() if r.kind != "delay"], model.spec)
    with torch.inference_mode():
        torch.testing.assert_close(model.hidden(batch, batch.kept), model.hidden(batch)[batch.kept])


def test_a_length_once_learned_is_predicted():
    model = model_of(layers=1, dim=32)
    samples = [r.sample for r in requests() if r.kind == "ar"] + [
        Sample([1, 2, 3], None, torch.zeros(120, 3, dtype=torch.long).numpy())
    ]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        model.loss(samples, "len").backward()
        optimizer.step()
    model.eval()
    assert lengths(model, [s.with_response(None) for s in samples]) == [len(s.response) for s in samples]


@pytest.mark.gpu
def test_the_kernel_for_many_lengths_gives_the_same():
    """On CUDA at half precision: what the sequences give one by one, forward and backward."""
    sizes, causal = (70, 1, 33, 200, 5), (False, False, True, True, False)
    q, k, v = (torch.randn(sum(sizes), 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    results = []
    for dtype in (torch.bfloat16, torch.float32):  # the second one by one
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        y = Packed(sizes, causal)(*inputs, 0)
        y.square().sum().backward()
        results.append([y.float(), *(x.grad.float() for x in inputs)])
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() / other.norm() < 0.02
