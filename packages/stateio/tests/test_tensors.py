"""Tied, shared, odd and large tensors."""

import json
from pathlib import Path

import numpy as np
import pytest
import stateio
import torch


def test_tied_tensors_come_back_tied_and_are_stored_once(tmp_path, suffix):
    weight = torch.randn(64, 64)
    state = {"embed": weight, "head": torch.nn.Parameter(weight), "copy": weight.clone()}
    path = stateio.save(state, tmp_path / f"x{suffix}")
    loaded = stateio.load(path)
    assert loaded["embed"].data_ptr() == loaded["head"].data_ptr()
    assert loaded["embed"].data_ptr() != loaded["copy"].data_ptr()
    assert path.stat().st_size < 2.5 * weight.nbytes


@pytest.mark.parametrize("lazy", [False, True])
def test_views_do_not_drag_their_storage_along(tmp_path, suffix, lazy):
    base = torch.randn(1000, 1000)
    state = {
        "row": base[3],
        "column": base[:, 4],
        "transposed": base[:5, :7].T,
        "expanded": base[:1, :1].expand(9, 9),
    }
    path = stateio.save(state, tmp_path / f"x{suffix}")
    assert path.stat().st_size < 20_000
    loaded = stateio.load(path, lazy=lazy)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert all(tensor.is_contiguous() for tensor in loaded.values())


def test_overlapping_views_are_independent_copies(tmp_path, suffix):
    base = torch.arange(10.0)
    loaded = stateio.load(stateio.save({"a": base[:6], "b": base[4:]}, tmp_path / f"x{suffix}"))
    loaded["a"].zero_()
    assert torch.equal(loaded["b"], base[4:])


@pytest.mark.parametrize("name", ["float8_e8m0fnu", "float4_e2m1fn_x2"])
def test_dtypes_that_few_readers_know(tmp_path, suffix, name):
    if not hasattr(torch, name):
        pytest.skip(f"this torch has no {name}")
    raw = torch.arange(8, dtype=torch.uint8).reshape(2, 4)
    loaded = stateio.load(stateio.save({"w": raw.view(getattr(torch, name))}, tmp_path / f"x{suffix}"))["w"]
    assert loaded.dtype is getattr(torch, name)
    assert torch.equal(loaded.view(torch.uint8), raw)


def test_conjugate_and_negative_views(tmp_path, suffix):
    base = torch.randn(4, dtype=torch.complex64)
    state = {"base": base, "conj": base.conj(), "neg": base.conj().imag}
    loaded = stateio.load(stateio.save(state, tmp_path / f"x{suffix}"))
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_empty_tensors_are_not_tied(tmp_path, suffix):
    base = torch.ones(3)
    state = {"a": base[:0], "b": base[:0], "c": torch.empty(0, 4), "all": base}
    path = stateio.save(state, tmp_path / f"x{suffix}")
    assert stateio.inspect(path).tensors.keys() == state.keys()
    assert [tensor.shape for tensor in stateio.load(path).values()] == [(0,), (0,), (0, 4), (3,)]


def test_an_array_over_a_tensors_memory_stays_an_array(tmp_path, suffix):
    tensor = torch.arange(3.0)
    loaded = stateio.load(stateio.save({"tensor": tensor, "array": tensor.numpy()}, tmp_path / f"x{suffix}"))
    assert type(loaded["array"]) is np.ndarray
    assert torch.equal(loaded["tensor"], tensor)


