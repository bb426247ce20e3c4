"""`load_into`: straight into existing tensors."""

import pytest
import stateio
import torch


class Tied(torch.nn.Module):
    """An embedding whose weight is the classifier's, a buffer, and a non-contiguous parameter."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("count", torch.tensor(0))
        self.strided = torch.nn.Parameter(torch.randn(3, 2).T)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"module": s, "stats": {"a": 1}}, lambda s: {"weights": s}])
def test_a_module_is_filled_in_place(tmp_path, suffix, wrap):
    torch.manual_seed(0)
    source, target = Tied(), Tied()
    source.count.fill_(7)
    path = stateio.save(wrap(source.state_dict()), tmp_path / f"x{suffix}")
    pointers = [p.data_ptr() for p in target.parameters()]
    report = stateio.load_into(path, target)
    assert report.complete
    assert equal(source, target)
    assert pointers == [p.data_ptr() for p in target.parameters()]
    assert all(p.requires_grad for p in target.parameters())


def test_files_of_other_writers(tmp_path, data):
    source, target = Tied(), Tied()
    torch.save({"module": source.state_dict()}, tmp_path / "x.pth")
    stateio.load_into(tmp_path / "x.pth", target)
    assert equal(source, target)
    established = stateio.load(data / "established.sft")["module"]
    zeros = {name: torch.zeros_like(tensor) for name, tensor in established.items()}
    stateio.load_into(data / "established.sft", zeros)
    assert all(torch.equal(zeros[name], established[name]) for name in zeros)


def test_dtypes_are_cast_per_tensor(tmp_path, suffix):
    state = {"a": torch.randn(5), "b": torch.randn(3).double()}
    path = stateio.save(state, tmp_path / f"x{suffix}")
    target = {"a": torch.zeros(5, dtype=torch.bfloat16), "b": torch.zeros(3)}
    stateio.load_into(path, target)
    assert torch.equal(target["a"], state["a"].bfloat16())
    assert torch.equal(target["b"], state["b"].float())
    with pytest.raises(stateio.TargetMismatchError, match="dtype float32 in the file, bfloat16 in the target"):
        stateio.load_into(path, target, cast=False)


def test_strict_names_everything_and_changes_nothing(tmp_path, suffix):
    path = stateio.save({"a": torch.ones(2), "b": torch.ones(2, 3), "new": torch.ones(1)}, tmp_path / f"x{suffix}")
    target = {"a": torch.zeros(2), "b": torch.zeros(3, 2), "old": torch.zeros(1)}
    with pytest.raises(stateio.TargetMismatchError) as caught:
        stateio.load_into(path, target)
    message = str(caught.value)
    assert str(path) in message
    assert "missing in the file: old" in message
    assert "unexpected in the file: new" in message
    assert "mismatched: b (shape [2, 3] in the file, [3, 2] in the target)" in message
    assert all(not tensor.any() for tensor in target.values())


def test_not_strict_loads_what_matches_and_reports_the_rest(tmp_path, suffix):
    path = stateio.save({"a": torch.ones(2), "b": torch.ones(2, 3), "new": torch.ones(1)}, tmp_path / f"x{suffix}")
    target = {"a": torch.zeros(2), "b": torch.zeros(3, 2), "old": torch.zeros(1)}
    report = stateio.load_into(path, target, strict=False)
    assert (report.missing, report.unexpected) == (("old",), ("new",))
    assert report.mismatched == {"b": "shape [2, 3] in the file, [3, 2] in the target"}
    assert not report.complete
    assert target["a"].all()
    assert not target["b"].any()


def test_key_picks_a_sub_tree(tmp_path, suffix):
    state = {"a": {"w": torch.ones(2)}, "b": {"inner": {"w": torch.full((2,), 2.0)}}}
    path = stateio.save(state, tmp_path / f"x{suffix}")
    target = {"w": torch.zeros(2)}
    stateio.load_into(path, target, key="b.inner")
    assert torch.equal(target["w"], state["b"]["inner"]["w"])
    with pytest.raises(KeyError, match=r"no entry 'b\.c'; at 'c' the file has: inner"):
        stateio.load_into(path, target, key="b.c")
    with pytest.raises(stateio.StateFileError, match=r"several entries hold tensors \(a, b\): say which with key="):
        stateio.load_into(path, target)


def test_a_nested_target_takes_a_nested_file(tmp_path, suffix):
    state = {"a": {"w": torch.ones(2)}, "b": [{"w": torch.full((2,), 2.0)}]}
    path = stateio.save(state, tmp_path / f"x{suffix}")
    target = {"a": {"w": torch.zeros(2)}, "b": [{"w": torch.zeros(2)}]}
    stateio.load_into(path, target)
    assert torch.equal(target["b"][0]["w"], state["b"][0]["w"])


def test_module_is_preferred_among_several(tmp_path, suffix):
    path = stateio.save({"module": {"w": torch.ones(1)}, "optimizer": {"w": torch.zeros(1)}}, tmp_path / f"x{suffix}")
    target = {"w": torch.zeros(1)}
    stateio.load_into(path, target)
    assert target["w"].item() == 1


def test_a_file_without_tensors(tmp_path, suffix):
    path = stateio.save({"a": 1}, tmp_path / f"x{suffix}")
    with pytest.raises(stateio.StateFileError, match="the file holds no tensors"):
        stateio.load_into(path, {"w": torch.zeros(1)})


def test_a_flipped_bit_is_noticed(tmp_path, suffix):
    path = stateio.save({"w": torch.zeros(1 << 18)}, tmp_path / f"x{suffix}")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(stateio.ChecksumError, match=rf"x{suffix}: tensor 'w': expected xxh3 \w+, found \w+"):
        stateio.load_into(path, {"w": torch.zeros(1 << 18)})
    stateio.load_into(path, {"w": torch.zeros(1 << 18)}, verify=False)


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_tensors_tied_in_the_target_alone(tmp_path, suffix, size):
    """Two tensors of the file for one memory: threads must not mix them."""
    path = stateio.save({"a": torch.full((size,), 1.0), "b": torch.full((size,), 2.0)}, tmp_path / f"x{suffix}")
    weight = torch.zeros(size)
    for target in ({"a": weight, "b": weight}, {"a": weight, "b": weight.view(size)}):
        for _ in range(5):
            assert stateio.load_into(path, target).complete
            assert torch.equal(weight, torch.full((size,), 2.0))


def test_overlapping_views_in_the_target(tmp_path, suffix):
    path = stateio.save({"q": torch.ones(1 << 19), "qkv": torch.full((3 << 19,), 2.0)}, tmp_path / f"x{suffix}")
    fused = torch.zeros(3 << 19)
    stateio.load_into(path, {"q": fused[: 1 << 19], "qkv": fused})
    assert torch.equal(fused, torch.full((3 << 19,), 2.0))


def test_tensors_tied_on_both_sides_are_read_once(tmp_path, suffix):
    weight = torch.ones(100)
    path = stateio.save({"a": weight, "b": weight}, tmp_path / f"x{suffix}")
    target, read = torch.zeros(100), []
    stateio.load_into(path, {"a": target, "b": target}, progress=read.append)
    assert sum(read) == weight.nbytes
    assert torch.equal(target, weight)
    apart = {"a": torch.zeros(100), "b": torch.zeros(100)}
    stateio.load_into(path, apart)
    assert torch.equal(apart["a"], apart["b"])
    assert apart["a"].data_ptr() != apart["b"].data_ptr()
