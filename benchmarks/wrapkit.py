"""wrapkit against torch, bitsandbytes, torchao, apollo-torch and galore-torch, in one run.

    uv run --no-sync --with apollo-torch --with galore-torch python benchmarks/wrapkit.py [--quick] [--out FILE]
        [--only step replace memory characters] [--seeds 3]

* step: CPU time of one optimizer step (less sensitive to load than wall time) and bytes of state, optimizers in turn,
  medians; the limit is the time of reading and writing the weights once and reading the gradients once.
* replace: seconds to replace 2,000 layers and to undo it, against building that many layers.
* memory: bytes predicted by the planner and measured.
* characters: a character transformer (d128, 5 layers) on Python's own sources, 400 steps, each optimizer and seed.

apollo-torch and galore-torch are peers: installed for the measurement, run, and never read. A peer that is not
installed is named as missing.
"""

from __future__ import annotations

# ruff: noqa: E402 - this file has the name of the package, so its folder must be searched last
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path = [p for p in sys.path if Path(p).resolve() != HERE.resolve()] + [str(HERE)]

import json
import math
import os
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import wrapkit
from benchmark_report import Report, Rows, argument_parser
from torch import Tensor, nn
from torch.nn import functional as F

PACKAGES = ("wrapkit", "torch", "bitsandbytes", "torchao", "prodigyopt", "apollo-torch", "galore-torch")
RANK = 32


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # B, T, D
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class CharacterModel(nn.Module):
    """1.02 million parameters at the default size."""

    def __init__(self, width: int = 128, layers: int = 5, context: int = 128) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(128, width), nn.Embedding(context, width)
        self.layers = nn.ModuleList(Block(width, 4) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                scale = 0.02 / math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 0.02
                nn.init.normal_(p, std=scale)

    def forward(self, ids: Tensor) -> Tensor:  # B, T -> B, T, 128
        x = self.tokens(ids) + self.positions.weight[: ids.size(1)]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


# Optimizers -----------------------------------------------------------------------------------------------------


def peer_groups(model: nn.Module, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Hidden matrices with a peer's own options, the rest without; no decay for vectors and embeddings, as here."""
    groups = []
    for group in wrapkit.optim.sort_parameters(model):
        own = {"params": group["params"], "weight_decay": group.get("weight_decay", 0.01)}
        groups.append({**own, **options} if group["low_rank"] else own)
    return groups


def reference_apollo(model: nn.Module, lr: float, **options: Any) -> torch.optim.Optimizer:
    from apollo_torch import APOLLOAdamW

    own = {"rank": RANK, "proj": "random", "scale_type": "channel", "scale": 1, "update_proj_gap": 200}
    return APOLLOAdamW(peer_groups(model, {**own, "proj_type": "std", **options}), lr=lr)


def reference_mini(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return reference_apollo(model, lr, rank=1, scale_type="tensor", scale=128)


def galore(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    from galore_torch import GaLoreAdamW

    options = {"rank": RANK, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    return GaLoreAdamW(peer_groups(model, options), lr=lr)


def ours(name: str, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda model, lr: wrapkit.optimizer(name, model, lr=lr, **options)


def torch_foreach(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, foreach=True)


BUILDERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch AdamW foreach": torch_foreach,
    "adamw (fused)": ours("adamw"),
    "apollo": ours("apollo", rank=RANK),
    "apollo-torch": reference_apollo,
    "apollo-mini": ours("apollo-mini"),
    "apollo-torch mini": reference_mini,
    "galore-torch": galore,
    "muon": ours("muon"),
    "prodigy": ours("prodigy"),
    "adamw8bit (bitsandbytes)": ours("adamw8bit"),
    "torchao-adamw8bit": ours("torchao-adamw8bit"),
}


def tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor in an optimizer's state, also inside objects and tensor subclasses, once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            for name in value.__tensor_flatten__()[0]:
                yield from tensors_in(getattr(value, name), seen)
        else:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, seen)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item, seen)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value), seen)


def state_bytes(optimizer: torch.optim.Optimizer, model: nn.Module) -> int:
    weights = {p.data_ptr() for p in model.parameters()}
    found = {t.data_ptr(): t.numel() * t.element_size() for s in optimizer.state.values() for t in tensors_in(s, set())}
    return sum(size for pointer, size in found.items() if pointer not in weights)


def build_all(names: Iterable[str], make: Callable[[], nn.Module], lr: float = 1e-3) -> dict[str, Any]:
    built: dict[str, Any] = {}
    for name in names:
        model = make()
        try:
            built[name] = (model, BUILDERS[name](model, lr))
        except ImportError as error:
            built[name] = f"missing: {error}"
    return built


# Measurements ---------------------------------------------------------------------------------------------------


def measure_step(quick: bool) -> Rows:
    """CPU seconds of a step, optimizers in turn, medians; at the size of the character model and at a larger one."""
    rows: Rows = {}
    for width, layers, rounds in [(128, 5, 20)] if quick else [(128, 5, 40), (512, 4, 8)]:
        torch.manual_seed(0)
        built = build_all(BUILDERS, lambda w=width, n=layers: CharacterModel(w, n))
        gradients = [torch.randn_like(p) * 1e-2 for p in CharacterModel(width, layers).parameters()]
        times: dict[str, list[float]] = {name: [] for name in built}
        copies = [torch.randn_like(g) for g in gradients]
        limit = []
        for turn in range(rounds + 3):
            for name, pair in built.items():
                if isinstance(pair, str):
                    continue
                model, optimizer = pair
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p.grad = g.clone()
                start = time.process_time()
                optimizer.step()
                if turn >= 3:  # the first ones compile and allocate
                    times[name].append(time.process_time() - start)
            start = time.process_time()
            torch._foreach_add_(copies, gradients, alpha=-1e-3)
            limit.append(time.process_time() - start)
        base = statistics.median(times["torch AdamW foreach"])
        plain = state_bytes(built["torch AdamW foreach"][1], built["torch AdamW foreach"][0])
        size = f"d{width} x {layers}"
        for name, pair in built.items():
            if isinstance(pair, str):
                rows[f"{size}, {name}"] = {"missing": pair}
                continue
            seconds = statistics.median(times[name])
            held = state_bytes(pair[1], pair[0])
            row = {"cpu ms": 1e3 * seconds, "of AdamW foreach": seconds / base}
            rows[f"{size}, {name}"] = row | {"state bytes": held, "state of AdamW": held / plain}
        seconds = statistics.median(limit[3:])
        rows[f"{size}, limit: w -= a g"] = {"cpu ms": 1e3 * seconds, "of AdamW foreach": seconds / base}
    return rows


class Other(nn.Linear):
    pass


def measure_replace(quick: bool) -> Rows:
    """Seconds to swap every linear layer of a model and to swap them back; copying the weights is the comparison."""
    count = 200 if quick else 2000
    model = nn.Sequential(*[nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(count)])
    times: dict[str, list[float]] = {"replace": [], "undo": [], "plan": [], "build and copy the weights": []}
    for _ in range(3 if quick else 5):
        start = time.perf_counter()
        handle = wrapkit.replace(model, {nn.Linear: Other})
        times["replace"].append(time.perf_counter() - start)
        start = time.perf_counter()
        handle.undo()
        times["undo"].append(time.perf_counter() - start)
        start = time.perf_counter()
        wrapkit.plan(model, wrapkit.Replace({nn.Linear: Other}), optimizer=wrapkit.Optim("adamw"))
        times["plan"].append(time.perf_counter() - start)
        start = time.perf_counter()
        for block in model:
            new = Other(256, 256)
            new.load_state_dict(block[0].state_dict())
        times["build and copy the weights"].append(time.perf_counter() - start)
    base = statistics.median(times["build and copy the weights"])
    return {
        f"{name}, {count} layers": {"ms": 1e3 * statistics.median(t), "of copying": statistics.median(t) / base}
        for name, t in times.items()
    }


def measure_memory() -> Rows:
    """Predicted bytes of training the character model, and measured ones."""
    from wrapkit._plan import measure
    from wrapkit._saved import SavedTensors

    ids = torch.arange(8 * 128).remainder(128).view(8, 128)
    blocks = wrapkit.Policy(["layers"])
    cases: dict[str, tuple[list[Any], str]] = {
        "adamw": ([], "adamw"),
        "apollo": ([], "apollo"),
        "apollo-mini": ([], "apollo-mini"),
        "adamw8bit": ([], "adamw8bit"),
        "LoRA 8": ([wrapkit.LoRA(8, policy=blocks)], "adamw"),
        "bnb.int8, LoRA 8": ([wrapkit.Replace("bnb.int8", blocks), wrapkit.LoRA(8, policy=blocks)], "adamw"),
        "checkpointed": ([wrapkit.Checkpoint(blocks)], "adamw"),
    }
    rows: Rows = {}
    for name, (changes, optimizer) in cases.items():
        model = CharacterModel()
        try:
            plan = wrapkit.plan(model, *changes, optimizer=wrapkit.Optim(optimizer), sample=ids)
        except wrapkit.BackendUnavailable as error:
            rows[name] = {"missing": f"missing: {error}"}
            continue
        handle = plan.apply()
        with SavedTensors(model) as saved:
            out = model(ids)
        out.square().mean().backward()
        assert handle.optimizer is not None
        handle.optimizer.step()
        found, told = measure(model, handle.optimizer), plan.memory["cpu"]
        found.activations = saved.bytes
        row = {"state told": told.optimizer, "state found": found.optimizer}
        row |= {"activations told": told.activations, "activations found": found.activations}
        rows[name] = row | {"total told": told.total, "total found": found.total}
    return rows


def corpus(context: int) -> tuple[Tensor, Tensor]:
    """Python's own sources as ASCII; the last twentieth of the files is for validation."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [f.read_bytes().decode("utf-8", "ignore").encode("ascii", "ignore") for f in files]
    cut = len(files) - len(files) // 20
    as_ids = [torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8) for part in (texts[:cut], texts[cut:])]
    return as_ids[0], as_ids[1]


# AdamW gets the best of four learning rates; the others those that their papers or packages propose.
CHARACTERS: list[tuple[str, float]] = [
    ("adamw (fused)", 3e-4),
    ("adamw (fused)", 1e-3),
    ("adamw (fused)", 3e-3),
    ("adamw (fused)", 1e-2),
    ("apollo", 1e-2),
    ("apollo-torch", 1e-2),
    ("apollo-mini", 1e-2),
    ("apollo-torch mini", 1e-2),
    ("galore-torch", 1e-2),
    ("muon", 3e-3),
    ("prodigy", 1.0),
]


def batch(ids: Tensor, size: int, context: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(ids) - context - 1, (size,), generator=generator)
    return torch.stack([ids[s : s + context + 1] for s in starts.tolist()]).long()  # B, T + 1


def train(name: str, lr: float, seed: int, steps: int, size: int = 8, context: int = 128) -> dict[str, Any]:
    train_ids, held_out = corpus(context)
    torch.manual_seed(seed)
    model, generator = CharacterModel(), torch.Generator().manual_seed(seed)
    try:
        optimizer = BUILDERS[name](model, lr)
    except ImportError as error:
        return {"optimizer": name, "lr": lr, "seed": seed, "loss": None, "note": f"missing: {error}"}
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min(1, (i + 1) / warmup) * (0.55 + 0.45 * math.cos(math.pi * max(0, i - warmup) / (steps - warmup))),
    )
    spent = 0.0
    for _ in range(steps):
        ids = batch(train_ids, size, context, generator)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        start = time.process_time()
        optimizer.step()
        spent += time.process_time() - start
        schedule.step()
    model.eval()
    generator.manual_seed(1234)
    with torch.no_grad():
        losses = []
        for _ in range(32):
            ids = batch(held_out, 16, context, generator)
            losses.append(F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item())
    held = state_bytes(optimizer, model)
    row = {"optimizer": name, "lr": lr, "seed": seed, "loss": statistics.mean(losses)}
    return row | {"state bytes": held, "step cpu seconds": spent}


def measure_characters(quick: bool, seeds: int, partial: Path) -> Rows:
    """Each run is written as it ends; a run that was written is not made again."""
    done = json.loads(partial.read_text()) if partial.exists() else []
    for seed in range(1 if quick else seeds):
        for name, lr in CHARACTERS:
            if any((r["optimizer"], r["lr"], r["seed"]) == (name, lr, seed) for r in done):
                continue
            done.append(train(name, lr, seed, 20 if quick else 400))
            print(done[-1], flush=True)
            partial.write_text(json.dumps(done, indent=1))
    rows: Rows = {}
    for name, lr in CHARACTERS:
        own = [r for r in done if (r["optimizer"], r["lr"]) == (name, lr)]
        losses = [r["loss"] for r in own if r["loss"] is not None]
        if not losses:
            rows[f"{name}, lr {lr:g}"] = {"missing": own[0]["note"]}
            continue
        spread = statistics.stdev(losses) if len(losses) > 1 else None
        row = {"loss": statistics.mean(losses), "deviation": spread, "seeds": len(losses)}
        rows[f"{name}, lr {lr:g}"] = row | {"state bytes": own[0]["state bytes"]}
    return rows


def main() -> None:
    parser = argument_parser(__doc__, "wrapkit")
    parser.add_argument("--only", nargs="*", default=["step", "replace", "memory", "characters"], help="which tables")
    parser.add_argument("--seeds", type=int, default=3, help="of the character model")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    report = Report("wrapkit", PACKAGES, options.out)
    partial = report.out.with_suffix(".runs.json")
    tables: dict[str, tuple[str, Callable[[], Rows]]] = {
        "step": ("one optimizer step", lambda: measure_step(options.quick)),
        "replace": ("replacing", lambda: measure_replace(options.quick)),
        "memory": ("bytes told and found", measure_memory),
        "characters": ("character model", lambda: measure_characters(options.quick, options.seeds, partial)),
    }
    for name in options.only:
        title, measure = tables[name]
        report.table(title, measure())
    report.close()


if __name__ == "__main__":
    main()