def test_saving_changes_nothing(tmp_path, suffix):
    parameter = torch.nn.Parameter(torch.randn(3, 4).T)
    state = {"module": {"p": parameter}, "stats": {"a": [1]}}
    before = parameter.detach().clone()
    stateio.save(state, tmp_path / f"x{suffix}", dtype="bfloat16")
    assert state["module"]["p"] is parameter
    assert parameter.dtype is torch.float32
    assert not parameter.is_contiguous()
    assert torch.equal(parameter, before)
    assert state["stats"] == {"a": [1]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16"])
def test_dtype_casts_floating_tensors_alone(tmp_path, suffix, dtype):
    state = {
        "f": torch.randn(3),
        "i": torch.arange(3),
        "c": torch.ones(2, dtype=torch.complex64),
        "a": np.ones(2),
    }
    wanted = torch.bfloat16 if dtype is torch.bfloat16 else torch.float16
    saved = stateio.load(stateio.save(state, tmp_path / f"x{suffix}", dtype=dtype))
    loaded = stateio.load(stateio.save(state, tmp_path / f"y{suffix}"), dtype=dtype)
    for found in (saved, loaded):
        assert found["f"].dtype is wanted
        assert torch.equal(found["f"], state["f"].to(wanted))
        assert found["i"].dtype is torch.int64
        assert found["c"].dtype is torch.complex64
        assert found["a"].dtype == np.float64


def test_a_dtype_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a torch dtype or its name, found 'load'"):
        stateio.save({}, tmp_path / "x.sft", dtype="load")


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a suffix among \.sft, .* found '\.tar'"):
        stateio.save({}, tmp_path / "x.tar")
    assert stateio.load(stateio.save({"a": 1}, tmp_path / "x.tar", format="pickle")) == {"a": 1}


def test_content_decides_the_form_on_load(tmp_path, same):
    state = {"w": torch.ones(2)}
    for form in ("safetensors", "pickle"):
        assert same(stateio.load(stateio.save(state, tmp_path / "x.anything", format=form)), state)


def test_lazy_tensors_are_private_and_survive_a_replaced_file(tmp_path, suffix):
    path = stateio.save({"w": torch.zeros(1000)}, tmp_path / f"x{suffix}")
    mapped = stateio.load(path, lazy=True)["w"]
    stateio.save({"w": torch.ones(1000)}, path)
    assert torch.equal(mapped, torch.zeros(1000))
    again = stateio.load(path, lazy=True)["w"]
    again.fill_(5)
    assert torch.equal(stateio.load(path)["w"], torch.ones(1000))


def test_misaligned_tensors_of_other_writers_are_mapped_by_copy(tmp_path):
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    header += b'"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    values = torch.tensor([1.5, -2.0])
    raw = len(header).to_bytes(8, "little") + header + b"\7" + values.numpy().tobytes()
    (tmp_path / "x.sft").write_bytes(raw)
    for lazy in (False, True):
        assert torch.equal(stateio.load(tmp_path / "x.sft", lazy=lazy)["b"], values)


def test_large_and_small_tensors_around_the_buffer_limits(tmp_path, suffix, same):
    sizes = [1, 2**16 - 1, 2**16, 2**16 + 1, 2**20, 2**20 + 1, 3]
    state = {str(size): torch.arange(size, dtype=torch.float32) for size in sizes}
    path = stateio.save(state, tmp_path / f"x{suffix}")
    assert same(stateio.load(path), state)
    assert stateio.verify(path) == len(sizes)


def test_progress_adds_up_to_the_tensors_bytes(tmp_path, suffix):
    state = {"a": torch.zeros(1 << 18), "b": torch.zeros(100)}
    written, read, placed = [], [], []
    path = stateio.save(state, tmp_path / f"x{suffix}", progress=written.append)
    stateio.load(path, progress=read.append)
    stateio.load_into(path, {name: tensor.clone() for name, tensor in state.items()}, progress=placed.append)
    total = sum(tensor.nbytes for tensor in state.values())
    assert sum(written) == sum(read) == sum(placed) == total


MEMORY = """
import json, sys, torch, stateio
path = sys.argv[1]
state = {str(i): torch.full((1 << 21,), float(i)) for i in range(16)}  # 8 MiB each
target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
small = {"w": torch.ones(1 << 17)}
stateio.load_into(stateio.save(small, path + ".warm.sft"), small)  # threads and imports

def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024

def extra(action):
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
    before = resident("VmRSS")
    action()
    return resident("VmHWM") - before

print(json.dumps({
    "save": extra(lambda: stateio.save(state, path)),
    "load_into": extra(lambda: stateio.load_into(path, target)),
    "verify": extra(lambda: stateio.verify(path)),
    "cast": extra(lambda: stateio.save(state, path, dtype="bfloat16")),
    "load_into from another dtype": extra(lambda: stateio.load_into(path, target)),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_extra_memory_is_one_tensor_at_most(tmp_path, suffix, python, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))  # glibc gives back at once what is freed
    extra = json.loads(python("-c", MEMORY, str(tmp_path / f"x{suffix}")).stdout)
    assert extra.keys() >= {"save", "load_into"}
    assert all(mebibytes < 10 for mebibytes in extra.values()), extra  # a tensor has 8, all have 128
