"""A student's loss against its teachers, in closed forms and under accumulation and ranks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import trainloop
from torch import nn
from trainloop import Distillation, TargetCache


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_kl_is_torchs_times_temperature_squared():
    student, teacher = logits(0, 5, 7), logits(1, 5, 7)
    got = Distillation("kl", alpha=1.0, temperature=3.0)(student, {"t": teacher})
    expected = F.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean") * 9
    torch.testing.assert_close(got, expected)


def test_alpha_and_weights():
    student, a, b = logits(0, 4, 3), logits(1, 4, 3), logits(2, 4, 3)
    got = Distillation("mse", alpha=0.25, weights={"a": 3.0, "b": 1.0})(student, {"a": a, "b": b}, task=8.0)
    expected = 0.75 * 8.0 + 0.25 * (0.75 * F.mse_loss(student, a) + 0.25 * F.mse_loss(student, b))
    torch.testing.assert_close(got, expected)


def test_masked_positions_count_for_nothing():
    student, teacher = logits(0, 2, 6, 5), logits(1, 2, 6, 5)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, :4] = True
    distil = Distillation(alpha=1.0)
    torch.testing.assert_close(
        distil(student, {"t": teacher}, mask=mask), distil(student[0, :4], {"t": teacher[0, :4]})
    )


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"loss": "l1"}, "kl or mse"),
        ({"alpha": 1.5}, "between 0 and 1"),
        ({"temperature": 0.0}, "positive"),
        ({"weights": {"a": 0.0}}, "not all 0"),
    ],
)
def test_arguments_that_cannot_be(kwargs, words):
    with pytest.raises(ValueError, match=words):
        Distillation(**kwargs)


def test_a_teacher_of_another_shape_is_named():
    with pytest.raises(ValueError, match="teacher 'big' gave"):
        Distillation()(logits(0, 2, 3), {"big": logits(0, 2, 4)})


def engines(student: nn.Module, every_teacher: int = 1) -> trainloop.Engines:
    torch.manual_seed(7)
    teachers = [trainloop.LocalEngine(f"t{i}", nn.Linear(4, 3), role="teacher") for i in range(every_teacher)]
    return trainloop.Engines(
        [trainloop.LocalEngine("s", student, torch.optim.SGD(student.parameters(), 0.1)), *teachers]
    )


def test_teachers_are_asked_by_name_without_gradients():
    these = engines(nn.Linear(4, 3), 2)
    x = logits(0, 5, 4)
    everyone = Distillation().targets(these, lambda t: t.module(x), "cpu")
    assert set(everyone) == {"t0", "t1"}
    assert not any(t.requires_grad for t in everyone.values())
    assert set(Distillation(weights={"t1": 1.0}).targets(these, lambda t: t.module(x), "cpu")) == {"t1"}
    with pytest.raises(ValueError, match="no teacher named t9; there are t0, t1"):
        Distillation(weights={"t9": 1.0}).targets(these, lambda t: t.module(x), "cpu")


def test_accumulated_distillation_equals_the_concatenated_batch():
    """The teachers' part obeys the window's denominator like the task's."""
    x, y = logits(0, 12, 4), torch.arange(12) % 3
    distil = Distillation(alpha=0.7, temperature=2.0)

    def feeder(e, batch, ctx):
        inputs, labels = batch
        targets = distil.targets(ctx.engines, lambda t: t.module(inputs), e.device)
        out = e.module(inputs)
        return trainloop.StepOutput(distil(out, targets, F.cross_entropy(out, labels)), weight=len(inputs))

    def train(cuts, accumulate):
        torch.manual_seed(0)
        student = nn.Linear(4, 3)
        loader = [(x[a:b], y[a:b]) for a, b in cuts]
        trainloop.Trainer(
            engines(student), loader, feeder, until=3, accumulate=accumulate, commands=False, progress=False
        ).run()
        return student.weight.detach()

    torch.testing.assert_close(train([(0, 2), (2, 3), (3, 12)], 3), train([(0, 12)], 1))


def test_the_cache_asks_once_and_forgets_the_oldest():
    asked = []

    def ask(key):
        def answer():
            asked.append(key)
            return {"t": torch.full((2,), float(key))}

        return answer

    cache = TargetCache(2)
    for key in (1, 2, 1, 3, 1, 2):
        assert cache(key, ask(key))["t"].tolist() == [key, key]
    assert asked == [1, 2, 3, 2]
    assert len(cache) == 2
    with pytest.raises(ValueError, match="1 or more"):
        TargetCache(0)


def test_a_perfect_student_has_no_loss():
    x = logits(0, 3, 4)
    assert math.isclose(float(Distillation(alpha=1.0)(x, {"t": x})), 0.0, abs_tol=1e-6)
