"""Work for one rank."""

from __future__ import annotations

import time

import distkit
import pytest


def test_the_leader_runs_and_the_others_get_the_default(ranks):
    @distkit.leader_only(default="other")
    def work():
        """Says so."""
        return "leader"

    assert work.__doc__ == "Says so."
    assert ranks(work, 3) == ["leader", "other", "other"]
    assert work() == "leader"


def test_a_collective_inside_raises_instead_of_hanging(ranks):
    @distkit.leader_only()
    def work():
        distkit.barrier()

    def fn():
        if distkit.rank() == 0:
            with pytest.raises(distkit.LeaderOnlyError, match=r"barrier\(\) was called inside .*work"):
                work()
        else:
            work()
        return distkit.agree(1, op="sum")  # the group still works, and the section is over

    assert ranks(fn) == [2, 2]


def test_each_collective_refuses(ranks):
    calls = [
        lambda: distkit.agree(1),
        lambda: distkit.broadcast_object(1),
        lambda: distkit.gather_objects(1),
        lambda: distkit.all_reduce_mean({"a": 1}),
        lambda: distkit.check_same(1, "x"),
    ]

    def fn():
        for call in calls:
            guarded = distkit.leader_only()(call)
            if distkit.is_leader():
                with pytest.raises(distkit.LeaderOnlyError):
                    guarded()

    ranks(fn)


def test_collectives_inside_are_fine_on_one_process():
    assert distkit.leader_only()(lambda: distkit.agree(3))() == 3


def test_an_unknown_scope():
    with pytest.raises(ValueError, match="'global' or 'local'"):
        distkit.leader_only(scope="node")


def test_local_scope_follows_the_local_rank(monkeypatch):
    for name, value in {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert distkit.leader_only(scope="local", default=0)(lambda: 1)() == 1
    assert distkit.leader_only(scope="global", default=0)(lambda: 1)() == 0


def test_leader_first(ranks, tmp_path):
    def fn():
        with distkit.leader_first():
            if distkit.rank() == 0:
                time.sleep(0.3)
                (tmp_path / "file").write_text("made")
            return (tmp_path / "file").read_text()

    assert ranks(fn, 3) == ["made"] * 3


def test_leader_first_tells_the_others_of_a_failure(ranks):
    def fn():
        try:
            with distkit.leader_first():
                raise ValueError("no disk")
        except (ValueError, distkit.RankFailed) as e:
            return f"{type(e).__name__}: {e}"

    assert ranks(fn) == ["ValueError: no disk", "RankFailed: rank 0 failed: ValueError: no disk"]


def test_raise_together(ranks):
    def fn():
        try:
            with distkit.raise_together():
                if distkit.rank() in (1, 2):
                    raise ValueError(f"bad file on {distkit.rank()}")
        except distkit.RankFailed as e:
            return str(e), e.rank, type(e.__cause__).__name__

    said = "rank 1 failed: ValueError: bad file on 1"
    assert ranks(fn, 4) == [
        (said, 1, "NoneType"),
        (said, 1, "ValueError"),
        (said, 1, "ValueError"),
        (said, 1, "NoneType"),
    ]


def test_raise_together_without_failure_passes(ranks):
    def fn():
        with distkit.raise_together():
            pass
        return distkit.agree(1, op="sum")

    assert ranks(fn) == [2, 2]
