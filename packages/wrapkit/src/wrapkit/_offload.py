"""`Offload`: a model split over several devices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter, tree_map

from wrapkit import _bytes
from wrapkit._around import surround
from wrapkit._errors import OverBudget
from wrapkit._handle import Handle
from wrapkit._policy import Policy, matches

if TYPE_CHECKING:
    from wrapkit.optim import Optim

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Offload:
    """A place for each module, on the first device that has room for it.

    Modules that share a tensor stay together. A module computes where its parameters are: its inputs are brought
    there, its outputs back to where the inputs came from, so that the code around it works unchanged.

    Args:
        devices: in order of preference. What the policy leaves out stays on the first.
        limits: device -> bytes, as a number or as "8GiB"; devices without one are boundless.
        assign: dotted glob -> device, for modules whose place is not up for choice; the first that covers one counts.
        policy: which modules may go elsewhere than the first device; without it all.
        training: count a gradient for each trainable parameter.
        optimizer: count its state. In a plan it is the plan's.
    """

    devices: Sequence[str]
    limits: Mapping[str, int | str] = field(default_factory=dict)
    assign: Mapping[str, str] = field(default_factory=dict)
    policy: Policy | None = None
    training: bool = True
    optimizer: Optim | None = None

    def __post_init__(self) -> None:
        if isinstance(self.devices, str) or not self.devices:
            raise ValueError(f"devices is a list of at least one device, got {self.devices!r}")
        for label, named in (("limits", list(self.limits)), ("assign", list(self.assign.values()))):
            for device in named:
                if device not in self.devices:
                    raise ValueError(f"{label} names {device!r}, which is not among the devices {list(self.devices)}")
        for limit in self.limits.values():
            parse_bytes(limit)

    def apply(self, model: nn.Module) -> Handle:
        """Move the modules. An optimizer goes on holding the same parameters.

        Returns:
            A handle; `undo()` brings everything back, with the values it has by then.

        Raises:
            PatternError: a pattern covers nothing.
            OverBudget: something fits nowhere; all of it is listed. Nothing has been moved then.
            ValueError: a device that is not here, or modules that share a tensor assigned to different ones.
        """
        for device in self.devices:
            _check_device(device)
        places = self.place(model, self.optimizer)
        handle = Handle(model, [name for name in places if name])
        modules = dict(model.named_modules())
        bare: dict[Tensor, Tensor] = {}
        for name, device in places.items():
            _move(handle, modules[name], torch.device(device), bare)
        for module, device in _entrances(model, places):
            surround(handle, module, Elsewhere(torch.device(device)))
        return handle

    def place(self, model: nn.Module, optimizer: Optim | None = None) -> dict[str, str]:
        """The device of each module that holds tensors itself, by the module's name; nothing is moved.

        Raises: as `apply`.
        """
        policy = self.policy or Policy()
        policy.modules(model)  # checks the patterns
        Policy(list(self.assign) or None).modules(model)
        sizes = self._sizes(model, optimizer or self.optimizer)
        filled = dict.fromkeys(self.devices, 0)
        bounds = {d: parse_bytes(self.limits[d]) if d in self.limits else None for d in self.devices}
        places: dict[str, str] = {}
        left: dict[str, int] = {}
        # What has no choice is placed first, so that what has one does not take its room.
        groups = [(group, self._fixed(model, group, policy)) for group in _tied(model)]
        for group, fixed in sorted(groups, key=lambda item: item[1] is None):
            size = _bytes_of(group, sizes)
            for device in self.devices if fixed is None else [fixed]:
                bound = bounds[device]
                if bound is None or filled[device] + size <= bound:
                    filled[device] += size
                    places |= dict.fromkeys(group, device)
                    break
            else:
                left[", ".join(group)] = size
        if left:
            raise OverBudget(list(left), self._message(left, filled, bounds))
        return {name: places[name] for name, _ in _holders(model)}

    def _fixed(self, model: nn.Module, group: list[str], policy: Policy) -> str | None:
        assigned = {
            next(device for pattern, device in self.assign.items() if matches(pattern, name))
            for name in group
            if any(matches(pattern, name) for pattern in self.assign)
        }
        if len(assigned) > 1:
            raise ValueError(f"{', '.join(group)} share a tensor and are assigned to {' and '.join(sorted(assigned))}")
        if assigned:
            return assigned.pop()
        modules = {name: model.get_submodule(name) for name in group}
        return None if all(policy.chooses(name, module) for name, module in modules.items()) else self.devices[0]

    def _sizes(self, model: nn.Module, optimizer: Optim | None) -> dict[str, dict[int, int]]:
        """For each module its tensors, by storage, with the bytes that go with them."""
        state = optimizer.predict(model)[0] if optimizer is not None else {}
        sizes: dict[str, dict[int, int]] = {}
        for name, module in _holders(model):
            own = {_bytes.storage_key(t): t.numel() * t.element_size() for t in _bytes.module_tensors(module)}
            for p in module._parameters.values():
                if p is not None and p.requires_grad and self.training:
                    own[_bytes.storage_key(p)] += p.numel() * p.element_size() + state.get(p, 0)
            sizes[name] = own
        return sizes

    def _message(self, left: dict[str, int], filled: dict[str, int], bounds: Mapping[str, int | None]) -> str:
        wanting = "; ".join(f"{names or 'the model itself'} ({_bytes.readable(size)})" for names, size in left.items())
        full = ", ".join(
            f"{d} {_bytes.readable(filled[d])} of {_bytes.readable(b)}" for d, b in bounds.items() if b is not None
        )
        return f"no room for {wanting}. Filled: {full}. Raise a limit, add a device, or train fewer parameters"


class Elsewhere:
    """A forward on another device than the caller's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        home = next((x.device for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)), None)
        moved_args, moved_kwargs = to((args, kwargs), self.device)
        out = forward(*moved_args, **moved_kwargs)
        return out if home is None else to(out, home)


