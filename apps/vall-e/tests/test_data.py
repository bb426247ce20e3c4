import dataclasses
import io
import pickle
import socket
import subprocess
import sys

import h5py
import numpy as np
import pytest
import stateio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers import GroupBalancedSampler, RandomSampler
from vall_e.cli import data as cli
from vall_e.codecs.load import published
from vall_e.config import Config, Dataset
from vall_e.data.batches import Loader, TrainingSet
from vall_e.data.enc import read_enc
from vall_e.data.folder import FolderDataset
from vall_e.data.open import DatasetOf
from vall_e.data.order import CutBatches, batch_sampler
from vall_e.data.shards import find_shards, parse_shard, write_index
from vall_e.data.similar import most_similar
from vall_e.data.store import CodecInfo, DatasetError, DatasetFile, Utterance, write_dataset
from vall_e.data.tasks import PromptRules, Prompts, Tasks
from vall_e.model.spec import ModelSpec
from vall_e.tokenizer import NaiveTokenizer
from vall_e.training import Training

CODEC = CodecInfo("melvq", "x", 2, 8, 10.0)


def utterances(speakers=3, each=6, seed=0):
    rng = np.random.default_rng(seed)
    for s in range(speakers):
        for i in range(each):
            frames = int(rng.integers(5, 40))
            yield Utterance(
                f"training/g/s{s}/u{i}",
                rng.integers(0, 8, (frames, 2)),
                np.array([1, 40, 2]),
                "a",
                "a",
                "en",
                frames / 10,
            )


@pytest.fixture
def file(tmp_path):
    write_dataset(tmp_path / "data.h5", utterances(), NaiveTokenizer({"<s>": 1, "</s>": 2, " ": 3, "a": 40}), CODEC)
    return DatasetFile(tmp_path / "data.h5")


def test_existing_datasets_read_alike_from_hdf5_and_from_files(golden):
    file = DatasetFile(golden / "dataset/data.h5")
    folder = FolderDataset(golden / "dataset/data", golden / "dataset/metadata", published("encodec"))
    (entry,) = folder.entries("training", ["G1/s1"])
    assert file.entries("training", ["G1/s1"])[0].key == entry.key
    a, b = file.read(entry.key), folder.read(entry.key)
    assert a.codes.shape == b.codes.shape == (225, 8)
    assert a.phonemes == b.phonemes == "həlˈoʊ wˈɜːld"
    assert a.phone_ids.tolist() == b.phone_ids.tolist()
    with h5py.File(golden / "dataset/data.h5") as f:
        assert f["training/G1/s1/utt0/text"][()].tolist() == a.phone_ids.tolist()


def write_sft(folder, u: Utterance) -> None:
    """One utterance in the layout of a folder dataset."""
    _, group, speaker, name = u.key.split("/", 3)
    (folder / group / speaker).mkdir(parents=True, exist_ok=True)
    about = {"original_length": round(u.duration * 24000), "sample_rate": 24000, "phonemes": u.phonemes}
    codes = torch.from_numpy(u.codes.astype(np.int16))
    stateio.save({"codes": codes, "metadata": about}, folder / group / speaker / f"{name}.sft")


def test_a_folder_of_tensors_is_read(tmp_path, file):
    entry = file.entries("training", ["*/*"])[0]
    write_sft(tmp_path / "data", file.read(entry.key))
    folder = FolderDataset(tmp_path / "data", None, CODEC)
    (found,) = folder.entries("training", ["g/s0"])
    assert found.frames == entry.frames
    np.testing.assert_array_equal(folder.read(found.key).codes, file.read(entry.key).codes)


def unread(dataset, monkeypatch):
    """The same dataset, whose index cannot be read from its files any more."""
    monkeypatch.setattr(type(dataset), "_rows", lambda *_: pytest.fail("read again"))
    return dataset


def test_what_a_file_holds_is_remembered_until_it_changes(tmp_path, file, monkeypatch):
    rows, everything = list(utterances()), ["*/*"]

    def opened():
        return DatasetFile(tmp_path / "data.h5", index=tmp_path / "index")

    whole = file.entries("training", everything)
    assert opened().entries("training", everything) == whole
    with monkeypatch.context() as m:
        assert unread(opened(), m).entries("training", everything) == whole
    assert opened().entries("training", ["g/s1"]) == [e for e in whole if e.speaker == "g/s1"]
    for damaged in (tmp_path / "index").iterdir():
        damaged.write_text("{")
    assert opened().entries("training", everything) == whole
    write_dataset(tmp_path / "data.h5", rows[:4], NaiveTokenizer(), CODEC)
    assert [e.key for e in opened().entries("training", everything)] == [u.key for u in rows[:4]]

    # A part of a divided preparation, which the file only links to.
    part = tmp_path / "data.1-of-1.h5"
    write_dataset(part, rows[:4], NaiveTokenizer(), CODEC)
    write_index(tmp_path / "data.h5", [part])
    before = opened().entries("training", everything)
    changed = [dataclasses.replace(u, duration=u.duration + 1) for u in rows[:4]]
    write_dataset(part, changed, NaiveTokenizer(), CODEC)
    after = opened().entries("training", everything)
    assert [e.duration for e in after] == [e.duration + 1 for e in before]


