"""stateio against safetensors, torch, huggingface_hub and torch's distributed checkpoints, and the physical limit.

    uv run --with safetensors --with huggingface_hub python benchmarks/stateio.py [--quick] [--out FILE]

The limit is one `write` of memory that is in place, or one `readinto` of such memory. Contenders take turns, each round
in another order; the figures are medians of times and of ratios to the limit of the same round, then the ratio of the
least times. A memory file system (`--folder`, by default /dev/shm) leaves the disk out; with `--sync` each writer's
file is synced, as stateio does by itself. The file read was written just before, so it is in the page cache.
"""

from __future__ import annotations

# ruff: noqa: E402 - this file has the name of the package, so its folder must be searched last
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path = [p for p in sys.path if Path(p).resolve() != HERE.resolve()] + [str(HERE)]

import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import stateio
import torch
from benchmark_report import Report, argument_parser

PACKAGES = ("stateio", "torch", "safetensors", "huggingface_hub", "xxhash", "orjson", "numpy")
LIMIT = "limit"
SLOW = 5.0  # seconds
State = dict[str, torch.Tensor]
Row = dict[str, Any]


def transformer(layers: int, width: int) -> State:
    """The tensors of a plain transformer: 15 a layer and two for the vocabulary."""
    shapes = {"embed": (8 * width, width), "head": (8 * width, width)}
    for i in range(layers):
        shapes |= {f"layers.{i}.{name}.weight": (width, width) for name in ("q", "k", "v", "o")}
        shapes |= {f"layers.{i}.{name}.bias": (width,) for name in ("q", "k", "v", "o")}
        shapes |= {f"layers.{i}.up.weight": (4 * width, width), f"layers.{i}.down.weight": (width, 4 * width)}
        shapes |= {f"layers.{i}.{name}": (width,) for name in ("norm1.w", "norm1.b", "norm2.w", "norm2.b", "down.bias")}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def small_tensors(count: int) -> State:
    return {f"t{i}": torch.randn(32, 32) for i in range(count)}


