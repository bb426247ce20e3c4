"""Full disks, read-only folders, FIFOs, the launcher's death, memory that runs out: nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
import trainloop
from trainloop.console import Console
from trainloop.testing import Victim


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_loses_nothing(make_trainer, tiny_disk, capsys):
    checkpoints = trainloop.CheckpointStore(tiny_disk / "ckpt", keep_last=2)
    make_trainer(until=3, checkpoints=checkpoints).run()
    filler = tiny_disk / "filler"
    with filler.open("wb", buffering=0) as f, contextlib.suppress(OSError):
        while f.write(b"0" * 512):
            pass
    with pytest.raises(trainloop.CheckpointError, match="saving step 6"):
        make_trainer(until=6, save_every=2, checkpoints=checkpoints).run()
    assert "step 4 was not saved, training goes on" in capsys.readouterr().err
    assert checkpoints.newest().step == 3
    filler.unlink()
    assert make_trainer(until=6, checkpoints=checkpoints).run().resumed_from == 3
    assert checkpoints.newest().step == 6


def test_a_read_only_file_system_is_said_at_the_start(make_trainer, tiny_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    steps = []
    hooks = trainloop.Hooks()
    hooks.on(trainloop.hooks.StepEnd, lambda e: steps.append(e.step))
    with pytest.raises(trainloop.CheckpointError, match=r"cannot be written .*Read-only"):
        make_trainer(checkpoints=trainloop.CheckpointStore(tiny_disk / "ckpt"), hooks=hooks).run()
    assert steps == []


def test_a_fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    console = Console(stdin=False, control=path)
    for text in ("sa", "ve\nev", "al\n"):  # three writers, each of which closes it
        with path.open("w") as f:
            f.write(text)
    end = time.monotonic() + 10
    lines: list[str] = []
    while len(lines) < 2 and time.monotonic() < end:
        lines += console.take()
        time.sleep(0.02)
    console.close()
    assert lines == ["save", "eval"]


def test_stdin_from_dev_null_and_from_nowhere(make_trainer, monkeypatch):
    with open(os.devnull) as null:
        monkeypatch.setattr(sys, "stdin", null)
        assert make_trainer(commands=True, checkpoints=None).run().step == 12
    monkeypatch.setattr(sys, "stdin", None)
    assert make_trainer(commands=True, checkpoints=None).run().step == 12


def test_a_signal_while_saving_waits_for_the_save(make_trainer, tmp_path):
    """The checkpoint being written is completed, and the run stops after it."""
    fired = []

    def save(obj, path):
        if not fired:
            fired.append(os.kill(os.getpid(), signal.SIGTERM))
            time.sleep(0.05)
        torch.save(obj, path)

    store = trainloop.CheckpointStore(tmp_path / "s", save=save)
    result = make_trainer(checkpoints=store, save_every=4).run()
    assert (result.reason, result.exit_code) == ("signal", 128 + signal.SIGTERM)
    assert store.newest().step == result.step == 5


def test_memory_that_runs_out_in_one_backward_of_two_ends_both_and_the_checkpoint_stands(ranks, tmp_path):
    class Hungry(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise torch.OutOfMemoryError("none left")

    def train(r, hungry, until=8):
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 1)
        engine = trainloop.DDPEngine("net", net, torch.optim.Adam(net.parameters()))
        x = torch.randn(12, 2, 3, 4, generator=torch.Generator().manual_seed(1))

        def feeder(e, batch, ctx):
            loss = e.module(batch[r]).square().mean()
            return trainloop.StepOutput(Hungry.apply(loss) if hungry and ctx.step == 5 and r == 1 else loss)

        trainer = trainloop.Trainer(
            trainloop.Engines([engine]),
            list(x),
            feeder,
            until=until,
            checkpoints=trainloop.CheckpointStore(tmp_path / ("broken" if hungry is not None else "golden")),
            save_every=2,
            commands=False,
            progress=False,
        )
        return trainer.run().resumed_from, net.weight.tolist()

    def fails(r):
        try:
            train(r, True)
        except Exception as e:
            return type(e).__name__
        return "went on"

    names = ranks(fails)
    assert names[1] == "OutOfMemoryInBackward"
    assert names[0] != "went on"
    assert trainloop.CheckpointStore(tmp_path / "broken").newest().step == 4
    golden, resumed = ranks(lambda r: train(r, None)), ranks(lambda r: train(r, False))
    assert [r[0] for r in resumed] == [4, 4]
    assert [r[1] for r in resumed] == [g[1] for g in golden]


LAUNCHED = textwrap.dedent("""
    import sys, time, torch, trainloop, torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    engine = trainloop.build_engine(sys.argv[2], "net", net, lambda m: torch.optim.Adam(m.parameters()))
    def feeder(e, batch, ctx):
        time.sleep(0.05)
        return trainloop.StepOutput(e.module(batch).square().mean())
    x = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(dist.get_rank()))
    result = trainloop.Trainer(
        trainloop.Engines([engine]), list(x), feeder, until=40, save_every=5, seed=0,
        checkpoints=trainloop.CheckpointStore(sys.argv[1]), commands=False, progress=False).run()
    dist.barrier()
    sys.exit(result.exit_code)
