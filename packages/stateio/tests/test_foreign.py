"""Files that other tools wrote, and our files in other tools."""

import json
import pickle

import pytest
import safetensors
import safetensors.torch
import stateio
import torch
from stateio import _layout


def test_an_established_export_loads_as_module_and_metadata(data):
    state = stateio.load(data / "established.sft")
    assert set(state) == {"module", "config", "stats", "userdata"}
    assert state["stats"] == {
        "global_step": 7,
        "micro_step": 28,
        "global_samples": 224,
        "tokens_processed": 12345,
    }
    assert state["config"]["experimental"]["len_loss_factor"] == 1e-05
    expected = safetensors.torch.load_file(data / "established.sft")
    assert state["module"].keys() == expected.keys()
    assert all(torch.equal(state["module"][name], expected[name]) for name in expected)


def test_an_export_of_ours_has_the_established_layout(data, tmp_path):
    state = stateio.load(data / "established.sft")
    path = stateio.save(state, tmp_path / "x.sft")
    with (
        safetensors.safe_open(path, "pt") as ours,
        safetensors.safe_open(data / "established.sft", "pt") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys())
        assert all(torch.equal(ours.get_tensor(name), theirs.get_tensor(name)) for name in theirs.keys())  # noqa: SIM118
        mine, given = ours.metadata(), theirs.metadata()
    assert {key: json.loads(mine[key]) for key in given} == {key: json.loads(given[key]) for key in given}
    assert all(json.loads(value) is not None for value in mine.values())  # readers parse every entry


def test_an_established_optimizer_pickle_loads(data):
    state = stateio.load(data / "optimizer.pth")
    expected = torch.load(data / "optimizer.pth", weights_only=True)
    assert state.keys() == expected.keys() == {"optimizer", "lr_scheduler"}
    assert state["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"version": "1.0"}])
def test_flat_safetensors_load_as_a_flat_dict(tmp_path, metadata, same):
    tensors = {"b.weight": torch.ones(2, 3), "a": torch.zeros(0), "$t": torch.ones(1)}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    loaded = stateio.load(tmp_path / "x.safetensors")
    assert same(dict(sorted(loaded.items())), dict(sorted(tensors.items())))


def test_a_single_flat_tensor_whose_name_looks_like_a_tag(tmp_path, same):
    safetensors.torch.save_file({"$t": torch.ones(1)}, tmp_path / "x.safetensors")
    assert same(stateio.load(tmp_path / "x.safetensors"), {"$t": torch.ones(1)})


def test_metadata_that_is_not_json_stays_text(tmp_path):
    metadata = {"version": "1.0", "config": '{"a": 1}', "note": "{not json", "name": '"x"'}
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "x.sft", metadata=metadata)
    state = stateio.load(tmp_path / "x.sft")
    assert state.pop("module").keys() == {"w"}
    assert state == {"version": "1.0", "config": {"a": 1}, "note": "{not json", "name": "x"}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_module_pickles_of_torch_load(tmp_path, archive, lazy, same):
    state = {"module": {"w": torch.ones(2, 3)}, "stats": {"step": 3}}
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=archive)
    assert same(stateio.load(tmp_path / "x.pth", lazy=lazy), state)


def test_torch_reads_our_pickles_as_plain_data(tmp_path):
    tied = torch.arange(6.0).reshape(2, 3)
    state = {
        "module": {
            "a": tied,
            "b": tied,
            "t": tied.T,
            "half": tied.bfloat16(),
            "f8": tied.to(torch.float8_e5m2),
        },
        1: (2, None, b"x", float("inf"), 2**70),
    }
    loaded = torch.load(stateio.save(state, tmp_path / "x.pt"), weights_only=True)
    assert loaded["module"]["a"] is loaded["module"]["b"]
    assert torch.equal(loaded["module"]["t"], tied.T)
    assert torch.equal(loaded["module"]["half"], tied.bfloat16())
    assert loaded["module"]["f8"].dtype is torch.float8_e5m2
    assert loaded[1] == state[1]


def test_safetensors_reads_our_files(tmp_path):
    state = {
        f"t{i}": torch.full((i,), i, dtype=dtype) for i, dtype in enumerate([torch.int8, torch.float64, torch.bfloat16])
    }
    path = stateio.save(state, tmp_path / "x.safetensors")
    loaded = safetensors.torch.load_file(path)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("name", ["__metadata__", "stateio", ""])
def test_names_that_break_other_writers(tmp_path, name, same):
    state = {name: torch.ones(1), "x": torch.zeros(1)}
    path = stateio.save(state, tmp_path / "x.sft")
    assert same(stateio.load(path), state)
    safetensors.torch.load_file(path)


def test_an_empty_dict_is_a_readable_file(tmp_path, suffix):
    path = stateio.save({}, tmp_path / f"x{suffix}")
    assert stateio.load(path) == {}


class Evil:
    """A pickle that would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_would_run_code_does_not(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"w": Evil(trace)}, tmp_path / "x.pt")
    with pytest.raises(stateio.UnsafePickleError, match=r"x\.pt: .*open.*unsafe=True"):
        stateio.load(tmp_path / "x.pt")
    with pytest.raises(stateio.UnsafePickleError):
        stateio.inspect(tmp_path / "x.pt")
    assert not trace.exists()
    stateio.load(tmp_path / "x.pt", unsafe=True)["w"].close()
    assert trace.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_nor_does_a_bare_pickle(tmp_path, protocol):
    trace = tmp_path / "trace"
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"w": Evil(trace)}, protocol=protocol))
    with pytest.raises(stateio.UnsafePickleError, match=r"x\.pt: "):
        stateio.load(tmp_path / "x.pt")
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [b"hello world, this is text", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a" + bytes(9)]
)
def test_other_files_are_foreign(tmp_path, content):
    (tmp_path / "x.sft").write_bytes(content)
    with pytest.raises(stateio.ForeignFileError, match=r"x\.sft: "):
        stateio.load(tmp_path / "x.sft")


@pytest.mark.parametrize("form", ["one.sft", "one.pt", "shards.sft"])
def test_a_newer_version_says_so(tmp_path, form, monkeypatch):
    shard_bytes = 4 if form == "shards.sft" else None
    path = stateio.save({"a": 1, "w": torch.ones(1)}, tmp_path / form, shard_bytes=shard_bytes)
    monkeypatch.setattr(_layout, "FORMAT_VERSION", 0)  # as if this were the older one
    for read in (stateio.load, stateio.inspect, stateio.verify):
        with pytest.raises(stateio.NewerVersionError, match=rf"{form}.*format 1; .*reads up to 0: upgrade"):
            read(path)


@pytest.mark.parametrize("error", [FileNotFoundError, IsADirectoryError])
def test_missing_files_and_folders_are_os_errors(tmp_path, error):
    path = tmp_path / "folder.sft"
    if error is IsADirectoryError:
        path.mkdir()
    with pytest.raises(error, match=r"folder\.sft"):
        stateio.load(path)


def test_no_permission(tmp_path, python):
    path = stateio.save({"w": torch.ones(1)}, tmp_path / "x.sft")
    path.chmod(0)
    code = """
import os, sys, stateio
read = stateio.read_header
if os.getuid() == 0:
    os.seteuid(65534)
read(sys.argv[1])
"""
    tmp_path.chmod(0o755)
    result = python("-c", code, str(path), check=False)
    assert "PermissionError" in result.stderr
