"""samplers against torch, torchdata, accelerate, transformers, Lhotse and grain, in one run.

    uv run --with torchdata --with accelerate --with transformers --with lhotse --with grain \\
        python benchmarks/samplers.py [--quick] [--out FILE] [--lengths LENGTHS.txt ...]

A peer that is not installed is named as missing. Each construct-and-draw runs in a process of its own, so that peak
memory is that of one sampler; the contenders take turns, a figure is the median of the rounds.
"""

from __future__ import annotations

# ruff: noqa: E402 - this file has the name of the package, so its folder must be searched last
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path = [p for p in sys.path if Path(p).resolve() != HERE.resolve()] + [str(HERE)]

import json
import multiprocessing
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from benchmark_report import Report, argument_parser
from samplers import BucketSampler, RandomSampler
from samplers._report import co_pair, lag1

DATA = Path(__file__).parents[1] / "packages" / "samplers" / "tests" / "data"
PACKAGES = ("samplers", "numpy", "torch", "torchdata", "accelerate", "transformers", "lhotse", "grain")


class Sized:
    """A dataset that is only long."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index


def ours(n: int) -> Iterable[int]:
    return RandomSampler(n, seed=1)


def torch_random(n: int) -> Iterable[int]:
    from torch.utils.data import RandomSampler as Torch

    return Torch(Sized(n))


def torchdata_random(n: int) -> Iterable[int]:
    from torchdata.stateful_dataloader.sampler import RandomSampler as Torchdata

    return Torchdata(Sized(n))


def accelerate_random(n: int) -> Iterable[int]:
    from accelerate.data_loader import SeedableRandomSampler

    return SeedableRandomSampler(Sized(n), data_seed=1)


def grain_random(n: int) -> Iterable[int]:
    from grain.samplers import IndexSampler
    from grain.sharding import NoSharding

    sampler = IndexSampler(n, shard_options=NoSharding(), shuffle=True, num_epochs=1, seed=1)
    return (sampler[i].record_key for i in range(n))


RANDOM: dict[str, Callable[[int], Iterable[int]]] = {
    "samplers": ours,
    "torch": torch_random,
    "torchdata": torchdata_random,
    "accelerate": accelerate_random,
    "grain": grain_random,
}


def bare_list(n: int) -> Iterable[int]:
    """The interpreter's own `next()`: what no sampler can be faster than."""
    return [0] * min(n, 2_000_000)


RANDOM["a list in memory (limit of drawing)"] = bare_list


def measure_random(name: str, n: int, draws: int) -> dict[str, float]:
    """Milliseconds to construct and draw the first index, seconds for `draws` more; growth of the peak memory, MB."""
    build = RANDOM[name]
    next(iter(build(1000)))  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    iterator = iter(build(n))
    next(iterator)
    first = time.perf_counter() - began
    began = time.perf_counter()
    for _, _ in zip(range(min(draws, n - 1)), iterator, strict=False):
        pass
    drawn = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"first_ms": 1000 * first, "draws_s": drawn, "peak_MB": (peak - before) / 1024}