class Holder(torch.nn.Module):
    """A module with the parameters of a state."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.items():
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(torch.zeros_like(tensor)))


# Savers: (state, folder) to the paths written.


def save_limit(state: State, folder: Path, buffer: memoryview) -> list[Path]:
    with open(folder / "limit.bin", "wb", buffering=0) as file:
        left = buffer
        while left:
            left = left[file.write(left) :]
    return [folder / "limit.bin"]


def save_stateio(suffix: str) -> Callable[[State, Path], list[Path]]:
    return lambda state, folder: [stateio.save(state, folder / f"stateio{suffix}")]


def save_unhashed(state: State, folder: Path) -> list[Path]:
    with hashing_off():
        return [stateio.save(state, folder / "unhashed.sft")]


class NoHash:
    """In place of a hash, to see what stateio costs beside it."""

    def update(self, data: object) -> None:
        pass

    def hexdigest(self) -> str:
        return "0" * 16


@contextmanager
def hashing_off():
    from stateio import _stream

    kept = _stream.xxhash
    _stream.xxhash = SimpleNamespace(xxh3_64=NoHash, xxh3_64_hexdigest=lambda data: "0" * 16)
    try:
        yield
    finally:
        _stream.xxhash = kept


def save_safetensors(state: State, folder: Path) -> list[Path]:
    from safetensors.torch import save_file

    save_file(state, folder / "peer.safetensors")
    return [folder / "peer.safetensors"]


def save_torch(state: State, folder: Path) -> list[Path]:
    torch.save(state, folder / "torch.pt")
    return [folder / "torch.pt"]


def save_torch_without_crc(state: State, folder: Path) -> list[Path]:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, folder / "torch.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    return [folder / "torch.pt"]


def save_hub(state: State, folder: Path) -> list[Path]:
    from huggingface_hub import save_torch_state_dict

    (folder / "hub").mkdir(exist_ok=True)
    save_torch_state_dict(state, folder / "hub", max_shard_size="50GB")
    return list((folder / "hub").iterdir())


def save_dcp(state: State, folder: Path) -> list[Path]:
    import torch.distributed.checkpoint as dcp

    writer = dcp.FileSystemWriter(folder / "dcp", sync_files=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=writer, no_dist=True)
    return list((folder / "dcp").iterdir())


SAVERS: dict[str, Callable[[State, Path], list[Path]]] = {
    "stateio .sft": save_stateio(".sft"),
    "stateio .pt": save_stateio(".pt"),
    "stateio .sft, hashes left out": save_unhashed,
    "safetensors save_file": save_safetensors,
    "torch.save": save_torch,
    "torch.save, no CRC": save_torch_without_crc,
    "huggingface_hub": save_hub,
    "torch DCP": save_dcp,
}


# Loaders into existing parameters: (folder, target, module).


def into_limit(folder: Path, buffer: memoryview) -> None:
    with open(folder / "limit.bin", "rb", buffering=0) as file:
        left = buffer
        while left:
            left = left[file.readinto(left) :]


def into_stateio(suffix: str, **options: bool) -> Callable[[Path, State], object]:
    return lambda folder, target: stateio.load_into(folder / f"stateio{suffix}", target, **options)


def copied(read: Callable[[Path], State]) -> Callable[[Path, State], object]:
    """The usual way: read a state dict, then copy each tensor, as `load_state_dict` does."""

    def run(folder: Path, target: State) -> None:
        found = read(folder)
        with torch.no_grad():
            for name, tensor in target.items():
                tensor.copy_(found[name])

    return run


def read_safetensors(folder: Path) -> State:
    from safetensors.torch import load_file

    return load_file(folder / "peer.safetensors")


def read_torch(folder: Path) -> State:
    return torch.load(folder / "torch.pt", weights_only=True)


def read_torch_mapped(folder: Path) -> State:
    return torch.load(folder / "torch.pt", weights_only=True, mmap=True)


def read_hub(folder: Path) -> State:
    from huggingface_hub import load_state_dict_from_file

    return load_state_dict_from_file(folder / "hub" / "model.safetensors")


def into_dcp(folder: Path, target: State) -> None:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(target, checkpoint_id=folder / "dcp", no_dist=True)


INTO: dict[str, Callable[[Path, State], object]] = {
    "stateio .sft, verified": into_stateio(".sft"),
    "stateio .sft": into_stateio(".sft", verify=False),
    "stateio .pt, verified": into_stateio(".pt"),
    "safetensors load_file + copy": copied(read_safetensors),
    "torch.load + copy": copied(read_torch),
    "torch.load, mapped + copy": copied(read_torch_mapped),
    "huggingface_hub + copy": copied(read_hub),
    "torch DCP": into_dcp,
}

LOAD: dict[str, Callable[[Path, State], object]] = {
    "stateio .sft, verified": lambda folder, _: stateio.load(folder / "stateio.sft"),
    "stateio .sft, lazy": lambda folder, _: stateio.load(folder / "stateio.sft", lazy=True),
    "stateio .pt, verified": lambda folder, _: stateio.load(folder / "stateio.pt"),
    "safetensors load_file (maps)": lambda folder, _: read_safetensors(folder),
    "torch.load": lambda folder, _: read_torch(folder),
    "torch.load, mapped": lambda folder, _: read_torch_mapped(folder),
    "torch DCP": into_dcp,
}


def in_turn(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, Row]:
    """Median seconds of each, and median ratio to the limit of the same round. Who takes very long has one round."""
    seconds: dict[str, dict[int, float]] = {name: {} for name in contenders}
    missing: dict[str, str] = {}
    for number in range(rounds):
        for name in random.sample(list(contenders), len(contenders)):
            if name in missing or (name != LIMIT and max(seconds[name].values(), default=0) > SLOW):
                continue
            try:
                seconds[name][number] = contenders[name]()
            except ImportError as error:
                missing[name] = f"missing: {error}"
    rows: dict[str, Row] = {}
    for name, taken in seconds.items():
        if name in missing:
            rows[name] = {"missing": missing[name]}
            continue
        rows[name] = {
            "ms": 1000 * statistics.median(taken.values()),
            "of_limit": statistics.median(mine / seconds[LIMIT][number] for number, mine in taken.items()),
            "least_of_limit": min(taken.values()) / min(seconds[LIMIT].values()),
            "rounds": len(taken),
        }
    return rows


def timed_save(save: Callable[[], list[Path]], sync: bool) -> Callable[[], float]:
    """Seconds of a save to a name that does not exist yet; with `sync`, until it is on the disk."""

    def run() -> float:
        began = time.perf_counter()
        written = save()
        if sync:
            for path in written:
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        return time.perf_counter() - began

    return run


def cleared(run: Callable[[], float], folder: Path) -> Callable[[], float]:
    def cleared_run() -> float:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return run()

    return cleared_run


def timed(call: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return run


def compare(state: State, folder: Path, rounds: int, sync: bool) -> dict[str, dict[str, Row]]:
    """Save, load into existing parameters, and load anew."""
    nbytes = sum(tensor.nbytes for tensor in state.values())
    buffer = memoryview(bytearray(os.urandom(1 << 20) * (nbytes >> 20) + os.urandom(nbytes % (1 << 20))))
    folder.mkdir()
    saves = {LIMIT: timed_save(lambda: save_limit(state, folder, buffer), sync)}
    saves |= {name: timed_save(lambda save=save: save(state, folder), sync) for name, save in SAVERS.items()}
    results = {"save": in_turn({name: cleared(run, folder) for name, run in saves.items()}, rounds)}
    for run in saves.values():  # all the files once more, for the loaders
        try:
            run()
        except ImportError:
            continue
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    limit = {LIMIT: timed(lambda: into_limit(folder, buffer))}
    into = {name: timed(lambda load=load: load(folder, target)) for name, load in INTO.items()}
    results["load into existing tensors"] = in_turn(limit | into, rounds)
    assert all(torch.equal(target[name], state[name]) for name in state)
    load = {name: timed(lambda load=load: load(folder, target)) for name, load in LOAD.items()}
    results["load"] = in_turn(limit | load, rounds)
    shutil.rmtree(folder)
    return results


def resident(key: str) -> float:
    """MiB of this process, from Linux's /proc."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024


