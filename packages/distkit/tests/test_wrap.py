"""DDP and FSDP2 train like one process on the whole batch."""

from __future__ import annotations

import distkit
import pytest
import torch
from torch import nn


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def data() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def trained(wrap=lambda m: m, rows=slice(None)) -> list[torch.Tensor]:
    module = wrap(model())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(data()[rows]).square().mean().backward()
        optimizer.step()
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in module.parameters()]


OLD = torch.__version__ < (2, 7)


@pytest.mark.parametrize("which", ["ddp", pytest.param("fsdp2", marks=pytest.mark.skipif(OLD, reason="torch 2.7"))])
def test_two_ranks_equal_the_whole_batch(ranks, which):
    expected = trained()

    def fn():
        wrap = distkit.wrap_ddp if which == "ddp" else lambda m: distkit.wrap_fsdp2(m, layers=(nn.Linear,))
        half = slice(0, 4) if distkit.rank() == 0 else slice(4, 8)
        got = trained(wrap, half)
        distkit.check_same([p.detach() for p in got], "parameters")
        return [p.detach().numpy() for p in got]

    for got in ranks(fn):
        for a, b in zip(expected, got, strict=True):
            torch.testing.assert_close(a.detach(), torch.from_numpy(b))


def test_an_old_torch_is_named(ranks):
    def fn():
        torch.__version__ = type(torch.__version__)("2.6.0")  # in this rank alone
        with pytest.raises(RuntimeError, match=r"on a CPU it needs torch 2.7 or newer, found 2.6.0"):
            distkit.wrap_fsdp2(model())

    ranks(fn)


def test_ddp_does_not_look_for_unused_parameters(ranks):
    def fn():
        assert not distkit.wrap_ddp(model()).find_unused_parameters
        with pytest.raises(ValueError, match="no parameter that requires a gradient"):
            distkit.wrap_ddp(nn.ReLU())

    ranks(fn)