""")


@pytest.mark.parametrize("sign", [pytest.param(signal.SIGKILL, marks=pytest.mark.soak), signal.SIGTERM])
@pytest.mark.parametrize("backend", ["ddp", pytest.param("fsdp2", marks=pytest.mark.soak)])
def test_the_launcher_dies(tmp_path, backend, sign):
    """torchrun gone, with what it started or not: what is left ends, and the next start goes on."""
    (tmp_path / "train.py").write_text(LAUNCHED)

    def victim(folder):
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
        script = (str(tmp_path / "train.py"), str(tmp_path / folder), backend)
        return Victim([*launcher, *script], {"OMP_NUM_THREADS": "1"})

    golden, prey = victim("golden"), victim("prey")
    assert golden.start() == 0, golden.output[-1]
    store = trainloop.CheckpointStore(tmp_path / "prey")
    begin = time.monotonic()
    prey.start(after=12.0, sign=sign, group=False)
    assert time.monotonic() - begin < 100
    for _ in range(3):
        if prey.start() == 0:
            break
    assert store.newest().step == 40, prey.output[-1]
    a, b = (s.read_module(s.open(40), "net") for s in (store, trainloop.CheckpointStore(tmp_path / "golden")))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's workers look for their parent every 5 s")
def test_loader_workers_end_with_a_killed_parent(tmp_path):
    """They hold its sockets: while they live the other ranks see no connection close."""
    script = textwrap.dedent("""
        import multiprocessing, os, signal, torch, trainloop
        from torch.utils.data import DataLoader
        net = torch.nn.Linear(4, 1)
        engine = trainloop.LocalEngine("net", net, torch.optim.SGD(net.parameters(), 0.1))
        def feeder(e, batch, ctx):
            if ctx.step == 2:
                print(*(p.pid for p in multiprocessing.active_children()), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return trainloop.StepOutput(e.module(batch).square().mean())
        loader = DataLoader(torch.randn(40, 4), 2, num_workers=2)
        trainloop.Trainer(trainloop.Engines([engine]), loader, feeder, until=9, commands=False, progress=False).run()
    """)
    file = tmp_path / "said"
    with file.open("w") as out:
        run = subprocess.run([sys.executable, "-c", script], stdout=out, timeout=120)
    died = time.monotonic()
    assert run.returncode == -signal.SIGKILL
    workers = [int(w) for w in file.read_text().split()]
    assert len(workers) == 2
    while any(os.path.exists(f"/proc/{w}") for w in workers):
        assert time.monotonic() - died < 3.0, "the workers outlive their parent"
        time.sleep(0.05)
