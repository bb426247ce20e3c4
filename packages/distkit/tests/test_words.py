"""Collectives against closed forms, on real processes."""

from __future__ import annotations

import os
import time

import distkit
import pytest
import torch


@pytest.mark.parametrize("n", [2, 4])
def test_closed_forms(ranks, n):
    def fn():
        r = distkit.rank()
        return {
            "max": distkit.agree(r),
            "min": distkit.agree([r, -r], op="min"),
            "sum": distkit.agree({"b": r, "a": 1}, op="sum"),
            "flag": distkit.agree(r == 1),
            "mean": distkit.all_reduce_mean({"x": r, "y": 2.0}),
            "object": distkit.broadcast_object({"from": r}, src=n - 1),
            "all": distkit.gather_objects(r * r),
        }

    expected = {
        "max": n - 1,
        "min": [0, 1 - n],
        "sum": {"b": n * (n - 1) // 2, "a": n},
        "flag": 1,
        "mean": {"x": (n - 1) / 2, "y": 2.0},
        "object": {"from": n - 1},
        "all": [r * r for r in range(n)],
    }
    for got in ranks(fn, n):
        assert got == expected


def test_one_process_needs_no_group():
    assert distkit.agree(3) == 3
    assert distkit.agree([True, 0]) == [1, 0]
    assert distkit.agree({"a": 2}, op="min") == {"a": 2}
    assert distkit.all_reduce_mean({"b": 1, "a": 2}) == {"b": 1.0, "a": 2.0}
    assert distkit.broadcast_object("x") == "x"
    assert distkit.gather_objects(1) == [1]
    distkit.barrier()
    distkit.check_same({"a": 1}, "config")
    with distkit.raise_together(), distkit.leader_first():
        pass
    module = torch.nn.Linear(2, 2)
    assert distkit.wrap_ddp(module) is module
    assert distkit.wrap_fsdp2(module) is module


def test_an_unknown_op():
    with pytest.raises(ValueError, match="max, min, sum"):
        distkit.agree(1, op="xor")


def test_different_names_are_an_error_and_not_a_mix(ranks):
    def fn():
        name = "loss" if distkit.rank() == 0 else "accuracy"
        with pytest.raises(distkit.CollectiveError, match="different names"):
            distkit.all_reduce_mean({name: 1.0})

    ranks(fn)


def test_a_rank_that_dies_is_an_error_on_the_other(ranks):
    def fn():
        if distkit.rank() == 1:
            os._exit(7)
        time.sleep(1)  # long enough for the other to be gone
        with pytest.raises(distkit.CollectiveError, match=r"agree\(\) failed on rank 0 of 2"):
            distkit.agree(1)
        time.sleep(2)

    with pytest.raises(distkit.LaunchError, match="rank 1 died with exit code 7"):
        ranks(fn)


def test_a_barrier_names_the_rank_that_is_late(ranks):
    def fn():
        if distkit.rank() == 2:
            time.sleep(3)
            return "late"
        begin = time.monotonic()
        with pytest.raises(distkit.CollectiveError) as e:
            distkit.barrier(timeout=1.0)
        assert time.monotonic() - begin < 2.9
        raise RuntimeError(f"said: {e.value}")  # leaves the session without its last barrier

    with pytest.raises(distkit.LaunchError) as e:
        ranks(fn, 3)
    words = ("rank 2 of 3 did not arrive within 1 s", "a rank is late or dead, rank 0's error names it")
    assert words[e.value.rank] in str(e.value)