def to(tree: Any, device: torch.device) -> Any:
    """The tensors in a structure on a device; what is on the meta device has nothing to bring."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) and not x.is_meta else x, tree)


def parse_bytes(limit: int | str) -> int:
    """
    >>> parse_bytes("1.5KiB"), parse_bytes(7)
    (1536, 7)
    """
    if isinstance(limit, int):
        return limit
    found = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", limit)
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"a limit is a number of bytes or a string such as '8GiB', got {limit!r}")
    return int(float(found[1]) * _UNITS[found[2]])


def _check_device(device: str) -> None:
    kind = torch.device(device)
    if kind.type in ("cpu", "meta"):
        return
    module = torch.get_device_module(kind)
    if not module.is_available() or (kind.index or 0) >= module.device_count():
        raise ValueError(f"there is no device {device} here")


def _holders(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold tensors themselves, bare parameters of a parent included."""
    for name, module in model.named_modules():
        if next(_bytes.module_tensors(module), None) is not None:
            yield name, module


def _tied(model: nn.Module) -> list[list[str]]:
    """Those modules, with the ones that share a tensor in one list."""
    groups: list[tuple[list[str], set[int]]] = []
    for name, module in _holders(model):
        keys = {_bytes.storage_key(t) for t in _bytes.module_tensors(module)}
        first, *others = [g for g in groups if g[1] & keys] or [([], set())]
        if not first[0]:
            groups.append(first)
        for group in others:
            groups.remove(group)
            first[0].extend(group[0])
            first[1].update(group[1])
        first[0].append(name)
        first[1].update(keys)
    return [names for names, _ in groups]


def _bytes_of(group: list[str], sizes: Mapping[str, Mapping[int, int]]) -> int:
    shared: dict[int, int] = {}
    for name in group:
        for key, size in sizes[name].items():
            shared[key] = max(shared.get(key, 0), size)
    return sum(shared.values())


def _entrances(model: nn.Module, places: Mapping[str, str]) -> Iterator[tuple[nn.Module, str]]:
    """Where a forward changes devices: the outermost modules that lie on one device, and parents with tensors."""
    seen: set[nn.Module] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        if module in seen:
            return
        seen.add(module)
        prefix = f"{name}." if name else ""
        below = {d for other, d in places.items() if other == name or other.startswith(prefix)}
        called = not isinstance(module, (nn.ModuleList, nn.ModuleDict))
        if len(below) == 1 and called:
            yield module, below.pop()
            return
        if name in places and called:
            yield module, places[name]
        for child_name, child in module.named_children():
            yield from walk(prefix + child_name, child)

    yield from walk("", model)


def _move(handle: Handle, module: nn.Module, device: torch.device, bare: dict[Tensor, Tensor]) -> None:
    """A module's own tensors to a device; parameters stay the same objects wherever torch can change their data."""
    for table in (module._parameters, module._buffers):
        for name, tensor in table.items():
            if tensor is None or _lies_on(tensor, device):
                continue
            if device.type == "meta":
                table[name] = bare.setdefault(tensor, _bare(tensor))
                handle.on_undo(lambda table=table, name=name, tensor=tensor: table.update({name: tensor}))
            else:
                before = tensor.device
                _carry(tensor, device)
                handle.on_undo(lambda tensor=tensor, before=before: _carry(tensor, before))


def _lies_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def _carry(tensor: Tensor, device: torch.device) -> None:
    tensor.data = tensor.data.to(device)
    if tensor.grad is not None:
        tensor.grad = tensor.grad.to(device)


def _bare(tensor: Tensor) -> Tensor:
    bare = tensor.detach().to("meta")
    return nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
