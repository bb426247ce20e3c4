"""Sharded saves, ours and Hugging Face's."""

import json

import pytest
import safetensors.torch
import stateio
import torch


@pytest.fixture
def state():
    """Five tensors of 400 bytes, one tied, and plain data."""
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    return {"module": {**tensors, "tied": tensors["t0"]}, "stats": {"step": 3}, "pair": (1, 2)}


def test_a_sharded_save_is_one_object(tmp_path, state, same):
    index = stateio.save(state, tmp_path / "m.safetensors", shard_bytes=900)
    assert index.name == "m.safetensors.index.json"
    for path in (index, tmp_path / "m.safetensors"):
        assert same(stateio.load(path), state)
        assert stateio.verify(path) == 5
    assert len(stateio.inspect(index).files) == 3
    target = {name: torch.zeros(100) for name in state["module"]}
    stateio.load_into(index, target)
    assert same(target, dict(state["module"]))


def test_shards_and_index_are_those_of_hugging_face(tmp_path, state):
    index = json.loads(stateio.save(state["module"], tmp_path / "m.safetensors", shard_bytes=900).read_text())
    assert index["metadata"]["total_size"] == 2000
    for name, shard in index["weight_map"].items():
        with safetensors.safe_open(tmp_path / shard, "pt") as file:
            assert torch.equal(file.get_tensor(name), state["module"][name])
            assert file.metadata()["format"] == "pt"


def test_hugging_face_writes_what_we_read(tmp_path, state, same):
    hub = pytest.importorskip("huggingface_hub")
    tensors = {name: state["module"][name] for name in ("t0", "t1", "t2")}
    hub.save_torch_state_dict(tensors, tmp_path, max_shard_size=900)
    assert same(stateio.load(tmp_path / "model.safetensors.index.json"), tensors)


def test_a_later_save_replaces_all_of_an_earlier_one(tmp_path, state, same):
    path = tmp_path / "m.sft"
    for shard_bytes, files in ((900, 4), (400, 6), (None, 1), (900, 4)):
        stateio.save(state, path, shard_bytes=shard_bytes)
        assert len(list(tmp_path.iterdir())) == files
        assert same(stateio.load(path), state)


def test_a_missing_shard_is_named(tmp_path, state):
    index = stateio.save(state, tmp_path / "m.sft", shard_bytes=900)
    shard = next(tmp_path.glob("*-00002-of-*"))
    shard.unlink()
    with pytest.raises(stateio.TruncatedFileError, match=shard.name):
        stateio.load(index)


@pytest.mark.parametrize("shard", ["../x.sft", "/etc/passwd"])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, shard):
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(stateio.CorruptFileError, match="expected shards in the index's folder"):
        stateio.load(tmp_path / "m.index.json")


def test_pickles_have_no_shards(tmp_path):
    with pytest.raises(ValueError, match="shard_bytes takes SafeTensors"):
        stateio.save({}, tmp_path / "m.pt", shard_bytes=1)
