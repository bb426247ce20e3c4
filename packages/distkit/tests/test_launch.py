"""Ranks on one machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta

import distkit
import pytest
import torch
import torch.distributed as dist
from distkit.attempt import fresh_store


def test_results_come_in_the_order_of_the_ranks(ranks):
    def fn():
        time.sleep(0.2 * (2 - distkit.rank()))
        return distkit.rank()

    assert ranks(fn, 3) == [0, 1, 2]


def test_arguments():
    assert distkit.launch(lambda a, b: a + b, 2, (1, 2)) == [3, 3]


def test_tensors_outlive_the_rank_that_returned_them(ranks):
    assert [t.tolist() for t in ranks(lambda: torch.full((2,), float(distkit.rank())))] == [[0.0, 0.0], [1.0, 1.0]]


def test_ranks_see_the_environment_as_it_is_now(ranks, monkeypatch):
    monkeypatch.setenv("DISTKIT_TEST", "now")
    assert ranks(lambda: os.environ["DISTKIT_TEST"]) == ["now", "now"]


def test_what_cannot_be_pickled_is_an_error_with_a_remedy(monkeypatch):
    with pytest.raises(TypeError, match="cannot be pickled"):
        distkit.launch(print, 1, (threading.Lock(),))
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(TypeError, match=r"closures.* need cloudpickle"):
        distkit.launch(lambda: None, 1)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_ranks_are_forked_from_a_process_without_threads(ranks):
    """A lock held by a thread that a fork does not copy is never released: FSDP2 ranks hung for it."""
    torch.randn(400, 400) @ torch.randn(400, 400)  # this process has threads
    counts = ranks(lambda: len(os.listdir(f"/proc/{os.getppid()}/task")))
    assert counts == [1, 1]


def test_the_first_traceback_is_what_the_caller_sees(ranks):
    def a_function_of_rank_one():
        raise KeyError("the cause")

    def fn():
        if distkit.rank() == 1:
            a_function_of_rank_one()
        distkit.barrier()  # fails as a consequence

    with pytest.raises(distkit.LaunchError, match=r"(?s)rank 1 failed.*a_function_of_rank_one.*the cause") as e:
        ranks(fn)
    assert e.value.rank == 1


def test_a_rank_that_dies_without_a_word(ranks):
    def fn():
        if distkit.rank() == 0:
            os.kill(os.getpid(), 9)
        time.sleep(60)

    with pytest.raises(distkit.LaunchError, match="rank 0 died with exit code -9"):
        ranks(fn)


def test_a_rank_that_never_ends(ranks):
    def fn():
        if distkit.rank() == 1:
            time.sleep(60)

    with pytest.raises(distkit.LaunchError, match=r"rank .*1 did not end within 3 s"):
        ranks(fn, 2, 3.0)


def test_no_ranks():
    with pytest.raises(ValueError, match="1 or more"):
        distkit.launch(print, 0)


def test_launches_side_by_side_do_not_collide():
    results = {}

    def one(key):
        results[key] = distkit.launch(lambda: distkit.agree(key, op="sum"), 2)

    threads = [threading.Thread(target=one, args=(k,)) for k in (1, 2, 3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {1: [2, 2], 2: [4, 4], 3: [6, 6]}


def test_spawned_ranks(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent("""
        import distkit
        def fn(x):
            return distkit.agree(x + distkit.rank(), op="sum")
        if __name__ == "__main__":
            print(distkit.launch(fn, 2, (10,), start="spawn"))
        """)
    )
    out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100)
    assert out.stdout.strip() == "[21, 21]", out.stderr


@pytest.mark.parametrize("late", [0, 1])
def test_torchrun_restarts_a_failed_group(tmp_path, late):
    """The second attempt meets the first one's addresses in torchrun's store, whichever rank comes first."""
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent("""
        import os, pathlib, time, distkit
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        if attempt == 1 and os.environ["RANK"] == os.environ["LATE"]:
            time.sleep(1.5)
        with distkit.session("gloo", timeout=60) as env:
            total = distkit.agree(env.rank + 1, op="sum")
            if attempt == 0 and env.rank == 1:
                os._exit(3)
            distkit.barrier()
            pathlib.Path(os.environ["OUT"], f"{env.rank}").write_text(f"{attempt} {total}")
        """)
    )
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("--max-restarts=1", str(script)),
        ],
        env={**os.environ, "OUT": str(tmp_path), "LATE": str(late), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert [(tmp_path / str(r)).read_text() for r in range(2)] == ["1 3", "1 3"]


def test_a_rank_that_never_comes_to_the_store_is_an_error():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(TimeoutError, match="rank 1, 2 did not come"):
        fresh_store(store, 0, 3, timedelta(seconds=0.1))
    with pytest.raises(TimeoutError, match="rank 0 did not come"):
        fresh_store(store, 1, 3, timedelta(seconds=0.1))


def test_free_port_leaves_no_socket():
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    port = distkit.free_port()
    with socket.socket() as s:
        s.bind(("127.0.0.1", port))
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_port_that_is_taken_is_an_error_and_no_hang():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        env = {
            **os.environ,
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(s.getsockname()[1]),
        }
        script = "import distkit\nwith distkit.session('gloo', timeout=5): pass"
        out = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=100)
    assert out.returncode == 1
    assert "address already in use" in out.stderr.lower()


def test_seeds_differ_between_ranks_and_neighbouring_seeds():
    seeds = {(s, r): distkit.seed_all(s, r) for s in range(20) for r in range(20)}
    assert len(set(seeds.values())) == 400
    distkit.seed_all(1, 2)
    a = torch.rand(3)
    distkit.seed_all(1, 2)
    assert torch.equal(a, torch.rand(3))


def test_seed_all_asks_for_the_rank(ranks):
    def fn():
        return distkit.seed_all(0)

    assert ranks(fn) == [distkit.seed_all(0, 0), distkit.seed_all(0, 1)]
