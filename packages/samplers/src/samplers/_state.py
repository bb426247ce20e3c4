"""What a sampler stores: six plain values, checked in full before any of them is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict

OnMismatch = Literal["raise", "restart"]


class State(TypedDict, total=False):
    """Plain JSON, about 100 bytes. `position` counts items of the epoch, over all ranks."""

    algo: str
    n: int
    seed: int
    epoch: int
    position: int
    fingerprint: str


class StateMismatch(ValueError):
    """A state that belongs to another dataset, algorithm, version, seed or set of limits."""


def digest(parts: Iterable[bytes], size: int = 6) -> str:
    """A short hexadecimal fingerprint of some bytes."""
    h = hashlib.blake2b(digest_size=size)
    for part in parts:
        h.update(part)
    return h.hexdigest()


def read_state(state: Mapping[str, object], expected: Mapping[str, object], length: int) -> tuple[int, int]:
    """Check `state` against this sampler's constant values and return its (epoch, position).

    Raises:
        StateMismatch: naming every value that differs, with what was found and what was expected.
    """
    if not isinstance(state, Mapping):
        raise StateMismatch(f"a sampler state is a mapping, got {type(state).__name__}")
    wrong = [
        f"{key} is {state.get(key)!r}, this sampler's is {value!r}"
        for key, value in expected.items()
        if state.get(key) != value
    ]
    for key, limit in (("epoch", None), ("position", length)):
        value = state.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            wrong.append(f"{key} is {value!r}, not a count")
        elif limit is not None and value > limit:
            wrong.append(f"{key} is {value}, past the end at {limit}")
    if wrong:
        remedy = 'build the sampler as it was built, or load with on_mismatch="restart"'
        raise StateMismatch(
            f"this state was saved by another sampler: {'; '.join(wrong)}. To go on: {remedy}."
        )
    return state["epoch"], state["position"]  # type: ignore[return-value]
