"""A process group for the length of a block."""

from __future__ import annotations

import subprocess
import sys
import time

import distkit
import pytest
import torch
import torch.distributed as dist


def test_a_group_of_one_needs_no_port_and_no_environment():
    with distkit.session() as env:
        assert env.world_size == 1
        assert dist.is_initialized()
        tensor = torch.tensor([2.0])
        dist.all_reduce(tensor)
        assert tensor.item() == 2.0
    assert not dist.is_initialized()


def test_no_device_is_set_without_cuda(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: pytest.fail("set_device on a CPU machine"))
    with distkit.session():
        pass


def test_an_error_leaves_no_group_behind():
    with pytest.raises(ZeroDivisionError), distkit.session():
        raise ZeroDivisionError
    assert not dist.is_initialized()
    with distkit.session():  # and the next one works
        pass


def test_a_group_that_is_up_is_left_alone():
    with distkit.session(), distkit.session():
        pass
    with distkit.session():
        with distkit.session():
            pass
        assert dist.is_initialized()


@pytest.mark.parametrize(("backend", "words"), [("mpi", "auto, gloo or nccl"), ("nccl", "needs CUDA")])
def test_backends_that_cannot_be(backend, words):
    if backend == "nccl" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match=words), distkit.session(backend):
        pass


@pytest.mark.parametrize("n", [2, 4])
def test_ranks_meet(ranks, n):
    def fn():
        return distkit.rank(), distkit.world_size(), distkit.is_leader(), distkit.is_local_leader()

    assert ranks(fn, n) == [(r, n, r == 0, r == 0) for r in range(n)]


def test_a_failing_rank_does_not_wait_for_the_others():
    script = """
import distkit, time
def fn():
    if distkit.rank() == 1:
        raise ValueError("this rank fails")
    time.sleep(120)
try:
    distkit.launch(fn, 2)
except distkit.LaunchError as e:
    assert e.rank == 1 and "this rank fails" in str(e), e
    print("ended")
"""
    begin = time.monotonic()
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert out.stdout.strip() == "ended", out.stderr
    assert time.monotonic() - begin < 90


def test_importing_does_nothing():
    script = """
import sys, torch, os, random
before = dict(os.environ), random.getstate()
threads = torch.get_num_threads()
import distkit, torch.distributed as dist
assert not dist.is_initialized()
assert before == (dict(os.environ), random.getstate())
assert threads == torch.get_num_threads()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