def test_what_a_folder_holds_is_remembered_until_it_changes(tmp_path, monkeypatch):
    rows = list(utterances(speakers=1))

    def entries():
        dataset = FolderDataset(tmp_path / "data", tmp_path / "metadata", CODEC, index=tmp_path / "index")
        return dataset.entries("training", ["*/*"])

    for u in rows[:2]:
        write_sft(tmp_path / "data", u)
    first = entries()
    with monkeypatch.context() as m:
        m.setattr(FolderDataset, "_rows", lambda *_: pytest.fail("read again"))
        assert entries() == first
    write_sft(tmp_path / "data", rows[2])
    assert len(entries()) == 3
    write_sft(tmp_path / "data", dataclasses.replace(rows[3], key=rows[0].key))  # overwritten in place
    assert entries()[0].frames == len(rows[3].codes)
    (tmp_path / "metadata/g").mkdir(parents=True)
    (tmp_path / "metadata/g/s0.json").write_text('{"u1": {"duration": 9.5, "similar": ["u2"]}}')
    assert [(e.frames, e.similar) for e in entries()][1] == (95, ("u2",))


def test_prompts_come_from_utterances_that_sound_alike(fresh, run):
    asked = ["dataset.prompt_similar_p=1", "dataset.prompt_similar_top_k=2"]
    cfg = Config.from_yaml(fresh / "config.yaml", overrides=asked)
    with pytest.raises(ValueError, match="no utterance is known to be like another"):
        Training(cfg, commands=False)
    assert run("data", "metadata", "--yaml", "config.yaml", cwd=fresh)[0] == 0
    prompts = Training(cfg, commands=False).evaluator.prompts
    rng = np.random.default_rng(0)
    for entry in DatasetOf(cfg).splits["subtrain"][:20]:
        training = {e.key.rpartition("/")[2] for e in prompts._of_speaker[entry.speaker]}
        near = set(entry.similar[:2]) & training
        drawn = {prompts.other(entry, rng).key.rpartition("/")[2] for _ in range(20)}
        assert drawn == near or not near


class Runs:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_pickle_that_would_run_code_does_not(tmp_path, capsys):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|O", "fortran_order": False, "shape": ()})
    pickle.dump({"codes": Runs(), "metadata": {}}, out)
    (tmp_path / "bad.enc").write_bytes(out.getvalue())
    with pytest.raises(DatasetError, match=r"bad.enc: not a readable .enc file: it refers to builtins.print"):
        read_enc(tmp_path / "bad.enc")
    assert "must not run" not in capsys.readouterr().out


def test_every_truncation_of_an_enc_file_is_one_error(golden, tmp_path):
    whole = (golden / "dataset/data/G1/s1/utt0.enc").read_bytes()
    for length in [*range(0, 300, 7), *range(300, len(whole), 97)]:
        (tmp_path / "cut.enc").write_bytes(whole[:length])
        with pytest.raises(DatasetError, match=r"cut.enc"):
            read_enc(tmp_path / "cut.enc")


def write_enc(path, pickled: bytes) -> None:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|O", "fortran_order": False, "shape": ()})
    path.write_bytes(out.getvalue() + pickled)


