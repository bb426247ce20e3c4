"""The cache under its budget, under threads, and what it moves to the exact bit."""

from __future__ import annotations

import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trainloop.hooks import HookError, Hooks, ModelLoaded, ModelOffloaded
from trainloop.hooks.model_cache import CacheFull, ModelCache
from trainloop.hooks.model_loader import ModelLoader
from trainloop.hooks.model_memory import ModelMemory
from trainloop.manifest import CheckpointError


class Tied(nn.Module):
    """Tied parameters, tied buffers, a view of another tensor's storage, odd types, nothing contiguous for sure."""

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.embed = nn.Embedding.from_pretrained(torch.randn(6, width, generator=g), freeze=False)
        self.head = nn.Linear(width, 6, bias=False)
        self.head.weight = self.embed.weight
        whole = torch.randn(4, width, generator=g)
        self.upper, self.lower = nn.Parameter(whole[:2]), nn.Parameter(whole.T[:, 2:])  # views of one storage
        self.register_buffer("table", torch.arange(width, dtype=torch.int16))
        self.register_buffer("same", self.table, persistent=False)
        self.register_buffer("bf16", torch.randn(3, generator=g).to(torch.bfloat16))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("none", torch.zeros(0))
        self.register_buffer("nan", torch.tensor([float("nan"), -0.0, float("inf")]))


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def snapshot(model: nn.Module) -> dict[str, tuple]:
    """Identity, geometry and exact bytes of everything, and who shares memory with whom."""
    found = tensors(model)
    return {
        name: (
            id(t),
            t.dtype,
            tuple(t.shape),
            t.stride(),
            t.contiguous().reshape(-1).view(torch.uint8).tolist() if t.numel() else [],
            sorted(n for n, o in found.items() if o.untyped_storage()._cdata == t.untyped_storage()._cdata),
        )
        for name, t in found.items()
    }


def net(kib: int) -> nn.Module:
    """A module of exactly `kib` KiB."""
    return nn.Linear(16, 16 * kib, bias=False)


def cache_of(sizes: dict[str, int], max_kib: int, *, hooks: Hooks | None = None, **kwargs) -> ModelCache:
    made = {name: (lambda kib=kib: net(kib)) for name, kib in sizes.items()}
    cache = ModelCache(ModelLoader(made), max_kib * 1024, **kwargs)
    if hooks is not None:
        hooks.attach(cache)
    return cache


def touch(cache: ModelCache, *names: str) -> None:
    for name in names:
        with cache.use(name) as model:
            assert model.weight.numel() > 0


def levels(cache: ModelCache) -> dict[str, str]:
    return {e.name: e.level for e in cache._entries.values()}


@pytest.mark.parametrize("way", ["cpu", "disk", "cpu and disk"])
def test_bytes_ties_and_identity_survive(tmp_path, way):
    model = Tied()
    before = snapshot(model)
    assert before["same"][5] == ["same", "table"]
    assert before["lower"][5] == ["lower", "upper"]
    memory = ModelMemory(model)
    for _ in range(2):
        if "cpu" in way:
            memory.to("cpu")
            assert snapshot(model) == before
        if "disk" in way:
            memory.save(tmp_path / "m")
            assert all(t.numel() == 0 for t in tensors(model).values())
            memory.load(tmp_path / "m", "cpu")
    assert snapshot(model) == before
    model.embed.weight.data[0, 0] = 5.0
    assert model.head.weight[0, 0] == 5.0


def test_a_move_takes_memory_of_its_own():
    model = net(4)
    old = model.weight.data_ptr()
    held = model.weight
    kept = held.data  # keeps the old memory from being given out again
    ModelMemory(model).to("cpu")
    assert model.weight is held
    assert held.data_ptr() != old == kept.data_ptr()


