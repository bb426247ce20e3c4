"""`plan`: several changes tried on a model without memory, their bytes told, then made for real."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from wrapkit import _bytes
from wrapkit._attention import AttentionAsOn
from wrapkit._changes import Change
from wrapkit._handle import Handle
from wrapkit._offload import Offload
from wrapkit._saved import SavedTensors
from wrapkit.optim import Optim, state_bytes


@dataclass
class Memory:
    """Bytes on one device.

    Attributes:
        parameters: with buffers, and scales of quantised weights.
        gradients: of the trainable parameters.
        optimizer: its state after the first step.
        activations: what autograd keeps of one forward; 0 without a sample input.
    """

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


class Applied(Handle):
    """The handle of a plan.

    Attributes:
        optimizer: the optimizer planned, or None. Undoing the plan leaves it as it is.
    """

    optimizer: Optimizer | None = None


@dataclass
class Plan:
    """What `plan` found out. Nothing has been changed yet.

    Attributes:
        model: that `apply` will change.
        changes: in the order of their application.
        optimizer: to be built.
        memory: device -> predicted bytes.
        trials: a line for each change: what it does to what.
        skipped: name -> reason, of what a change would leave as it is.
        notes: what could not be predicted, and why.
    """

    model: nn.Module
    changes: list[Change]
    optimizer: Optim | None
    memory: dict[str, Memory] = field(default_factory=dict)
    trials: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    parameters: int = 0
    trainable: int = 0

    def report(self) -> str:
        """The plan as a table to be read."""
        lines = [
            f"{type(self.model).__name__}: {self.parameters:,} parameters, {self.trainable:,} of them trained",
            *self.trials,
            *(f"  left as it is: {name}: {reason}" for name, reason in self.skipped.items()),
        ]
        columns = [f.name for f in fields(Memory)] + ["total"]
        rows = [[device, *(getattr(m, c) for c in columns)] for device, m in self.memory.items()]
        if len(rows) > 1:
            rows.append(["all", *(sum(row[i + 1] for row in rows) for i in range(len(columns)))])
        cells = [["device", *columns], *([row[0], *map(_bytes.readable, row[1:])] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns) + 1)]
        for row in cells:
            aligned = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(aligned))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def apply(self) -> Applied:
        """Make the changes. If one of them fails, those before it are undone.

        Returns:
            A handle that undoes them all; its `optimizer` is the one planned.
        """
        handle = Applied(self.model, [])
        try:
            for change in self.changes:
                part = change.apply(self.model)
                handle.include(part)
                handle.changed += part.changed
                handle.skipped |= part.skipped
            if self.optimizer is not None:
                handle.optimizer = self.optimizer.build(self.model)
        except BaseException:
            handle.undo()
            raise
        return handle


def plan(
    model: nn.Module,
    *changes: Change,
    optimizer: Optim | None = None,
    sample: Any = None,
    device: str | None = None,
) -> Plan:
    """Try changes on a copy of the model that takes no memory, and predict the bytes of training it.

    Args:
        model: not changed.
        changes: `Replace`, `LoRA`, `Freeze`, `Checkpoint`, `Offload`, or anything with their `apply`. They are
            made in this order, `Offload` last.
        optimizer: what will train it.
        sample: an input for the model's forward (a tensor, a tuple of arguments or a dict of keyword arguments), to
            predict the bytes of saved activations; they depend on its shape.
        device: where it will be trained; None is where each parameter is now.

    Raises:
        PatternError, ValueError, BackendUnavailable: what any of the changes, or building the optimizer, would
            raise. Nothing has been changed then.
    """
    ordered = sorted(changes, key=lambda change: isinstance(change, Offload))
    shadow = without_memory(model)
    made = Plan(model, ordered, optimizer)
    places: dict[str, str] = {}
    for change in ordered:
        if isinstance(change, Offload):
            places = change.place(shadow, optimizer)
            counts = {d: list(places.values()).count(d) for d in dict.fromkeys(places.values())}
            made.trials.append("Offload: " + ", ".join(f"{n} modules to {device}" for device, n in counts.items()))
            continue
        part = change.apply(shadow)
        what = getattr(change, "what", "") if isinstance(getattr(change, "what", ""), str) else ""
        made.trials.append(f"{type(change).__name__} {what}".rstrip() + f": {_shortened(part.changed)}")
        made.skipped |= part.skipped
    made.parameters = sum(p.numel() for p in shadow.parameters())
    made.trainable = sum(p.numel() for p in shadow.parameters() if p.requires_grad)
    home = device or _first_device(model)
    devices = {
        name: places.get(unit) or device or _device_of(model, name, home)
        for name, unit in _units(shadow, places).items()
    }
    _count(made, shadow, devices, home)
    if sample is not None:
        _count_activations(made, shadow, sample, home)
    return made


def measure(model: nn.Module, optimizer: Optimizer | None = None) -> Memory:
    """The same bytes of a real model, after a step of the optimizer. (`SavedTensors` counts activations.)"""
    tensors = [t for module in model.modules() for t in _bytes.module_tensors(module)]
    gradients = _bytes.total(p.grad for p in model.parameters() if p.grad is not None)
    return Memory(_bytes.total(tensors), gradients, 0 if optimizer is None else state_bytes(optimizer))


def without_memory(model: nn.Module) -> nn.Module:
    """A copy on the meta device: structure, shapes, ties, flags and hooks, no numbers."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        bare = parameter.detach().to("meta")
        kept = bare if isinstance(bare, nn.Parameter) else nn.Parameter(bare, requires_grad=False)
        memo[id(parameter)] = kept.requires_grad_(parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, memo)


