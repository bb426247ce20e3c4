"""Damage: cut at any byte, any byte flipped. The object as it was, or an error that names the file."""

import pytest
import stateio
import torch


@pytest.fixture
def state():
    """Small, with a tensor, a tied one, plain data and tagged data."""
    weight = torch.arange(6.0).reshape(2, 3)
    return {
        "module": {"w": weight, "tied": weight, "b": torch.ones(2, dtype=torch.int8)},
        "stats": {"lr": 0.1, 1: (2,)},
    }


def load_or_error(path):
    """The loaded object, or None if the file was refused with an error that names it."""
    try:
        return stateio.load(path)
    except stateio.StateFileError as error:
        if str(path.parent) not in str(error):
            raise
        return None


def test_cut_at_every_byte(tmp_path, suffix, state):
    raw = stateio.save(state, tmp_path / f"x{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(stateio.TruncatedFileError, match=f"cut{suffix}"):
            stateio.load(path)


def flips(raw, bits):
    for position in range(len(raw)):
        for bit in bits:
            flipped = bytearray(raw)
            flipped[position] ^= 1 << bit
            yield position, bytes(flipped)


@pytest.mark.parametrize("bits", [[0], pytest.param(range(8), marks=pytest.mark.soak)])
def test_every_byte_flipped_in_turn(tmp_path, suffix, state, same, bits):
    raw = stateio.save(state, tmp_path / f"x{suffix}").read_bytes()
    path = tmp_path / f"flip{suffix}"
    refused = 0
    for position, flipped in flips(raw, bits):
        path.write_bytes(flipped)
        loaded = load_or_error(path)
        assert loaded is None or same(loaded, state), f"byte {position} of {len(raw)}"
        refused += loaded is None
    # A zip has many bytes that nobody reads: dates, versions, and the pickle that is there for other readers.
    assert refused > (0.9 if suffix == ".sft" else 0.2) * len(raw)


def test_every_byte_of_an_index_flipped_in_turn(tmp_path, state, same):
    index = stateio.save(state, tmp_path / "x.sft", shard_bytes=24)
    raw = index.read_bytes()
    for position, flipped in flips(raw, [0]):
        index.write_bytes(flipped)
        loaded = load_or_error(index)
        assert loaded is None or same(loaded, state), f"byte {position} of {len(raw)}"


def test_a_flipped_tensor_byte_names_file_tensor_expected_and_found(tmp_path, suffix, state):
    path = stateio.save(state, tmp_path / f"x{suffix}")
    stored = stateio.inspect(path).tensors["w"]
    raw = bytearray(path.read_bytes())
    raw[stored.offset + 5] ^= 4
    path.write_bytes(raw)
    with pytest.raises(
        stateio.ChecksumError, match=rf"x{suffix}: tensor 'w': expected xxh3 {stored.xxh3}, found \w"
    ) as caught:
        stateio.load(path)
    assert caught.value.tensor == "w"
    assert caught.value.path == str(path)
    with pytest.raises(stateio.ChecksumError):
        stateio.verify(path)
    assert not torch.equal(stateio.load(path, verify=False)["module"]["w"], state["module"]["w"])


def test_a_large_tensor_is_verified_as_well(tmp_path, suffix):
    path = stateio.save({"w": torch.zeros(1 << 18)}, tmp_path / f"x{suffix}")
    raw = bytearray(path.read_bytes())
    raw[stateio.inspect(path).tensors["w"].offset + (1 << 19)] ^= 1
    path.write_bytes(raw)
    with pytest.raises(stateio.ChecksumError):
        stateio.load(path)


def test_a_rewritten_header_is_noticed_and_can_be_overridden(tmp_path):
    path = stateio.save({"module": {"w": torch.ones(1)}, "config": {"lr": 1}}, tmp_path / "x.sft")
    path.write_bytes(path.read_bytes().replace(b'{\\"lr\\": 1}', b'{\\"lr\\": 9}'))
    with pytest.raises(stateio.CorruptFileError, match="does not match its digest"):
        stateio.load(path)
    assert stateio.load(path, verify=False)["config"] == {"lr": 1}


HEADERS = {
    "no JSON": b"{nonsense",
    "not an object": b'{"a": 1}',
    "unknown dtype": b'{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}',
    "negative shape": b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    "float shape": b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}',
    "wrong size": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
    "gap": b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
    "overlap": b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
    b'"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
    "more bytes": b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    "metadata": b'{"__metadata__":{"a":1},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_contradictory_headers(tmp_path, header):
    path = tmp_path / "x.sft"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(stateio.CorruptFileError, match=r"x\.sft"):
        stateio.load(path)
    with pytest.raises(stateio.CorruptFileError):
        stateio.read_header(path)


def test_a_huge_header_length_allocates_nothing(tmp_path):
    path = tmp_path / "x.sft"
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(stateio.TruncatedFileError):
        stateio.load(path)


@pytest.mark.parametrize("archive", [True, False])
def test_foreign_pickles_cut_anywhere(tmp_path, archive):
    torch.save({"w": torch.ones(3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=archive)
    raw = (tmp_path / "x.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(raw) - 1, 7):
        path.write_bytes(raw[:length])
        assert load_or_error(path) is None
