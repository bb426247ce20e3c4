"""Resuming behind the loaders people use: what counts is what was consumed, not what was fetched ahead."""

import itertools
import json
import socket
import subprocess
import sys
import textwrap
import time

import pytest
import samplers

torch = pytest.importorskip("torch")
from torch.utils.data import DataLoader, Dataset  # noqa: E402


class Echo(Dataset):
    """Item i is i."""

    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        return index


def as_list(batch):
    return list(batch)


COSTS = [1, 2, 3, 4, 2] * 5

BATCHED = {
    "bucket": lambda **kw: samplers.BucketSampler(COSTS, max_cost=8, window=9, seed=2, **kw),
    "ordered": lambda **kw: samplers.BatchedOrderedSampler(COSTS, max_cost=8, **kw),
}


def batches(loader, epochs):
    return [batch for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize("kind", BATCHED)
@pytest.mark.parametrize("workers", [0, 1, 2, pytest.param(4, marks=pytest.mark.soak)])
def test_state_at_under_a_plain_loader_at_every_position(kind, workers):
    """Any number of workers fetches ahead; `state_at(consumed)` does not care."""
    whole = BATCHED[kind]()
    per_epoch = len(whole)
    expected = [*whole, *whole]
    for consumed in range(0, per_epoch + 1, 1 if workers == 0 else 4):
        first = BATCHED[kind]()
        loader = DataLoader(Echo(), batch_sampler=first, num_workers=workers, collate_fn=as_list)
        seen = list(itertools.islice(iter(loader), consumed))
        state = json.loads(json.dumps(first.state_at(consumed)))
        second = BATCHED[kind]()
        second.load_state_dict(state)
        rest = DataLoader(Echo(), batch_sampler=second, num_workers=workers, collate_fn=as_list)
        resumed = seen + batches(rest, 1)
        assert resumed == expected[: per_epoch if consumed < per_epoch else None]


def test_what_was_yielded_is_ahead_of_what_was_consumed():
    """The control for the test above: with workers, the sampler's own position is not the training's."""
    sampler = BATCHED["bucket"]()
    loader = iter(DataLoader(Echo(), batch_sampler=sampler, num_workers=2, collate_fn=as_list))
    next(loader)
    assert sampler.state_dict() != sampler.state_at(1)
    assert sampler.consumed > 1


def test_epoch_and_state_at_stay_put_while_a_loader_fetches_to_the_end():
    sampler = samplers.BucketSampler([1.0] * 8, max_size=4, seed=1)  # two batches, both fetched at once
    loader = iter(DataLoader(Echo(), batch_sampler=sampler, num_workers=2, collate_fn=as_list))
    next(loader)
    assert sampler.epoch == 0
    assert sampler.state_at(1)["epoch"] == 0
    assert sampler.state_at(2)["epoch"] == 1


def test_single_indices_as_sampler_of_a_plain_loader():
    def build():
        return samplers.RandomSampler(20, seed=4)

    whole = build()
    expected = batches(DataLoader(Echo(), sampler=whole, batch_size=4, collate_fn=as_list), 2)
    assert sorted(itertools.chain(*expected[:5])) == list(range(20))
    first = build()
    loader = DataLoader(Echo(), sampler=first, batch_size=4, num_workers=2, collate_fn=as_list)
    seen = list(itertools.islice(iter(loader), 3))
    second = build()
    second.load_state_dict(first.state_at(3 * 4))
    resumed = seen + batches(DataLoader(Echo(), sampler=second, batch_size=4, collate_fn=as_list), 2)
    assert resumed == expected


class TestStatefulDataLoader:
    """torchdata keeps the sampler's state itself, at the position consumed."""

    @pytest.fixture(autouse=True)
    def _torchdata(self):
        module = pytest.importorskip("torchdata.stateful_dataloader")
        self.loader = module.StatefulDataLoader

    def batched(self, kind, workers):
        return self.loader(Echo(), batch_sampler=BATCHED[kind](), num_workers=workers, collate_fn=as_list)

    def single(self, workers):
        sampler = samplers.RandomSampler(20, seed=4)
        return self.loader(Echo(), sampler=sampler, batch_size=4, num_workers=workers, collate_fn=as_list)

    def check(self, build, positions):
        expected = batches(build(), 3)
        for consumed in positions:
            first = build()
            seen = list(itertools.islice(iter(first), consumed))
            state = first.state_dict()
            second = build()
            second.load_state_dict(state)
            resumed = seen + list(second)
            assert resumed == expected[: len(resumed)]
            if consumed:
                again = build()  # and once more, from the resumed one
                again.load_state_dict(state)
                iterator = iter(again)
                more = [next(iterator)]
                third = build()
                third.load_state_dict(again.state_dict())
                resumed = seen + more + list(third)
                assert resumed == expected[: len(resumed)]

    @pytest.mark.parametrize("kind", BATCHED)
    @pytest.mark.parametrize("workers", [0, 2, pytest.param(1, marks=pytest.mark.soak)])
    def test_batches(self, kind, workers):
        length = len(BATCHED[kind]())
        self.check(lambda: self.batched(kind, workers), range(1, length + 1, 1 if workers == 0 else 5))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_single_indices(self, workers):
        self.check(lambda: self.single(workers), range(1, 6))

    def test_ten_million_resume_at_once(self):
        def build():
            sampler = samplers.RandomSampler(10**7, seed=1)
            return self.loader(Echo(), sampler=sampler, batch_size=1000, collate_fn=as_list)

        first = build()
        iterator = iter(first)
        for _ in range(3):
            next(iterator)
        state = first.state_dict()
        expected = next(iterator)
        second = build()
        began = time.process_time()
        second.load_state_dict(state)
        found = next(iter(second))
        assert time.process_time() - began < 0.2
        assert found == expected


ACCELERATE = """
import json, sys
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
import samplers

costs = [1, 2, 3, 4, 2] * 5
accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=False))
sampler = samplers.BucketSampler(
    costs, max_cost=8, window=9, seed=2, rank=None, world_size=accelerator.num_processes
)
loader = DataLoader(list(range(len(costs))), batch_sampler=sampler, collate_fn=torch.tensor)
loader = accelerator.prepare(loader)
seen = []
for epoch in range(2):
    for batch in loader:
        seen.append(batch.tolist())
        accelerator.reduce(torch.ones(1))  # hangs if a rank has more batches than the other
gathered = [None] * accelerator.num_processes
torch.distributed.all_gather_object(gathered, seen)
if accelerator.is_main_process:
    print(json.dumps(gathered))
accelerator.end_training()
"""


def test_accelerate_on_two_ranks_gives_the_same_batches_without_repeats(tmp_path):
    pytest.importorskip("accelerate")
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(ACCELERATE))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))
    for rank in (0, 1):
        own = samplers.BucketSampler(COSTS, max_cost=8, window=9, seed=2, rank=rank, world_size=2)
        assert found[rank] == list(own) + list(own)
    half = len(found[0]) // 2
    together = [i for rank in found for batch in rank[:half] for i in batch]
    assert sorted(together) == list(range(len(COSTS)))