@pytest.mark.parametrize(
    "pickled",
    [
        # A string, and an array, of more bytes than any memory has.
        b"\x80\x04\x8d" + (2**62).to_bytes(8, "little"),
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L4611686018427387904L\ntS'b'\ntR.",
        b"cnumpy\nndarray\n(I99999999999999\ntR.",
        b"\x80\x02}(X\x05\x00\x00\x00codescnumpy\nndarray\n((I1\nI8\nI100000000\ntcnumpy\ndtype\n(S'i2'\ntRtRu.",
    ],
)
def test_an_enc_file_that_asks_for_all_memory_is_one_error(tmp_path, pickled):
    write_enc(tmp_path / "huge.enc", pickled)
    with pytest.raises(DatasetError, match=r"huge.enc: not a readable .enc file: \w+"):
        read_enc(tmp_path / "huge.enc")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.full((1, 2, 30), 8), "codes 8 to 8, expected 0 to 7"),
        (np.full((1, 2, 30), -1), "codes -1 to -1, expected 0 to 7"),
        (np.zeros((1, 3, 30), int), r"up to 2 levels \(melvq\), found \[30, 3\]"),
        (np.zeros((40, 2), int), r"found int64 \[40, 2\]"),
    ],
)
def test_codes_that_no_codec_made_are_refused(tmp_path, codes, message):
    path = tmp_path / "data/g/s/u.enc"
    path.parent.mkdir(parents=True)
    write_enc(path, pickle.dumps({"codes": codes, "metadata": {"phonemes": "a"}}))
    with pytest.raises(DatasetError, match=f"u.enc: .*{message}"):
        FolderDataset(tmp_path / "data", None, CODEC).read("training/g/s/u")


def test_codes_without_a_batch_are_levels_first_too(tmp_path):
    codes = np.arange(16).reshape(2, 8) % 8
    for name, written in (("a", codes), ("b", codes[None])):
        write_enc(tmp_path / f"{name}.enc", pickle.dumps({"codes": written, "metadata": {}}))
        np.testing.assert_array_equal(read_enc(tmp_path / f"{name}.enc")[0], codes.T)


@pytest.mark.parametrize("length", [0, 100, 2000, 5000])
def test_a_truncated_dataset_is_named(file, tmp_path, length):
    data = (tmp_path / "data.h5").read_bytes()
    file.close()
    (tmp_path / "cut.h5").write_bytes(data[: min(length, len(data) - 1)])
    with pytest.raises(DatasetError, match=r"cut.h5"):
        DatasetFile(tmp_path / "cut.h5").entries("training", ["*/*"])


