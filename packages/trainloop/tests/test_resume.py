"""Interrupted and resumed equals uninterrupted, bit for bit."""

from __future__ import annotations

import pytest
import torch
import trainloop
from torch.utils.data import DataLoader, TensorDataset


def parameters(trainer: trainloop.Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for e in trainer.engines.values() for p in e.module.parameters()]


def shuffled(workers: int = 0):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(20, 4, generator=g)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 3, shuffle=True, num_workers=workers)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stop", [1, 5, 7])
def test_resumed_equals_uninterrupted(make_trainer, make_engine, tmp_path, accumulate, precision, stop):
    store = trainloop.CheckpointStore(tmp_path / "golden")

    def engines():
        return trainloop.Engines([make_engine("a", precision=precision), make_engine("b", 1, every=2)])

    golden = make_trainer(engines=engines(), checkpoints=store, accumulate=accumulate)
    assert golden.run().reason == "finished"
    first = make_trainer(engines=engines(), until=stop, accumulate=accumulate).run()
    assert (first.step, first.resumed_from, first.exit_code) == (stop, None, 0)
    second = make_trainer(engines=engines(), accumulate=accumulate)
    result = second.run()
    assert (result.step, result.resumed_from) == (12, stop)
    for a, b in zip(parameters(golden), parameters(second), strict=True):
        assert torch.equal(a, b)
    for name in golden.engines:
        assert golden.engines[name].clock == second.engines[name].clock
        assert golden.engines[name].lr == second.engines[name].lr


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, 7, 10])
def test_a_loader_without_a_state_is_run_again(make_trainer, tmp_path, stop, workers):
    golden = make_trainer(loader=shuffled(), checkpoints=trainloop.CheckpointStore(tmp_path / "golden"))
    golden.run()
    make_trainer(loader=shuffled(workers), until=stop).run()
    second = make_trainer(loader=shuffled(workers))
    second.run()
    for a, b in zip(parameters(golden), parameters(second), strict=True):
        assert torch.equal(a, b)
