"""What must be alike on every rank, proved to be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from distkit.ranks import is_distributed
from distkit.words import gather_objects

_MISSING = "nothing"


class RanksDiffer(RuntimeError):
    """Something that has to be the same on every rank is not. Names the first difference."""


def check_same(tree: Any, what: str) -> None:
    """Compare a value over the ranks. Costs a hash of it and one exchange of 32 bytes when it is alike.

    Args:
        tree: nested dicts, lists and tuples of tensors and plain values (others by their `repr`); a
            module's `state_dict()`, a config, the first batch's ids.
        what: its name for the message.

    Raises:
        RanksDiffer: on every rank, with the first place that differs and the values there.
    """
    if not is_distributed():
        return
    leaves = dict(_leaves(tree, ""))
    whole = hashlib.sha256(repr(sorted(leaves.items())).encode()).digest()
    digests = gather_objects(whole)
    if all(d == digests[0] for d in digests):
        return
    everyone = gather_objects(leaves)
    reference = everyone[0]
    for rank, other in enumerate(everyone):
        for path in dict.fromkeys((*reference, *other)):
            here, there = reference.get(path, _MISSING), other.get(path, _MISSING)
            if here != there:
                raise RanksDiffer(
                    f"{what} differs between the ranks, first at {path or 'the top'}: "
                    f"rank 0 has {here}, rank {rank} has {there}"
                )


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, torch.Tensor):
        tensor = tree.detach().cpu().contiguous()
        data = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor
        digest = hashlib.sha256(data.numpy().tobytes() if tensor.numel() else b"").hexdigest()[:12]
        yield path, f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} #{digest}"
    elif isinstance(tree, Mapping):
        yield f"{path}{{}}", f"{len(tree)} entries"
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        yield f"{path}[]", f"{len(tree)} items"
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{path}[{i}]")
    else:
        yield path, repr(tree)
