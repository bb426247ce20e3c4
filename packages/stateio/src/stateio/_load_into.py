"""Read a file's tensors straight into those of a module or a dict, casting each one on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from ._errors import StateFileError, TargetMismatchError
from ._garbage import no_collection
from ._layout import StoredTensor
from ._load import empty_like
from ._memory import has_memory, memory_of
from ._open import Foreign, open_layout, rebuild
from ._stream import Progress, TensorReader

_SHOWN = 10  # names per list in an error message


@dataclass(frozen=True)
class LoadReport:
    """What did not match between a file and the target of `load_into`.

    Attributes:
        missing: names of the target that the file lacks; they keep their values.
        unexpected: names of the file that the target lacks.
        mismatched: name to the reason, ``"shape [2, 3] in the file, [3, 2] in the target"``; not loaded.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether everything matched."""
        return not (self.missing or self.unexpected or self.mismatched)


@dataclass(frozen=True)
class _Ref:
    """Stands for a tensor of the file while the tree is decoded."""

    stored: StoredTensor


@no_collection()
def load_into(
    path: str | os.PathLike[str],
    target: torch.nn.Module | Mapping[str, torch.Tensor],
    *,
    key: str | None = None,
    strict: bool = True,
    cast: bool = True,
    verify: bool = True,
    progress: Progress | None = None,
) -> LoadReport:
    """Load tensors in place. At most one tensor's worth of extra memory is used.

    Args:
        path: a state file of any form.
        target: a module, or a (possibly nested) dict of tensors. Non-tensor entries are not loaded.
        key: dotted path of the sub-tree of the file, such as ``"module"``. By default the only dict of
            tensors, or ``module``.
        strict: raise before anything is changed if a name is missing, unexpected or mismatched.
        cast: convert dtypes; without it, another dtype is a mismatch.
        verify: compare with the recorded xxh3. If one differs, the target holds part of the file.
        progress: called with the bytes read, as they come.

    Raises:
        TargetMismatchError: under ``strict``, with all three lists; nothing was changed.
        KeyError: the file has no such key.
        ChecksumError: a tensor's bytes changed since they were written.
        StateFileError: the file is not readable, or does not say which dict of tensors is meant.
    """
    wanted = _flatten(_target_tensors(target))
    opened = open_layout(path, verify=verify)
    if isinstance(opened, Foreign):
        from ._torchpickle import load_foreign

        state: Any = load_foreign(opened.path, unsafe=False, lazy=True)
        name = opened.path
    else:
        name = opened.whole.path
        refs = {stored.name: _Ref(stored) for stored in opened.whole.tensors.values()}
        state = rebuild(opened.whole, refs.__getitem__, lambda _: None)
    found = _flatten(_subtree(state, key, name, wanted))
    report = _compare(found, wanted, cast)
    if strict and not report.complete:
        raise TargetMismatchError(_describe(report), path=name)
    matched = [(found[n], wanted[n]) for n in found if n in wanted and n not in report.mismatched]
    with torch.no_grad():
        if isinstance(opened, Foreign):
            for value, tensor in matched:
                tensor.copy_(value)
        else:
            for part in opened.parts:
                here = [(v.stored, t) for v, t in matched if part.tensors.get(v.stored.name) is v.stored]
                once = {(stored.name, id(tensor)): (stored, tensor) for stored, tensor in here}  # tied on both sides
                _read(part.path, list(once.values()), verify, progress)
    return report


def _read(
    path: str,
    pairs: list[tuple[StoredTensor, torch.Tensor]],
    verify: bool,
    progress: Progress | None,
) -> None:
    direct, staged = [], []
    for stored, tensor in pairs:
        (direct if _takes_bytes(tensor, stored) else staged).append((stored, tensor))
    with TensorReader(path, verify=verify, progress=progress) as reader:
        if _share_memory(direct):  # tied here but not in the file: the last one in the file stays
            for stored, tensor in sorted(direct, key=lambda pair: pair[0].offset):
                reader.read([(stored, memory_of(tensor))])
        else:
            reader.read((stored, memory_of(tensor)) for stored, tensor in direct)
        for stored, tensor in staged:
            staging = empty_like(stored)  # one at a time
            reader.read([(stored, memory_of(staging))])
            tensor.copy_(staging)


def _share_memory(pairs: list[tuple[StoredTensor, torch.Tensor]]) -> bool:
    """Whether any two of these would be read into the same bytes."""
    places = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for _, tensor in pairs)
    return any(end > start for (_, end), (start, _) in pairwise(places))


def _takes_bytes(tensor: torch.Tensor, stored: StoredTensor) -> bool:
    """Whether the bytes in the file are those of the tensor's memory."""
    if tensor.dtype != getattr(torch, stored.dtype) or not has_memory(tensor):
        return False
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _target_tensors(target: torch.nn.Module | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(target, torch.nn.Module):
        return target.state_dict(keep_vars=True)
    return target


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names to tensors (or their stand-ins) of nested dicts and lists."""
    if isinstance(tree, torch.Tensor | _Ref):
        return {prefix: tree}
    if isinstance(tree, Mapping):
        items = ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, list | tuple):
        items = ((str(i), value) for i, value in enumerate(tree))
    else:
        return {}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _subtree(state: Any, key: str | None, path: str, wanted: Mapping[str, Any]) -> Any:
    """The part of the file that is meant: at ``key``, or the one that can be."""
    if key is not None:
        for step in key.split("."):
            if not isinstance(state, Mapping) or step not in state:
                have = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
                raise KeyError(f"{path}: no entry {key!r}; at {step!r} the file has: {have}")
            state = state[step]
        return state
    if not isinstance(state, Mapping):
        raise StateFileError(f"expected a dict of tensors, found {type(state).__name__}", path=path)
    if any(isinstance(value, torch.Tensor | _Ref) for value in state.values()):
        return state
    holders = [name for name, value in state.items() if _flatten(value)]
    if "module" in holders:
        return state["module"]
    if len(holders) == 1:
        return state[holders[0]]
    if wanted.keys() <= _flatten(state).keys():  # a model of named parts, saved part by part
        return state
    problem = f"several entries hold tensors ({', '.join(map(str, holders))}): say which with key="
    raise StateFileError(problem if holders else "the file holds no tensors", path=path)


def _compare(found: Mapping[str, Any], wanted: Mapping[str, torch.Tensor], cast: bool) -> LoadReport:
    mismatched = {}
    for name in found:
        if name not in wanted:
            continue
        value = found[name].stored if isinstance(found[name], _Ref) else found[name]
        ours, theirs = list(wanted[name].shape), list(value.shape)
        dtype = str(value.dtype).removeprefix("torch.")
        target_dtype = str(wanted[name].dtype).removeprefix("torch.")
        if ours != theirs:
            mismatched[name] = f"shape {theirs} in the file, {ours} in the target"
        elif not cast and dtype != target_dtype:
            mismatched[name] = f"dtype {dtype} in the file, {target_dtype} in the target"
    missing = tuple(name for name in wanted if name not in found)
    unexpected = tuple(name for name in found if name not in wanted)
    return LoadReport(missing, unexpected, mismatched)


def _describe(report: LoadReport) -> str:
    lines = ["the file and the target differ, nothing was loaded (strict=False loads what matches)"]
    mismatched = [f"{name} ({reason})" for name, reason in report.mismatched.items()]
    for title, names in (
        ("missing in the file", report.missing),
        ("unexpected in the file", report.unexpected),
        ("mismatched", mismatched),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"  {title}: {', '.join(names[:_SHOWN])}{more}")
    return "\n".join(lines)