def _count(made: Plan, shadow: nn.Module, devices: Mapping[str, str], home: str) -> None:
    per_parameter, shared = ({}, 0) if made.optimizer is None else made.optimizer.predict(shadow)
    memory: dict[str, Memory] = defaultdict(Memory)
    seen: set[int] = set()
    counted: set[Tensor] = set()
    for prefix, module in shadow.named_modules():
        device = devices[prefix]
        for tensor in _bytes.module_tensors(module):
            if _bytes.storage_key(tensor) not in seen:
                seen.add(_bytes.storage_key(tensor))
                memory[device].parameters += tensor.numel() * tensor.element_size()
        for parameter in module._parameters.values():
            if parameter is None or not parameter.requires_grad or parameter in counted:
                continue
            counted.add(parameter)
            memory[device].gradients += parameter.numel() * parameter.element_size()
            memory[device].optimizer += per_parameter.get(parameter, 0)
    memory[home].optimizer += shared
    made.memory = dict(memory)


def _count_activations(made: Plan, shadow: nn.Module, sample: Any, home: str) -> None:
    plain = all(type(p) is nn.Parameter and type(p.data) is Tensor for p in shadow.parameters())
    try:
        saved = (_forward_pretended if plain else _forward_on_meta)(shadow, sample, _pretended(home))
    except Exception as error:
        reason = f"forward without numbers raised {type(error).__name__}: {error}"
        made.notes.append(f"activations are not predicted: {reason}")
        return
    if not plain and any(isinstance(module, nn.MultiheadAttention) for module in shadow.modules()):
        made.notes.append("with quantised weights, activations of nn.MultiheadAttention are predicted too high")
    on_accelerator = torch.device(home).type not in ("cpu", "meta")
    made.memory.setdefault(home, Memory()).activations += saved.here + (0 if on_accelerator else saved.moved)
    if on_accelerator and saved.moved:
        made.memory.setdefault("cpu", Memory()).activations += saved.moved


def _pretended(home: str) -> str:
    """The device whose kernels torch is to choose; those of an accelerator only where there is one."""
    return home if torch.device(home).type == "cuda" and torch.cuda.is_available() else "cpu"


def _forward_pretended(shadow: nn.Module, sample: Any, device: str) -> SavedTensors:
    """A forward on tensors that say they are on the device, so that torch takes its kernels for that device."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        own: dict[str, Tensor] = {}
        for name, tensor in (*shadow.named_parameters(), *shadow.named_buffers()):
            bare = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
            own[name] = nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
        inputs = tree_map(lambda x: torch.empty_like(x, device=device) if isinstance(x, Tensor) else x, sample)
        args, kwargs = _arguments(inputs)
        with SavedTensors(own.values()) as saved:
            torch.func.functional_call(shadow, own, args, kwargs)
    return saved


def _forward_on_meta(shadow: nn.Module, sample: Any, device: str) -> SavedTensors:
    """For weights that cannot be replaced by tensors of another device."""
    args, kwargs = _arguments(tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, sample))
    with SavedTensors(shadow) as saved, AttentionAsOn(device):
        shadow(*args, **kwargs)
    return saved


def _arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(sample, dict):
        return (), sample
    return sample if isinstance(sample, tuple) else (sample,), {}


def _first_device(model: nn.Module) -> str:
    return next((str(t.device) for t in (*model.parameters(), *model.buffers())), "cpu")


def _device_of(model: nn.Module, name: str, home: str) -> str:
    """Where a module's memory is; of one that a change put in, where that of its surroundings is."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = model.get_submodule(".".join(parts[:length]))
        except AttributeError:
            continue
        tensor = next((t for t in (*found.parameters(), *found.buffers())), None)
        if tensor is not None:
            return str(tensor.device)
    return home


def _units(shadow: nn.Module, places: Mapping[str, str]) -> dict[str, str]:
    """For each module the placed one that it belongs to: itself, or the closest around it; "" where there is none."""
    found: dict[str, str] = {}
    for name, _ in shadow.named_modules():
        parts = name.split(".")
        around = [".".join(parts[:length]) for length in range(len(parts), -1, -1)]
        found[name] = next((unit for unit in around if unit in places), "")
    return found


def _shortened(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(name or "the model itself" for name in names[:shown]) + more
