"""Reading by offset: several threads, short reads, systems without `preadv`, and which error comes first."""

import os

import pytest
import stateio
import torch
from stateio import _stream

SIZES = [0, 1, 3, 1000, *[1000] * 600, _stream.PIECE // 4 - 1, _stream.PIECE // 4, 3 * _stream.PIECE + 5, 7]


@pytest.fixture
def state():
    """Tensors on both sides of every limit, more of them than one system call takes."""
    return {f"t{i}": torch.arange(size, dtype=torch.float32) for i, size in enumerate(SIZES)}


def test_a_call_that_reads_less_than_asked_is_repeated(tmp_path, suffix, state, same, monkeypatch):
    path = stateio.save(state, tmp_path / f"x{suffix}")
    read = os.preadv

    def short(file, places, offset):
        wanted = [place for place in places if place][:2]
        return read(file, [wanted[0], *(place[:100] for place in wanted[1:])], offset)

    monkeypatch.setattr(os, "preadv", short)
    assert same(stateio.load(path), state)


def test_systems_without_preadv(tmp_path, suffix, state, same, monkeypatch):
    path = stateio.save(state, tmp_path / f"x{suffix}")
    monkeypatch.delattr(os, "preadv")
    assert same(stateio.load(path), state)
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    assert stateio.load_into(path, target).complete
    assert same(target, state)


@pytest.mark.parametrize("damaged", [["t5", "t900"], ["t900", "t5"]])
def test_the_first_damage_in_the_file_is_reported_whichever_thread_finds_it(tmp_path, suffix, damaged):
    state = {f"t{i}": torch.full((2000,), float(i)) for i in range(1000)}
    path = stateio.save(state, tmp_path / f"x{suffix}")
    raw = bytearray(path.read_bytes())
    for name in damaged:
        raw[stateio.inspect(path).tensors[name].offset] ^= 1
    path.write_bytes(raw)
    for _ in range(5):
        with pytest.raises(stateio.ChecksumError) as caught:
            stateio.load(path)
        assert caught.value.tensor == "t5"


def test_a_file_that_shrinks_while_it_is_read(tmp_path, suffix, state, monkeypatch):
    path = stateio.save(state, tmp_path / f"x{suffix}")
    monkeypatch.setattr(os, "preadv", lambda file, places, offset: 0)
    with pytest.raises(stateio.TruncatedFileError, match=rf"x{suffix}: tensor 't\d+': the file ends at byte \d+"):
        stateio.load(path)


def test_no_thread_is_left(tmp_path, suffix, state):
    import threading

    path = stateio.save(state, tmp_path / f"x{suffix}")
    stateio.load(path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stateio")]
