"""Each way of drawing against what its definition says of a distribution small enough to work out."""

import math

import pytest
import torch
from vall_e.model.generate import sampling_of
from vall_e.model.sampling import Sampling, guided

P = torch.tensor([[0.5, 0.25, 0.15, 0.1]])


def kept(**options) -> list[int]:
    """The tokens that stay possible."""
    return Sampling(**options).truncated(P)[0].nonzero().flatten().tolist()


def frequencies(sampling: Sampling, draws: int = 20_000, **options) -> torch.Tensor:
    logits = P.log().expand(draws, -1)
    tokens = sampling.draw(logits, torch.Generator().manual_seed(0), **options)
    return torch.bincount(tokens, minlength=4) / draws


def test_truncations_keep_what_they_say():
    assert kept(top_k=2) == [0, 1]
    assert kept(top_p=0.75) == [0, 1]
    assert kept(top_p=0.76) == [0, 1, 2]
    assert kept(min_p=0.3) == [0, 1, 2]
    assert kept(min_p=0.31) == [0, 1]
    assert kept() == [0, 1, 2, 3]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    torch.testing.assert_close(frequencies(Sampling()), P[0], atol=0.015, rtol=0)
    cold = (P.log() / 0.5).softmax(-1)[0]
    torch.testing.assert_close(frequencies(Sampling(temperature=0.5)), cold, atol=0.015, rtol=0)
    assert frequencies(Sampling(temperature=0))[0] == 1


def test_top_n_sigma_leaves_out_what_is_far_below_the_largest():
    logits = P.log()
    far = (logits.amax() - logits) / logits.std()
    for n in (0.5, 1.1, 2.0):
        possible = (frequencies(Sampling(top_n_sigma=n)) > 0).tolist()
        assert possible == (far[0] <= n).tolist()


def test_the_dynamic_temperature_follows_the_entropy():
    sampling = Sampling(temperature=2.0, min_temperature=0.5)
    even, sure = torch.zeros(1, 4), torch.tensor([[50.0, 0, 0, 0]])
    assert float(sampling._temperature(even)) == pytest.approx(2.0)
    assert float(sampling._temperature(sure)) == pytest.approx(0.5, abs=1e-4)
    entropy = -(P * P.log()).sum().item() / math.log(4)
    assert float(sampling._temperature(P.log())) == pytest.approx(0.5 + 1.5 * entropy)


def test_a_repeated_token_loses_whatever_its_sign():
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    changed = Sampling(repetition_penalty=2.0).penalised(logits, torch.tensor([[0, 1]]))
    assert changed.tolist() == [[1.0, -4.0, 1.0]]
    window = Sampling(repetition_penalty=2.0, repetition_window=1).penalised(logits, torch.tensor([[0, 1]]))
    assert window.tolist() == [[2.0, -4.0, 1.0]]


def test_what_would_go_on_with_a_repeat_is_penalised_by_its_length():
    sampling = Sampling(dry_multiplier=0.8, dry_base=2.0, dry_allowed_length=2)
    history = torch.tensor([[1, 2, 3, 0, 1, 2]])  # 3 would repeat "1 2 3", a match of two
    assert sampling.penalised(torch.zeros(1, 5), history).tolist() == [[0, 0, 0, pytest.approx(-0.8), 0]]
    longer = torch.tensor([[4, 1, 2, 3, 0, 4, 1, 2]])
    assert sampling.penalised(torch.zeros(1, 5), longer)[0, 3] == pytest.approx(-1.6)
    assert not sampling.penalised(torch.zeros(1, 5), torch.tensor([[1, 2, 0, 2]])).any()


def test_the_length_penalty_moves_the_stop_token_alone():
    changed = Sampling(length_penalty=0.1).penalised(torch.zeros(1, 4), torch.zeros(1, 7, dtype=torch.long), stop=3)
    assert changed.tolist() == [[0, 0, 0, pytest.approx(0.7)]]


def test_mirostat_approaches_its_surprise():
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(1)) * 2
    sampling, generator = Sampling(mirostat_tau=3.0), torch.Generator().manual_seed(0)
    allowed, found = sampling.surprise(1, logits), []
    for _ in range(600):
        token = sampling.draw(logits, generator, surprise=allowed)
        found.append(-logits.softmax(-1)[0, token].log2().item())
    kept = logits.softmax(-1)[0]
    kept = kept[-kept.log2() <= allowed]
    kept = kept / kept.sum()
    assert float(-(kept * kept.log2()).sum()) == pytest.approx(3.0, abs=0.25)


def test_guidance_without_rescaling_is_the_line_through_both():
    p, n = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    assert guided(p, n, 1.0, 0.0).tolist() == p.tolist()
    assert guided(p, n, 2.0, 0.0).tolist() == [[2.0, 3.0, 7.0]]
    assert guided(p, n, 2.0, 1.0).std().item() == pytest.approx(p.std().item())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temprature": 1}, "did you mean temperature"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\], found 0"),
        ({"min_temperature": 2.0, "temperature": 1.0}, "min_temperature must be at most temperature"),
    ],
)
def test_options_that_cannot_be(option, message):
    with pytest.raises(ValueError, match=message):
        sampling_of(option)
