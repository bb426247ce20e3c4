"""Datasets of files, streams and a hub on loopback; loaders that go on in the middle of an epoch."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trainloop
from torch.utils.data import BatchSampler, RandomSampler
from trainloop.hooks import Hooks, RunFailed
from trainloop.hooks.dataset import DatasetError, DatasetLoader, StreamLoader, open_dataset

datasets = pytest.importorskip("datasets")
HubServer = runpy.run_path(str(Path(__file__).with_name("hub_server.py")))["HubServer"]
ROWS = 10  # in each of three files


@pytest.fixture(scope="module", autouse=True)
def quiet_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        datasets.disable_progress_bars()
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for i in range(3):
        rows = [json.dumps({"id": i * ROWS + j, "x": [float(j)] * (1 + j % 4)}) + "\n" for j in range(ROWS)]
        (folder / f"train-{i}.jsonl").write_text("".join(rows))
    (folder / "test.jsonl").write_text('{"id": 99, "x": [0.5]}\n')
    return folder


class Buckets:
    """Rows of like length together, in an order of each epoch's own; with neither length nor size of batch."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.epoch = lengths, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        batches = []
        for length in sorted(set(self.lengths)):
            rows = [i for i, n in enumerate(self.lengths) if n == length]
            batches += [rows[i : i + 4] for i in range(0, len(rows), 4)]
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(self.epoch))
        return iter([batches[i] for i in order])


class Stateful:
    """A batch sampler whose epochs follow from the one before, and that says where it is."""

    def __init__(self, rows: int) -> None:
        self.rows, self.generator = rows, torch.Generator().manual_seed(0)

    def __iter__(self):
        return iter(torch.randperm(self.rows, generator=self.generator).reshape(-1, 5).tolist())

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])