def extra_memory(kind: str, name: str, folder: str) -> Row:
    """MiB that an action needs beside the 256 MiB of its tensors, the largest of which has 8; and what stays mapped."""
    torch.manual_seed(0)
    state = {f"t{i}": torch.full((1 << 21,), float(i)) for i in range(32)}
    target = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    tiny, place = {"t": torch.ones(1 << 17)}, Path(folder)
    try:
        SAVERS[name if kind == "save" else MADE_BY[name]](tiny, place)
        (SAVERS[name](tiny, place) if kind == "save" else INTO[name](place, {"t": torch.zeros(1 << 17)}))
        if kind != "save":
            SAVERS[MADE_BY[name]](state, place)
    except ImportError as error:
        return {"missing": f"missing: {error}"}
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident("VmRSS")
    SAVERS[name](state, place) if kind == "save" else INTO[name](place, target)
    return {"extra_MiB": resident("VmHWM") - before}


MADE_BY = {
    "stateio .sft, verified": "stateio .sft",
    "stateio .sft": "stateio .sft",
    "stateio .pt, verified": "stateio .pt",
    "safetensors load_file + copy": "safetensors save_file",
    "torch.load + copy": "torch.save",
    "torch.load, mapped + copy": "torch.save",
    "huggingface_hub + copy": "huggingface_hub",
    "torch DCP": "torch DCP",
}


def memory(parent: Path) -> dict[str, dict[str, Row]]:
    """Extra memory of each contender, in a process of its own."""
    results: dict[str, dict[str, Row]] = {}
    for kind, contenders in (("save", SAVERS), ("load into existing tensors", INTO)):
        results[kind] = {}
        for name in contenders:
            process = multiprocessing.get_context("spawn").Pool(1)
            with tempfile.TemporaryDirectory(dir=parent) as folder, process as pool:
                results[kind][name] = pool.apply(extra_memory, (kind.split()[0], name, folder))
    return results


def main() -> None:
    parser = argument_parser(__doc__, "stateio")
    parser.add_argument("--folder", type=Path, help="where files are written, by default /dev/shm where there is one")
    parser.add_argument("--sync", action="store_true", help="sync every writer's files, for a folder on a disk")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    shared = Path("/dev/shm")
    parent = options.folder or (shared if shared.is_dir() else Path(tempfile.gettempdir()))
    rounds = options.rounds or (2 if options.quick else 5)
    facts = {"threads": torch.get_num_threads(), "folder": str(parent), "sync": options.sync, "rounds": rounds}
    report = Report("stateio", PACKAGES, options.out, **facts)
    states = {
        "transformer": transformer(2, 128) if options.quick else transformer(12, 512),
        "many small": small_tensors(1000 if options.quick else 20_000),
    }
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        for title, state in states.items():
            size = sum(tensor.nbytes for tensor in state.values()) / 2**20
            for action, rows in compare(state, Path(folder) / "files", rounds, options.sync).items():
                report.table(f"{action}: {title}, {len(state)} tensors, {size:.0f} MiB", rows)
        if Path("/proc/self/clear_refs").exists():
            for action, rows in memory(Path(folder)).items():
                report.table(f"extra memory, {action}: 32 tensors of 8 MiB", rows)
    report.close()


if __name__ == "__main__":
    main()
