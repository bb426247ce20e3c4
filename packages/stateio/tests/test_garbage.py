"""No collection while a tree is saved or loaded, and the collector as it was afterwards."""

import gc

import pytest
import stateio
import torch

STATE = {f"p{i}": torch.full((4,), i) for i in range(4000)}


@pytest.fixture
def collections():
    """Counts collections of the garbage collector."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    was = gc.isenabled()
    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)
    (gc.enable if was else gc.disable)()


@pytest.mark.parametrize("suffix", [".sft", ".pt"])
def test_none_while_saving_and_loading(tmp_path, collections, suffix):
    path = tmp_path / f"state{suffix}"
    target = {name: torch.empty_like(tensor) for name, tensor in STATE.items()}
    stateio.save(STATE, path)
    collections.clear()
    stateio.save(STATE, path)
    loaded = stateio.load(path)
    stateio.load_into(path, target)
    # Tens of thousands of objects were made, a collection each 700; between the calls the collector is on.
    assert len(collections) < 10
    assert gc.isenabled()
    assert all(
        torch.equal(loaded[name], tensor) and torch.equal(target[name], tensor) for name, tensor in STATE.items()
    )


def test_the_collector_is_left_as_it_was(tmp_path, collections):
    path = stateio.save(STATE, tmp_path / "state.sft")
    with pytest.raises(OSError, match="missing"):
        stateio.load(tmp_path / "missing.sft")
    assert gc.isenabled()
    gc.disable()
    stateio.load(path)
    assert not gc.isenabled()
