"""Ranks on one machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time

import distkit
import pytest
import torch


def test_results_come_in_the_order_of_the_ranks(ranks):
    def fn():
        time.sleep(0.2 * (2 - distkit.rank()))
        return distkit.rank()

    assert ranks(fn, 3) == [0, 1, 2]


def test_arguments():
    assert distkit.launch(lambda a, b: a + b, 2, (1, 2)) == [3, 3]


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
        results[key] = distkit.launch(lambda: distkit.agree(key, op="sum"), 2, start="fork")

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


def test_torchrun_restarts_a_failed_group(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent("""
        import os, pathlib, distkit
        with distkit.session("gloo", timeout=60) as env:
            attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
            total = distkit.agree(env.rank + 1, op="sum")
            if attempt == 0 and env.rank == 1:
                os._exit(3)
            distkit.barrier()
            pathlib.Path(os.environ["OUT"], f"{env.rank}").write_text(f"{attempt} {total}")
        """)
    )
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("--max-restarts=1", str(script)),
        ],
        env={**os.environ, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert [(tmp_path / str(r)).read_text() for r in range(2)] == ["1 3", "1 3"]


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