def test_what_cannot_be_moved_is_named(tmp_path):
    model = nn.Module()
    model.register_buffer("s", torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match="s is a Tensor of layout"):
        ModelMemory(model)
    with pytest.raises(TypeError, match="found int"):
        ModelMemory(3)
    memory = ModelMemory(net(1))
    memory.save(tmp_path / "m")
    (tmp_path / "m").write_bytes((tmp_path / "m").read_bytes()[:600])
    with pytest.raises(CheckpointError, match="cannot be read back"):
        memory.load(tmp_path / "m", "cpu")


def test_gradients_move_too():
    model = net(1)
    model(torch.ones(1, 16)).sum().backward()
    memory = ModelMemory(model)
    assert memory.nbytes == 2 * 1024
    memory.to("cpu")
    assert torch.equal(model.weight.grad, torch.ones(16, 16))


def test_least_recent_use_goes_first_down_all_levels(tmp_path):
    with cache_of(dict.fromkeys("abcde", 4), 8, cpu_bytes=4096, disk=tmp_path, disk_bytes=4096) as cache:
        touch(cache, "a", "b", "a", "c")
        assert levels(cache) == {"a": "device", "b": "cpu", "c": "device", "d": "source", "e": "source"}
        touch(cache, "d")
        assert levels(cache) == {"a": "cpu", "b": "disk", "c": "device", "d": "device", "e": "source"}
        touch(cache, "e")
        assert levels(cache) == {"a": "disk", "b": "source", "c": "cpu", "d": "device", "e": "device"}
        stats = cache.stats
        assert (stats.hits, stats.misses, stats.loads, stats.offloads, stats.drops) == (1, 5, 5, 3, 1)
        assert (stats.device_bytes, stats.cpu_bytes, stats.disk_bytes) == (8192, 4096, 4096)
        touch(cache, "a")
        assert (cache.stats.loads, cache.stats.misses) == (5, 6)
        assert len(list(tmp_path.glob("*/*.pt"))) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_comes_back_as_it_was(tmp_path):
    made = {name: (lambda seed=seed: Tied(seed)) for seed, name in enumerate("ab")}
    with ModelCache(ModelLoader(made), ModelMemory(Tied()).nbytes, disk=tmp_path) as cache:
        with cache.use("a") as a:
            before = snapshot(a)
            assert not a.training
            assert not any(p.requires_grad for p in a.parameters())
        with cache.use("b"):
            assert levels(cache) == {"a": "disk", "b": "device"}
        with cache.use("a") as again:
            assert again is a
            assert snapshot(again) == before


def test_a_model_in_use_stays():
    cache = cache_of(dict.fromkeys("abc", 4), 8)
    with cache.use("a"):
        touch(cache, "b", "c", "b", "c")
        assert levels(cache)["a"] == "device"
    touch(cache, "b", "c")
    assert levels(cache)["a"] == "source"


def test_sizes_are_named_when_it_cannot_fit():
    cache = cache_of({"a": 4, "b": 2, "big": 8}, 5, timeout=0.2)
    with pytest.raises(CacheFull, match=r"'big' has 0.0 MiB \(8,192 bytes\), and the budget .* \(5,120 bytes\)"):
        touch(cache, "big")
    with cache.use("a"), pytest.raises(CacheFull, match=r"a \(.*4,096 bytes\)\) in use by this thread itself"):
        touch(cache, "b")
    go, done = threading.Event(), threading.Event()

    def hold():
        with cache.use("a"):
            go.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    go.wait(20)
    with pytest.raises(CacheFull, match=r"in use for 0\.2 s"):
        touch(cache, "b")
    done.set()
    thread.join()
    touch(cache, "b")
    with pytest.raises(KeyError, match="no model 'z'; there are a, b, big"):
        cache.prefetch("z")
    with pytest.raises(ValueError, match="must not be negative, found -1"):
        cache_of({}, 1, cpu_bytes=-1)
    with pytest.raises(ValueError, match="disk= is not"):
        cache_of({}, 1, disk_bytes=1)