def ids(batches) -> list[list[int]]:
    return [b["id"].tolist() for b in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def no_x(row):
    return {"id": row["id"]}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_a_file_and_a_choice_of_files(folder, streaming):
    def found(where, **kwargs):
        return [row["id"] for row in open_dataset(where, streaming=streaming, **kwargs)]

    assert found(folder) == list(range(30))
    assert found(folder, split="test") == [99]
    assert found(str(folder / "train-1.jsonl")) == list(range(10, 20))
    assert found(folder, files=["train-2.jsonl", "test.jsonl"]) == [*range(20, 30), 99]
    seen = []
    assert found(folder, on_file=lambda file: seen.append(Path(file).name) or not file.endswith("0.jsonl")) == list(
        range(10, 30)
    )
    assert seen == ["train-0.jsonl", "train-1.jsonl", "train-2.jsonl"]
    if not streaming:
        assert found(folder, split="train[:5]") == list(range(5))


def test_what_cannot_be_opened(folder, tmp_path):
    (tmp_path / "a.weird").write_text("?")
    for where, kwargs, words in [
        (tmp_path / "a.weird", {}, r"a\.weird.* with any supported extension .*\.csv"),
        (tmp_path / "gone", {}, "is not there"),
        (folder, {"split": "valid"}, 'Unknown split "valid". Should be one of'),
        (folder, {"split": "valid", "on_file": print}, "has no split 'valid'; there are "),
        (folder, {"on_file": lambda file: False}, "on_file left none of the 3 files"),
        (folder, {"files": "*.csv"}, "No .*data files found"),
    ]:
        with pytest.raises(DatasetError, match=words):
            open_dataset(where, **kwargs)


def test_rows_and_batches_go_through_their_callbacks(folder):
    table, stream = open_dataset(folder), open_dataset(folder, streaming=True)
    made = [
        DatasetLoader(table, batch_size=4, on_row=no_x, on_batch=lambda b: {**b, "n": len(b["id"])}),
        DatasetLoader(table, batch_size=4, on_row=no_x, on_batch=lambda b: {**b, "n": len(b["id"])}, num_workers=2),
        StreamLoader(stream, 4, on_row=no_x, on_batch=lambda b: {**b, "n": len(b["id"])}),
    ]
    for loader in made:
        batches = list(loader)
        assert flat(ids(batches)) == list(range(30))
        assert [b["n"] for b in batches] == [4] * 7 + [2]
        assert set(batches[0]) == {"id", "n"}
    assert ids(StreamLoader(stream, 4, on_row=no_x, drop_last=True))[-1] == [24, 25, 26, 27]
    assert [len(x) for x in DatasetLoader(table, batch_size=20, collate=lambda rows: [r["x"] for r in rows])] == [
        20,
        10,
    ]
    with pytest.raises(ValueError, match="on_row returned None"):
        next(iter(DatasetLoader(table, batch_size=4, on_row=lambda row: None)))
    with pytest.raises(ValueError, match="not both"):
        DatasetLoader(table)
    with pytest.raises(ValueError, match="own matter"):
        DatasetLoader(table, batch_sampler=[[0]], shuffle=True)
    with pytest.raises(ValueError, match="1 or more"):
        StreamLoader(stream, 0)


LOADERS = {
    "in order": lambda f: DatasetLoader(open_dataset(f), batch_size=4, on_row=no_x),
    "shuffled": lambda f: DatasetLoader(open_dataset(f), batch_size=4, shuffle=True, on_row=no_x),
    "workers": lambda f: DatasetLoader(open_dataset(f), batch_size=4, shuffle=True, on_row=no_x, num_workers=1),
    "buckets": lambda f: DatasetLoader(
        open_dataset(f), batch_sampler=Buckets([1 + i % 4 for i in range(30)]), on_row=no_x
    ),
    "stateful": lambda f: DatasetLoader(open_dataset(f), batch_sampler=Stateful(30), on_row=no_x),
    "stream": lambda f: StreamLoader(open_dataset(f, streaming=True), 4, on_row=no_x),
    "seeking stream": lambda f: StreamLoader(open_dataset(f, streaming=True), 4, on_row=no_x, seek=True),
    "filtered stream": lambda f: StreamLoader(
        open_dataset(f, streaming=True).filter(lambda r: r["id"] % 3), 4, on_row=no_x
    ),
    "shuffled stream": lambda f: StreamLoader(
        open_dataset(f, streaming=True).shuffle(seed=1, buffer_size=7), 4, on_row=no_x
    ),
    "a rank's stream": lambda f: StreamLoader(open_dataset(f, streaming=True), 4, on_row=no_x, rank=1, world_size=2),
}


SEEKS = int(datasets.__version__.partition(".")[0]) >= 5  # also through map and filter
if SEEKS:
    LOADERS["seeking filtered stream"] = lambda f: StreamLoader(
        open_dataset(f, streaming=True).filter(lambda r: r["id"] % 3), 4, on_row=no_x, seek=True
    )


@pytest.mark.parametrize("kind", LOADERS)
def test_resumed_anywhere_equals_uninterrupted(folder, tmp_path, kind):
    """Through `Trainer`, which saves the position with `torch.save` and the random state: two epochs and a half."""

    def run(where, until):
        seen = []

        def feeder(engine, batch, ctx):
            seen.append((batch["id"].tolist(), torch.rand(()).item()))
            return trainloop.StepOutput(engine.module(batch["id"].float()[:, None]).square().mean() * 1e-6)

        net = torch.nn.Linear(1, 1)
        hooks, loader = Hooks(), LOADERS[kind](folder)
        hooks.attach(loader)
        trainloop.Trainer(
            trainloop.Engines([trainloop.LocalEngine("n", net, torch.optim.SGD(net.parameters(), 1e-6))]),
            loader,
            feeder,
            until=until,
            checkpoints=trainloop.CheckpointStore(tmp_path / where),
            hooks=hooks,
            commands=False,
            progress=False,
            seed=3,
        ).run()
        return seen

    whole = run("whole", 17)
    stops = (3, 8, 9, 12, 17)
    assert [x for stop in stops for x in run("parts", stop)] == whole


def test_a_resumed_epoch_reads_no_row_again(folder):
    read = []
    make = lambda: DatasetLoader(open_dataset(folder), batch_size=4, on_row=lambda r: read.append(r["id"]) or no_x(r))  # noqa: E731
    loader, again = make(), make()
    epoch = iter(loader)
    first = ids([next(epoch), next(epoch)])
    state = loader.state_dict()
    assert len(loader) == 8
    again.load_state_dict(state)
    read.clear()
    rest = ids(again)
    assert flat(first + rest) == list(range(30))
    assert read == list(range(8, 30))
    assert again.state_dict()["epoch"] == 1
    assert next(epoch)["id"].tolist() == rest[0]
    loader.close()
    assert list(epoch) == []
    assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (0, 3)  # closed, and known still
    short = DatasetLoader(open_dataset(folder, split="test"), batch_size=4)
    short.load_state_dict(state)
    with pytest.raises(RuntimeError, match="gives 1 batches, and 2 were handed out"):
        iter(short)


def test_a_seeking_stream_reads_no_row_again(folder):
    read = []

    def make(seek):
        stream = open_dataset(folder, streaming=True).map(lambda row: read.append(row["id"]) or row)
        return StreamLoader(stream, 4, on_row=no_x, seek=seek)

    for seek, expected in ((True, 8), (False, 0))[not SEEKS :]:
        loader, again = make(seek), make(seek)
        epoch = iter(loader)
        first = [next(epoch), next(epoch)]
        again.load_state_dict(loader.state_dict())
        read.clear()
        assert flat(ids([*first, *again])) == list(range(30))
        assert read[0] == expected


def test_ranks_share_the_batches(folder):
    whole = ids(DatasetLoader(open_dataset(folder), batch_size=4, on_row=no_x))
    parts = [DatasetLoader(open_dataset(folder), batch_size=4, on_row=no_x, rank=r, world_size=3) for r in range(3)]
    assert [len(p) for p in parts] == [3, 3, 2]
    assert [ids(p) for p in parts] == [whole[r::3] for r in range(3)]
    streams = [
        StreamLoader(open_dataset(folder, streaming=True), 4, on_row=no_x, rank=r, world_size=3) for r in range(3)
    ]
    assert sorted(flat(flat(ids(s)) for s in streams)) == list(range(30))


def test_an_early_stop_closes_what_is_open(make_engine, tmp_path):
    state = []

    def rows():
        state.append("open")
        try:
            for i in range(100):
                yield {"x": [1.0, 2.0, 3.0, 4.0], "y": [float(i)]}
        finally:
            state.append("closed")

    def failing(engine, batch, ctx):
        if len(state) == 1 and ctx.step == 2:
            raise KeyError("early")
        return trainloop.StepOutput(engine.module(torch.stack(batch["x"], 1).float()).mean())

    loader = StreamLoader(datasets.IterableDataset.from_generator(rows), 4)
    hooks, said = Hooks(), []
    hooks.attach(loader)
    hooks.on(RunFailed, lambda e: said.append(list(state)), order=1)
    with pytest.raises(KeyError, match="early") as e:
        trainloop.Trainer(
            trainloop.Engines([make_engine()]), loader, failing, until=9, hooks=hooks, commands=False, progress=False
        ).run()
    assert said == [["open", "closed"]]
    del e
    for i, _ in enumerate(loader):
        if i == 1:
            break
    assert state[2:] == ["open"]
    loader.close()
    assert state[2:] == ["open", "closed"]


def test_a_repository_of_the_hub(folder, tmp_path):
    from trainloop.hooks.hub import DownloadError, Hub

    server = HubServer()
    server.add("org/rows", folder, kind="dataset")
    hub = Hub(server.endpoint, tmp_path / "cache")
    table = open_dataset("org/rows", hub=hub)
    assert table["id"] == list(range(30))
    assert len({name for name, _ in server.gets}) == 4
    with pytest.raises(DownloadError, match="no repository org/none"):
        open_dataset("org/none", hub=hub)
    with pytest.raises(DatasetError, match="a stream comes from the hub of HF_ENDPOINT"):
        open_dataset("org/rows", hub=hub, streaming=True)
    script = """
from trainloop.hooks.dataset import StreamLoader, open_dataset
files = []
stream = open_dataset("org/rows", streaming=True, on_file=lambda f: files.append(f))
for batch in StreamLoader(stream, 12, on_row=lambda row: {"id": row["id"]}):
    print(batch["id"].tolist())
print(len(files))
"""
    environ = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ)
    assert out.returncode == 0, out.stderr
    printed = [json.loads(line) for line in out.stdout.splitlines()]
    assert printed == [list(range(12)), list(range(12, 24)), list(range(24, 30)), 3]
    server.close()


def test_accelerate_deals_the_batches_of_one_rank_to_two(ranks, folder, tmp_path):
    pytest.importorskip("accelerate")

    def loaders():
        table = open_dataset(folder, cache_dir=str(tmp_path))
        buckets = Buckets([1 + i % 4 for i in range(len(table))])
        for sampler in (buckets, BatchSampler(RandomSampler(table), 4, False)):
            torch.manual_seed(0)
            yield DatasetLoader(table, batch_sampler=sampler, on_row=no_x, on_batch=lambda b: {**b, "n": len(b["id"])})

    whole = [ids(loader) for loader in loaders()]

    def on_rank(rank):
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration

        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=False))
        dealt = [list(accelerator.prepare(loader)) for loader in loaders()]
        assert all(len(b["id"]) == b["n"] for batches in dealt for b in batches)
        return [ids(batches) for batches in dealt]

    first, second = ranks(on_rank)
    for one, a, b in zip(whole, first, second, strict=True):
        assert sorted(flat(a) + flat(b)) == list(range(30))  # no row twice, none left out
        assert sorted(map(len, a + b)) == sorted(map(len, one))
    assert [first[0], second[0]] == [whole[0][0::2], whole[0][1::2]]
