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


def test_hugging_face_reads_what_we_write(tmp_path, state):
    """Its loaders for one file and for shards, tied weights included."""
    hub = pytest.importorskip("huggingface_hub")
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 10), torch.nn.Linear(10, 10))
    model[2].weight = model[0].weight
    for shard_bytes in (None, 450):
        stateio.save(model.state_dict(), tmp_path / "model.safetensors", shard_bytes=shard_bytes)
        other = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=i > 0) for i in range(3)))
        other[2].weight = other[0].weight
        hub.load_torch_model(other, tmp_path, strict=False)
        assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())
    (shard, *_) = tmp_path.glob("model-*-00001-of-*.safetensors")
    assert hub.load_state_dict_from_file(shard).keys() <= model.state_dict().keys()


def test_an_index_cut_at_every_byte(tmp_path, state):
    index = stateio.save(state, tmp_path / "m.sft", shard_bytes=900)
    raw = index.read_bytes()
    for length in range(len(raw)):
        index.write_bytes(raw[:length])
        with pytest.raises(stateio.StateFileError, match=r"m\.sft\.index\.json"):
            stateio.load(index)


def test_a_shard_cut_or_flipped_is_named_with_its_tensor(tmp_path, state):
    index = stateio.save(state, tmp_path / "m.sft", shard_bytes=900)
    (shard,) = tmp_path.glob("*-00002-of-*")
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-1])
    with pytest.raises(stateio.TruncatedFileError, match=shard.name):
        stateio.load(index)
    shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(stateio.ChecksumError, match=rf"{shard.name}: tensor 't3'"):
        stateio.load(index)
    for name in ("m-deadbeef-00001-of-00001.sft", "other.sft"):
        (tmp_path / name).write_bytes(raw)  # a stranger's; the index names the files that count
    shard.write_bytes(raw)
    assert stateio.verify(index) == 5


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