def test_many_threads_one_load_and_one_error():
    calls, go = [], threading.Barrier(8)

    def slow():
        calls.append(threading.get_ident())
        time.sleep(0.1)
        if len(calls) == 1:
            raise OSError("torn cable")
        return net(1)

    cache = ModelCache(ModelLoader({"a": slow}), 1 << 20)

    def ask(_):
        go.wait()
        try:
            with cache.use("a") as model:
                return id(model)
        except OSError as e:
            return str(e)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {"torn cable"}
        assert len(calls) == 1
        assert len(set(pool.map(ask, range(8)))) == 1
    assert len(calls) == 2
    assert (cache.stats.misses, cache.stats.loads) == (16, 1)


def test_prefetch_goes_on_while_another_is_used(caplog):
    started, finish = threading.Event(), threading.Event()

    def slow():
        started.set()
        assert finish.wait(20)
        return net(1)

    def broken():
        raise OSError("no such weights")

    cache = ModelCache(ModelLoader({"a": lambda: net(1), "slow": slow, "broken": broken}), 1 << 20)
    touch(cache, "a")
    future = cache.prefetch("slow")
    assert started.wait(20)
    for _ in range(10):
        touch(cache, "a")  # does not wait
    assert not future.done()
    finish.set()
    future.result(20)
    touch(cache, "slow")
    assert (cache.stats.hits, cache.stats.misses) == (11, 1)
    with caplog.at_level(logging.WARNING, "trainloop"), pytest.raises(OSError, match="no such weights"):
        cache.prefetch("broken").result(20)
    assert "model 'broken' could not be prefetched: OSError: no such weights" in caplog.text
    with pytest.raises(OSError, match="no such weights"):
        touch(cache, "broken")
    cache.close()
    with pytest.raises(RuntimeError, match="closed"):
        touch(cache, "a")


def test_prefetch_waits_for_room_and_takes_it():
    cache = cache_of({"a": 4, "b": 4}, 4)
    with cache.use("a"):
        future = cache.prefetch("b")
        time.sleep(0.05)
        assert not future.done()
        with pytest.raises(CacheFull, match="in use by this thread itself"):
            touch(cache, "b")  # would wait for the prefetch, which waits for this thread
    future.result(20)
    assert levels(cache) == {"a": "source", "b": "device"}
    with cache.use("b"):
        waiting = cache.prefetch("a")
        time.sleep(0.05)
        cache.close()  # does not wait for room
    assert isinstance(waiting.exception(20), RuntimeError)


def test_a_failing_disk_leaves_the_model_where_it_was(tmp_path, monkeypatch):
    cache = cache_of({"a": 4, "b": 4}, 4, disk=tmp_path)
    touch(cache, "a")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            touch(cache, "b")
    assert levels(cache) == {"a": "device", "b": "source"}
    touch(cache, "a", "b", "a")
    assert cache.stats.loads == 2


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_on_its_way_out_is_waited_for(tmp_path, monkeypatch, fails):
    save, leaving, go = ModelMemory.save, threading.Event(), threading.Event()

    def slow(self, path):
        leaving.set()
        assert go.wait(20)
        if fails:
            raise OSError("full")
        save(self, path)

    monkeypatch.setattr(ModelMemory, "save", slow)
    cache = cache_of({"a": 4, "b": 4}, 4, disk=tmp_path)
    touch(cache, "a")
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(touch, cache, "b")
        assert leaving.wait(20)
        again = pool.submit(touch, cache, "a")
        time.sleep(0.1)
        early = again.done()
        go.set()
        assert (other.exception(20) is not None) == fails
        again.result(20)
    assert not early