@given(
    costs=st.lists(st.integers(1, 30), min_size=6, max_size=60),
    size=st.integers(1, 6),
    budget=st.none() | st.integers(30, 90),
    world=st.integers(1, 3),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_batches_cut_from_an_order_keep_their_limits_and_repeat_nothing(costs, size, budget, world, seed):
    def sampler(rank):
        items = RandomSampler(len(costs), seed)
        return CutBatches(items, costs, max_size=size, max_cost=budget, rank=rank, world_size=world)

    try:
        ranks = [list(sampler(r)) for r in range(world)]
    except ValueError:
        return  # fewer batches than ranks, which it says
    assert len({len(r) for r in ranks}) == 1
    flat = [i for rank in ranks for batch in rank for i in batch]
    assert len(flat) == len(set(flat))
    for batch in (b for r in ranks for b in r):
        assert len(batch) <= size
        assert budget is None or max(costs[i] for i in batch) * len(batch) <= budget
    # Resumed at any step, on any number of ranks: the rest, and nothing else.
    for step in range(len(ranks[0]) + 1):
        state = sampler(0).state_at(step)
        if state["epoch"]:
            continue
        one = CutBatches(RandomSampler(len(costs), seed), costs, max_size=size, max_cost=budget)
        one.load_state_dict(state)
        rest = [b for k in range(step, len(ranks[0])) for b in (rank[k] for rank in ranks)]
        assert list(one)[: len(rest)] == rest


def loader(file, *, workers=0, rank=0, world=1, **options):
    entries = file.entries("training", ["*/*"])
    prompts = Prompts(file, entries, PromptRules((0.5, 1.0), 0.1), 10.0)
    spec = ModelSpec(dim=8, heads=1, layers=1, audio_tokens=8, levels=2)
    training_set = TrainingSet(entries, Tasks(file, prompts), ["tts"], spec, 0, range(spec.levels))
    cfg = Dataset(**options)
    return Loader(training_set, batch_sampler(cfg, entries, 4, 10.0, rank=rank, world_size=world), workers=workers)


def seen(batches):
    return [batch.rows.tolist() for batch in batches]


ORDERS = {
    "duration": {},
    "budget": {"sample_max_duration_batch": 12.0},
    "ordered": {"sample_shuffle": False},
    "shuffle": {"sample_order": "shuffle"},
    "interleaved": {"sample_order": "interleaved", "sample_max_duration_batch": 12.0},
    "speaker": {"sample_type": "speaker"},
    "group": {"sample_type": "group"},
}


@pytest.mark.parametrize("order", ORDERS)
def test_resumed_at_every_position_the_loader_gives_the_next_samples(file, order):
    whole = loader(file, **ORDERS[order])
    golden = seen(whole) + seen(whole)  # two epochs
    first, count = loader(file, **ORDERS[order]), 0
    states = [first.state_dict()]
    for _ in range(2):
        for _ in first:
            count += 1
            states.append(first.state_dict())
    assert count == len(golden)
    for done, state in enumerate(states[:-1]):  # the last one is at the start of a third epoch
        again = loader(file, **ORDERS[order])
        again.load_state_dict(state)
        rest = seen(again)
        assert rest
        assert rest == golden[done : done + len(rest)]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(file, workers):
    golden = seen(loader(file))
    run = loader(file, workers=workers)
    for done, _ in enumerate(run, 1):
        if done == 2:
            state = run.state_dict()
            break
    again = loader(file, workers=workers)
    again.load_state_dict(state)
    assert seen(again) == golden[2:]


@pytest.mark.parametrize("order", ["duration", "budget", "interleaved", "speaker"])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_another_number_of_ranks_goes_on_with_the_same_samples(file, order, before, after):
    ranks = [loader(file, rank=r, world=before, **ORDERS[order]) for r in range(before)]
    whole = [seen(r) for r in ranks]
    done = 1
    state = None
    for i, r in enumerate(loader(file, rank=r, world=before, **ORDERS[order]) for r in range(before)):
        for k, _ in enumerate(r, 1):
            if k == done:
                break
        assert state is None or state == r.state_dict(), i
        state = r.state_dict()
    rest = []
    for r in range(after):
        resumed = loader(file, rank=r, world=after, **ORDERS[order])
        resumed.load_state_dict(state)
        rest.append(seen(resumed))
    old = [str(b) for rank in whole for b in rank[:done]]
    new = [str(b) for rank in rest for b in rank]
    assert not set(old) & set(new)
    assert len({len(r) for r in rest}) == 1


def test_similar_utterances_use_the_same_codes():
    low, high = np.zeros((9, 2), int), np.full((9, 2), 7)
    assert most_similar([low, high, low, high], 8, 1) == [[2], [3], [0], [1]]
    assert most_similar([low], 8, 4) == [[]]


def test_noise_is_taken_from_anywhere_in_it(file):
    entries = file.entries("training", ["*/*"])
    longest = max(entries, key=lambda e: e.frames)
    tasks = Tasks(file, Prompts(file, entries, PromptRules((0.5, 1.0), 0.1), 10.0), [longest])
    rng = np.random.default_rng(0)
    starts = {tasks._noise_like(np.zeros((5, 2)), rng).tobytes() for _ in range(20)}
    assert len(starts) > 5
    repeated = tasks._noise_like(np.zeros((99, 2)), rng)
    np.testing.assert_array_equal(repeated[: longest.frames], file.read(longest.key).codes)


def test_files_of_a_divided_preparation_become_one_dataset(tmp_path):
    rows = list(utterances())
    for k, part in enumerate((rows[::2], rows[1::2]), 1):
        write_dataset(tmp_path / f"data.{k}-of-2.h5", part, NaiveTokenizer({"<s>": 1, "</s>": 2, "a": 40}), CODEC)
    assert write_index(tmp_path / "data.h5", sorted(tmp_path.glob("data.*-of-2.h5"))) == len(rows)
    file = DatasetFile(tmp_path / "data.h5")
    assert len(file.entries("training", ["*/*"])) == len(rows)
    for u in rows:
        np.testing.assert_array_equal(file.read(u.key).codes, u.codes)
    other = CodecInfo("melvq", "y", 2, 8, 10.0)
    write_dataset(tmp_path / "data.1-of-2.h5", rows[:1], NaiveTokenizer({"a": 1}), other)
    with pytest.raises(DatasetError, match="different codecs"):
        write_index(tmp_path / "index.h5", sorted(tmp_path.glob("data.*-of-2.h5")))


def test_an_index_needs_all_parts_of_one_division(tmp_path):
    path = tmp_path / "data.h5"
    with pytest.raises(DatasetError, match=r"no shard to index \(expected data.1-of-N.h5"):
        find_shards(path)
    rows = list(utterances(speakers=1))
    write_dataset(tmp_path / "data.1-of-2.h5", rows[:3], NaiveTokenizer(), CODEC)
    with pytest.raises(DatasetError, match=r"1 of 2 shards missing: data.2-of-2.h5"):
        find_shards(path)
    write_dataset(tmp_path / "data.2-of-2.h5", rows[3:], NaiveTokenizer(), CODEC)
    assert write_index(path, find_shards(path)) == 6
    (tmp_path / "data.1-of-3.h5").touch()
    with pytest.raises(DatasetError, match=r"several divisions: data.1-of-2.h5, data.1-of-3.h5, data.2-of-2.h5"):
        find_shards(path)
    # Parts that go missing later are named.
    (tmp_path / "data.2-of-2.h5").unlink()
    with pytest.raises(DatasetError, match=r"data.2-of-2.h5: this part of data.h5 is missing"):
        DatasetFile(path).entries("training", ["*/*"])
    write_dataset(tmp_path / "data.2-of-2.h5", rows[4:], NaiveTokenizer(), CODEC)
    with pytest.raises(DatasetError, match=r"training/g/s0/u3 left its part; run `vall-e-data index` again"):
        DatasetFile(path).entries("training", ["*/*"])


FOLDER = "audio_backend: encodec\ndataset: {training: ['g/s0'], validation: ['g/s1'], noise: ['g/s2']}\n"


def packed(tmp_path, *arguments):
    return cli.main(["hdf5", "--yaml", str(tmp_path / "config.yaml"), *arguments])


def test_a_folder_is_packed_once_with_its_noise_and_without_repeats(tmp_path, capsys):
    for u in utterances():
        write_sft(tmp_path / "data", dataclasses.replace(u, codes=np.tile(u.codes, 4)))
    (tmp_path / "config.yaml").write_text(FOLDER)
    assert packed(tmp_path) == 0
    file = DatasetFile(tmp_path / "data.h5")
    assert [len(file.entries(s, ["*/*"])) for s in ("training", "validation", "noise")] == [6, 6, 6]
    noise = file.read("noise/g/s2/u0")
    assert (noise.phonemes, noise.codes.shape[1]) == ("", 8)
    file.close()
    before = (tmp_path / "data.h5").read_bytes()
    (tmp_path / "config.yaml").write_text(FOLDER.replace("['g/s1']", "['g/*']"))
    assert packed(tmp_path) == 1
    assert "exists; move it away, or have it replaced with --force" in capsys.readouterr().err
    assert packed(tmp_path, "--force") == 1
    assert "g/s0/u0 matches dataset.validation ['g/*'] and dataset.training too" in capsys.readouterr().err
    assert (tmp_path / "data.h5").read_bytes() == before


def test_noise_of_existing_datasets_needs_no_text(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as f:
        f.create_group("noise/g/s/n")["audio"] = np.zeros((20, 8), np.int16)
        f["noise/g/s/n"].attrs["duration"] = 0.3
    file = DatasetFile(tmp_path / "data.h5")
    assert file.entries("noise", ["*/*"])[0].frames == 20
    assert file.read("noise/g/s/n").codes.shape == (20, 8)


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
import h5py, numpy as np
from vall_e.data.store import *
from vall_e.tokenizer import NaiveTokenizer
u = Utterance("", np.random.default_rng(0).integers(0, 1024, (200, 8)), np.array([1, 40, 2]), "a", "a", "en", 1.0)
rows = (dataclasses.replace(u, key=f"training/g/s/u{i}") for i in range(300))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write_dataset(Path(sys.argv[1]), rows, NaiveTokenizer(), CodecInfo("melvq", "x", 8, 1024, 10.0))
except OSError as e:
    print(f"{e.filename}: {e.strerror}", end="")
"""


@pytest.mark.parametrize("limit", [50, 3000, 200_000])
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, limit):
    (tmp_path / "data.h5").write_bytes(b"the one before")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".data.h5.{socket.gethostname()}~{dead.pid}~01234567.tmp").touch()
    program = [sys.executable, "-c", "import dataclasses" + FILL_THE_DISK, str(tmp_path / "data.h5"), str(limit)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}/data.h5: File too large", "")
    assert [p.name for p in tmp_path.iterdir()] == ["data.h5"]
    assert (tmp_path / "data.h5").read_bytes() == b"the one before"


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "a/b", "1/"])
def test_a_shard_that_cannot_be(text):
    with pytest.raises(ValueError, match=r"--shard: expected k/n"):
        parse_shard(text)


def test_what_is_left_out_is_counted(fresh):
    cfg = Config.from_yaml(fresh / "config.yaml", overrides=["dataset.max_utterances=5"])
    data = DatasetOf(cfg)
    assert len(data.splits["subtrain"]) == 30
    assert data.left_out["above dataset.max_utterances"] == 216 - 30


def test_speakers_take_turns(file):
    entries = file.entries("training", ["*/*"])
    sampler = batch_sampler(Dataset(sample_type="speaker"), entries, 3, 10.0)
    assert isinstance(sampler._items, GroupBalancedSampler)
    for batch in sampler:
        assert len({entries[i].speaker for i in batch}) == len(batch)