def measure_life(n: int) -> dict[str, float]:
    """Construct, draw one, save, resume in the middle and draw one: each in milliseconds; bytes of the state."""
    list(RandomSampler(1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [time.perf_counter()]
    sampler = RandomSampler(n, seed=1)
    times.append(time.perf_counter())
    next(iter(sampler))
    times.append(time.perf_counter())
    state = json.dumps(sampler.state_at(n // 2))
    times.append(time.perf_counter())
    other = RandomSampler(n, seed=1)
    other.load_state_dict(json.loads(state))
    next(iter(other))
    times.append(time.perf_counter())
    for _, _ in zip(range(1_000_000), other, strict=False):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    construct, draw, save, resume = (1000 * float(t) for t in np.diff(times))
    row = {"construct_ms": construct, "draw_ms": draw, "save_ms": save, "resume_ms": resume}
    return row | {"state_bytes": len(state), "peak_MB_after_1e6_draws": (peak - before) / 1024}


def measure_torchdata_resume(n: int) -> dict[str, float]:
    """torchdata's own sampler resumed in the middle: it draws and drops what was drawn."""
    from torchdata.stateful_dataloader.sampler import RandomSampler as Torchdata

    first = iter(Torchdata(Sized(n)))
    state = {**first.state_dict(), "yielded": n // 2}
    began = time.perf_counter()
    other = iter(Torchdata(Sized(n)))
    other.load_state_dict(state)
    next(other)
    resume = 1000 * (time.perf_counter() - began)
    return {"resume_ms": resume, "state_bytes": len(state["generator"].numpy().tobytes())}


class Echo(Sized):
    """Item i is i, by the batch."""

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


def measure_loader(name: str, n: int) -> dict[str, float]:
    """torchdata's StatefulDataLoader resumed in the middle of an epoch, over this or its own sampler."""
    from torchdata.stateful_dataloader import StatefulDataLoader
    from torchdata.stateful_dataloader.sampler import RandomSampler as Torchdata

    def build() -> Any:
        sampler = RandomSampler(n, seed=1) if name == "samplers" else Torchdata(Echo(n), generator=seeded())
        return StatefulDataLoader(Echo(n), sampler=sampler, batch_size=10_000, collate_fn=list)

    def seeded() -> Any:
        import torch

        return torch.Generator().manual_seed(1)

    first = build()
    iterator = iter(first)
    for _ in range(n // 20_000):
        next(iterator)
    state = first.state_dict()
    expected = next(iterator)
    second = build()
    began = time.perf_counter()
    second.load_state_dict(state)
    found = next(iter(second))
    return {"resume_ms": 1000 * (time.perf_counter() - began), "exact": float(found == expected)}


def in_process(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply(function, arguments)
        except ImportError as error:
            return {"missing": f"missing: {error}"}


def in_turn(calls: dict[str, tuple[Any, ...]], rounds: int) -> dict[str, dict[str, Any]]:
    """Medians over rounds in which each call (a function and its arguments) has a process of its own."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            if not any("missing" in row for row in found[name]):
                found[name].append(in_process(*calls[name]))
    return {
        name: rows[-1] if "missing" in rows[-1] else {c: statistics.median(r[c] for r in rows) for c in rows[0]}
        for name, rows in found.items()
    }


Epoch = list[list[int]]


def bucket_ours(costs: np.ndarray, budget: float) -> Iterator[Epoch]:
    sampler = BucketSampler(costs, max_cost=budget, seed=1, overlong="singleton")
    while True:
        yield list(sampler)


def random_batches(costs: np.ndarray, budget: float) -> Iterator[Epoch]:
    sampler = BucketSampler(costs, max_cost=budget, seed=1, window=1, overlong="singleton")
    while True:
        yield list(sampler)


def length_grouped(costs: np.ndarray, budget: float) -> Iterator[Epoch]:
    """transformers: a fixed batch size, so the largest that keeps the longest batch within the budget."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    size = max(1, int(budget // costs.max()))
    sampler = LengthGroupedSampler(size, lengths=costs.tolist())
    while True:
        order = list(sampler)
        yield [order[i : i + size] for i in range(0, len(order), size)]


def fully_sorted(costs: np.ndarray, budget: float) -> Iterator[Epoch]:
    sampler = BucketSampler(costs, max_cost=budget, seed=1, window=len(costs), overlong="singleton")
    while True:
        yield list(sampler)


def lhotse_buckets(costs: np.ndarray, budget: float) -> Iterator[Epoch]:
    """Lhotse's DynamicBucketingSampler, 30 buckets; its budget is the summed duration."""
    from lhotse import CutSet, MonoCut, Recording
    from lhotse.dataset import DynamicBucketingSampler

    cuts = []
    for i, duration in enumerate(costs.tolist()):
        samples = int(duration * 100)
        recording = Recording(id=f"r{i}", sources=[], sampling_rate=100, num_samples=samples, duration=duration)
        cuts.append(MonoCut(id=str(i), start=0, duration=duration, channel=0, recording=recording))
    sampler = DynamicBucketingSampler(CutSet.from_cuts(cuts), max_duration=budget, num_buckets=30, shuffle=True, seed=1)
    for epoch in range(10):
        sampler.set_epoch(epoch)
        yield [[int(cut.id) for cut in batch] for batch in sampler]


BUCKETS = {
    "samplers": bucket_ours,
    "random batches": random_batches,
    "transformers LengthGrouped": length_grouped,
    "fully sorted (as fairseq)": fully_sorted,
    "Lhotse, 30 buckets": lhotse_buckets,
}


def measure_buckets(name: str, costs: np.ndarray, budget: float) -> dict[str, float]:
    """Figures of an epoch and of the next; lag1 is the mean over eight epochs, of slow Lhotse over two."""
    epochs = BUCKETS[name](costs, budget)
    first = next(epochs)
    began = time.perf_counter()
    second = next(epochs)
    seconds = time.perf_counter() - began
    more = [next(epochs) for _ in range(0 if name.startswith("Lhotse") else 6)]
    longest = np.array([costs[b].max() for b in first])
    total = np.array([costs[b].sum() for b in first])
    sizes = np.array([len(b) for b in first])
    as_plan = [(np.concatenate(e), np.cumsum([0, *map(len, e)])) for e in (first, second)]
    means = [np.array([costs[b].mean() for b in epoch]) for epoch in (first, second, *more)]
    fits = sizes > 1  # an item above the budget by itself is no one's fault
    return {
        "batches": len(first),
        "waste": 1 - total.sum() / (longest * sizes).sum(),
        "budget_used": (longest * sizes).mean() / budget,
        "over_budget": float(np.mean((longest * sizes > budget * (1 + 1e-9)) & fits)),
        "co_pair": co_pair(*as_plan),
        "lag1": float(np.mean([lag1(m) for m in means])),
        "samples_per_s": sizes.sum() / seconds,
    }


def lognormal() -> np.ndarray:
    return np.clip(np.random.default_rng(0).lognormal(1.9, 0.65, 100_000), 1, 40)


def main() -> None:
    parser = argument_parser(__doc__, "samplers")
    parser.add_argument("--n", type=float, default=1e8, help="indices; peers need up to 130 bytes of memory for each")
    parser.add_argument("--budget", type=float, default=60.0, help="of a batch, for the files of lengths")
    parser.add_argument(
        "--lengths",
        type=Path,
        nargs="*",
        default=[DATA / "demo.txt", DATA / "recordings.txt"],
        help="files of real lengths, one a line, beside 100,000 lognormal ones",
    )
    options = parser.parse_args()
    n, middle, rounds = (10**5, 10**5, 1) if options.quick else (int(options.n), 10**7, 3)
    report = Report("samplers", PACKAGES, options.out)
    draws = {name: (measure_random, name, n, 10**6) for name in RANDOM}
    report.table(f"{n:.0e} indices in random order: the first, 1e6 more, memory", in_turn(draws, rounds))
    life = {f"samplers, {size:.0e}": (measure_life, size) for size in (10**8, 10**9, 10**12)}
    report.table("construct, draw, save, resume in the middle", in_turn(life, rounds))
    own = {f"torchdata's sampler, {middle:.0e}": (measure_torchdata_resume, middle)}
    report.table("torchdata's own sampler resumed in the middle", in_turn(own, 1))
    loader = {f"{name}, {middle:.0e}": (measure_loader, name, middle) for name in ("samplers", "torchdata")}
    report.table("StatefulDataLoader resumed in the middle", in_turn(loader, 1))
    sets = {"lognormal": (lognormal()[: 5000 if options.quick else None], 400.0)}
    sets |= {path.stem: (np.loadtxt(path, usecols=0, ndmin=1), options.budget) for path in options.lengths}
    for title, (costs, budget) in sets.items():
        rows = {name: (measure_buckets, name, costs, budget) for name in BUCKETS}
        report.table(f"batches of {len(costs)} lengths ({title}), padded budget {budget:g}", in_turn(rows, 1))
    report.close()


if __name__ == "__main__":
    main()
