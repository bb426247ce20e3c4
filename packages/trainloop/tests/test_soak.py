"""Real processes killed at random moments and at every failpoint, over everything a run can be made of.

A run of the default tests kills a few; `-m soak` walks the whole matrix, `TRAINLOOP_KILLS` random kills a cell.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import trainloop
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from trainloop.commands import parse
from trainloop.testing import FAILPOINTS, compare

KILLS = int(os.environ.get("TRAINLOOP_KILLS", "2"))
UNTIL = 24


@dataclass(frozen=True)
class Cell:
    """One way to run: `target` is the rank that is killed."""

    ranks: int = 1
    target: int = 0
    accumulate: int = 1
    workers: int = 0
    asynchronous: bool = False
    engines: int = 1

    def __str__(self) -> str:
        return (
            f"{self.ranks}r-kill{self.target}-acc{self.accumulate}-w{self.workers}"
            f"-{'async' if self.asynchronous else 'sync'}-{self.engines}e"
        )


CELLS = [
    Cell(ranks, target, *rest)
    for ranks, target in ((1, 0), (2, 0), (2, 1))
    for rest in itertools.product((1, 3), (0, 2), (False, True), (1, 2))
]
FEW = [Cell(1, 0, 3, 2, True, 2), Cell(2, 1, 3, 0, False, 2)]


def cells():
    return [pytest.param(c, id=str(c), marks=[] if c in FEW else [pytest.mark.soak]) for c in CELLS]


def train(folder: str, cell: Cell, rank: int, port: int, failpoint: str | None) -> None:
    """What a rank does. Everything it replays after a kill has to have the golden run's bits."""
    multiprocessing.set_start_method(None, force=True)  # the loader's workers start as they would anywhere
    torch.set_num_threads(1)
    out = os.open(f"{folder}/output-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if failpoint is not None and rank == 0:  # it alone saves
        os.environ["TRAINLOOP_FAILPOINT"] = failpoint
    if cell.ranks > 1:
        timeout = timedelta(seconds=20)
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)  # a rank killed before it joins
        dist.init_process_group("gloo", store=store, rank=rank, world_size=cell.ranks, timeout=timeout)
    torch.manual_seed(0)

    def engine(name: str, every: int) -> trainloop.Engine:
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        made = trainloop.DDPEngine if cell.ranks > 1 else trainloop.LocalEngine
        return made(name, net, optimizer, scheduler=scheduler, every=every, precision="fp16")

    x = torch.randn(72, 4, generator=torch.Generator().manual_seed(3))
    data = TensorDataset(x, x.sum(1, keepdim=True))
    sampler = DistributedSampler(data, cell.ranks, rank) if cell.ranks > 1 else None
    loader = DataLoader(data, 3, shuffle=sampler is None, sampler=sampler, num_workers=cell.workers)

    def feeder(e, batch, ctx):
        time.sleep(0.005)
        return trainloop.StepOutput((e.module(batch[0]) - batch[1]).square().mean())

    hooks = trainloop.Hooks()
    hooks.attach(trainloop.testing.Recorder(f"{folder}/record-{rank}.jsonl"))

    def begin(event):
        if event.step == 0:  # as if typed at the very start
            for line in ("eval@10", "lr 0.003@15", "lr auto@18"):
                event.trainer.schedule.add(parse(line))

    def obeyed(event):
        with open(f"{folder}/commands-{rank}", "a") as f:
            f.write(f"{event.step} {event.command}\n")

    hooks.on(trainloop.hooks.RunStart, begin)
    hooks.on(trainloop.hooks.CommandRun, obeyed)
    trainer = trainloop.Trainer(
        trainloop.Engines([engine("a", 1), engine("b", 2)][: cell.engines]),
        loader,
        feeder,
        until=UNTIL,
        accumulate=cell.accumulate,
        checkpoints=trainloop.CheckpointStore(f"{folder}/ckpt"),
        save_every=3,
        log_dir=folder,
        evaluate=lambda t: {"e": float(t.step)},
        eval_every=4,
        hooks=hooks,
        seed=5,
        commands=False,
        progress=False,
        async_save=cell.asynchronous,
    )
    code = trainer.run().exit_code
    os._exit(code)


