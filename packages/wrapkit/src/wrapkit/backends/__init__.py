"""Layers of optional packages, by name. Nothing is imported before it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from wrapkit._originals import Embedding, Linear
from wrapkit.backends import bitsandbytes, torchao, transformer_engine
from wrapkit.backends.bitnet import BitLinear

Factory = type[nn.Module] | Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Backend:
    """A kind of layer that can take the place of another.

    Args:
        replaces: old type -> new type, or function of the old module.
        injectable: gives the class that `inject` puts in place; None if the layers can only be made from others.
        refuses: why a module of a replaced type must stay as it is, or None. Raises BackendUnavailable where the
            package cannot be used at all.
    """

    replaces: Mapping[type[nn.Module], Factory]
    injectable: Callable[[], type] | None = None
    refuses: Callable[[nn.Module], str | None] = lambda old: None


BACKENDS: dict[str, Backend] = {
    "bitlinear": Backend({Linear: BitLinear}, lambda: BitLinear),
    "bnb.int8": Backend({Linear: bitsandbytes.int8}, refuses=bitsandbytes.refuses),
    "bnb.int8-training": Backend(
        {Linear: bitsandbytes.Int8Linear}, lambda: bitsandbytes.Int8Linear, bitsandbytes.refuses
    ),
    "bnb.stable-embedding": Backend(
        {Embedding: bitsandbytes.stable_embedding}, bitsandbytes.stable_embedding_class, bitsandbytes.refuses
    ),
    "torchao.float8": Backend({Linear: torchao.float8}, refuses=torchao.refuses_float8),
    "torchao.int8": Backend({Linear: torchao.int8}, refuses=torchao.refuses),
    "torchao.int8-dynamic": Backend({Linear: torchao.int8_dynamic}, refuses=torchao.refuses),
    "torchao.int4": Backend({Linear: torchao.int4}, refuses=torchao.refuses_int4),
    "te.fp8": Backend(
        {Linear: transformer_engine.linear}, transformer_engine.fp8_linear, transformer_engine.refuses
    ),
}


def backend(name: str) -> Backend:
    """The backend of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in BACKENDS:
        close = difflib.get_close_matches(name, BACKENDS, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"there is no backend {name!r}{meant}; known: {', '.join(sorted(BACKENDS))}")
    return BACKENDS[name]


def injectable(name: str) -> type:
    """The class that `inject(X=name)` puts in place.

    Raises:
        ValueError: an unknown name, or a backend whose layers are made from trained ones only.
        BackendUnavailable: the package behind it cannot be used here.
    """
    found = backend(name)
    if found.injectable is None:
        raise ValueError(
            f"{name} makes its layers from layers that have weights already: use replace once the model is built"
        )
    return found.injectable()