def test_events_go_to_the_run():
    hooks, seen = Hooks(), []
    for event in (ModelLoaded, ModelOffloaded):
        hooks.on(event, lambda e: seen.append((type(e).__name__, e.name)))
    touch(cache_of({"a": 4, "b": 4}, 4, cpu_bytes=1 << 20, hooks=hooks), "a", "b", "a")
    loaded, offloaded = "ModelLoaded", "ModelOffloaded"
    assert seen == [(loaded, "a"), (offloaded, "a"), (loaded, "b"), (offloaded, "b"), (loaded, "a")]
    hooks.on(ModelOffloaded, lambda e: 1 / 0)
    cache = cache_of({"a": 4, "b": 4}, 4)
    cache.attach(hooks)
    touch(cache, "a")
    with pytest.raises(HookError, match="ZeroDivisionError"):
        touch(cache, "b")
    touch(cache, "b")


names = st.sampled_from("abcd")


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.fixed_dictionaries({n: st.integers(1, 6) for n in "abcd"}),
    device=st.integers(6, 14),
    cpu=st.integers(0, 8),
    disk=st.integers(0, 8),
    asked=st.lists(names, max_size=30),
)
def test_no_level_is_above_its_budget_and_nothing_is_lost(tmp_path_factory, sizes, device, cpu, disk, asked):
    """Against a model of the law: the device holds the most recently used that fit; bytes are always right."""
    folder = tmp_path_factory.mktemp("disk")
    with cache_of(sizes, device, cpu_bytes=cpu * 1024, disk=folder, disk_bytes=disk * 1024) as cache:
        expected: list[str] = []  # on the device, oldest first
        weights: dict[int, torch.Tensor] = {}
        seen: list[nn.Module] = []
        for name in asked:
            if name in expected:
                expected.remove(name)
            while sum(sizes[n] for n in expected) + sizes[name] > device:
                expected.pop(0)
            expected.append(name)
            with cache.use(name) as model:
                assert model.weight.shape == (16 * sizes[name], 16)
                before = weights.setdefault(id(model), model.weight.detach().clone())
                assert torch.equal(before, model.weight)
                seen.append(model)  # so that no id is used twice
            assert {n for n, level in levels(cache).items() if level == "device"} == set(expected)
            s = cache.stats
            assert s.device_bytes <= device * 1024
            assert s.cpu_bytes <= cpu * 1024
            assert s.disk_bytes <= disk * 1024
        s = cache.stats
        assert s.hits + s.misses == len(asked)


def test_threads_at_random(tmp_path):
    """Eight threads use and prefetch; every model seen is whole, no budget is passed, all end."""
    sizes = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    cache = cache_of(sizes, 8, cpu_bytes=6 * 1024, disk=tmp_path, timeout=30)
    sums: dict[str, float] = {}
    guard = threading.Lock()

    def work(seed):
        rng = random.Random(seed)
        for _ in range(60):
            name = rng.choice("abcde")
            if rng.random() < 0.2:
                cache.prefetch(name)
                continue
            with cache.use(name) as model:
                assert model.weight.shape[0] == 16 * sizes[name]
                total = model.weight.double().sum().item()
                with guard:
                    assert sums.setdefault(name, total) == total  # the disk is endless: none is loaded twice
            assert cache.stats.device_bytes <= 8 * 1024

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    cache.prefetch("a").result(30)
    assert cache.stats.loads == 5
    cache.close()


@pytest.mark.gpu
def test_cuda_and_back(tmp_path):
    made = {name: (lambda seed=seed: Tied(seed)) for seed, name in enumerate("abc")}
    size = ModelMemory(Tied()).nbytes
    expected = {name: snapshot(make()) for name, make in made.items()}
    with ModelCache(ModelLoader(made, device="cuda"), size, cpu_bytes=size, disk=tmp_path) as cache:
        for name in "abcabcab":
            with cache.use(name) as model:
                assert {t.device.type for t in tensors(model).values()} == {"cuda"}
                there = {k: v[1:] for k, v in snapshot(model).items()}
                assert there == {k: v[1:] for k, v in expected[name].items()}
                assert model.head.weight is model.embed.weight
        stats = cache.stats
        assert (stats.loads, stats.device_bytes, stats.cpu_bytes, stats.disk_bytes) == (3, size, size, size)