class Run:
    """Starts all ranks of a cell as processes of their own."""

    def __init__(self, folder: Path, cell: Cell, by_value) -> None:
        folder.mkdir()
        self.folder, self.cell, self._by_value = folder, cell, by_value
        self._saved = False

    def start(self, *, after: float | None = None, failpoint: str | None = None) -> list[int]:
        """Run to the end, the target killed after so many seconds; the exit codes of the ranks."""
        context = multiprocessing.get_context("forkserver")
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        processes = []
        for rank in range(self.cell.ranks):
            work = partial(train, str(self.folder), self.cell, rank, store.port, failpoint)
            processes.append(context.Process(target=self._by_value(work)))
            processes[-1].start()
        if after is not None:
            processes[self.cell.target].join(after)
            if processes[self.cell.target].is_alive():
                os.kill(processes[self.cell.target].pid, signal.SIGKILL)
        end = time.monotonic() + 100
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                for p in processes:
                    p.kill()
                pytest.fail(f"{self.cell}: a rank hangs\n{self.said()}")
        return [p.exitcode for p in processes]

    def check(self) -> None:
        """Once there was a complete checkpoint there always is one."""
        found = trainloop.CheckpointStore(self.folder / "ckpt").newest()
        assert found or not self._saved, "no complete checkpoint any more"
        self._saved = self._saved or found is not None

    def said(self) -> str:
        return "\n".join(p.read_text()[-3000:] for p in sorted(self.folder.glob("output-*")))

    def prove(self, golden: Run) -> int:
        """Compare every step with the golden run's; how many were, repetitions counted."""
        count = 0
        for rank in range(self.cell.ranks):
            count += compare(golden.folder / f"record-{rank}.jsonl", self.folder / f"record-{rank}.jsonl")
            said = (self.folder / f"commands-{rank}").read_text().splitlines()
            assert set(said) == {"10 eval@10", "15 lr 0.003@15", "18 lr auto@18"}
        rows: dict[tuple[str, int], dict] = {}
        for line in (self.folder / "metrics.jsonl").read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn where it was killed
            row = {k: v for k, v in row.items() if k not in ("seconds", "elapsed")}
            assert rows.setdefault((row["kind"], row["step"]), row) == row
        last = [trainloop.CheckpointStore(r.folder / "ckpt") for r in (self, golden)]
        for name in ("a", "b")[: self.cell.engines]:
            a, b = (s.read_module(s.open(UNTIL), name) for s in last)
            assert all(torch.equal(a[k], b[k]) for k in a)
        return count


@pytest.fixture
def by_value(server):
    import cloudpickle

    conftest = next(m for n, m in sys.modules.items() if n.endswith("conftest") and hasattr(m, "_ByValue"))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return conftest._ByValue


@pytest.mark.parametrize("cell", cells())
def test_killed_at_random_moments_and_at_every_failpoint(tmp_path, by_value, cell):
    golden = Run(tmp_path / "golden", replace(cell, asynchronous=False, workers=0), by_value)
    begin = time.monotonic()
    assert set(golden.start()) == {0}, golden.said()
    whole = time.monotonic() - begin
    draw = random.Random(str(cell))
    steps = kills = 0
    while kills < KILLS:
        victim = Run(tmp_path / f"kills-{kills}", cell, by_value)
        while kills < KILLS and -signal.SIGKILL in (codes := victim.start(after=draw.uniform(0.02, 0.6) * whole)):
            kills += 1
            victim.check()
        assert set(codes) <= {0, 1, -signal.SIGKILL}, victim.said()
        assert set(victim.start()) == {0}, victim.said()
        steps += victim.prove(golden)
    victim = Run(tmp_path / "failpoints", cell, by_value)
    points = [p for p in FAILPOINTS if p != "mid_async_save" or cell.asynchronous]
    for point in points:
        assert -signal.SIGKILL in victim.start(failpoint=point), victim.said()
        victim.check()
    assert set(victim.start()) == {0}, victim.said()
    steps += victim.prove(golden)
    line = f"{cell}: {kills} random kills, {len(points)} failpoints; {steps} recorded steps equal the golden run's"
    print(line)
    if "TRAINLOOP_SOAK_LOG" in os.environ:
        with open(os.environ["TRAINLOOP_SOAK_LOG"], "a") as f:
            f.write(line + "\n")
