"""Adapters that are on a model: counted, switched, scaled, merged."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from torch import Tensor, nn

from wrapkit._handle import Handle
from wrapkit.lora._layer import Adapter, LoRALayer
from wrapkit.lora._parametrize import Delta


def holders(model: nn.Module, aliases: bool = False) -> Iterator[tuple[str, LoRALayer | Delta]]:
    """What carries adapters in a model, under the first name (or all) that the layer had without them."""
    for name, module in model.named_modules(remove_duplicate=not aliases):
        if isinstance(module, LoRALayer):
            yield name, module
        elif isinstance(module, Delta):
            yield name.removesuffix("0").removesuffix("parametrizations.weight.").removesuffix("."), module


def on(holder: LoRALayer | Delta) -> dict[str, Adapter]:
    """The adapters on one layer."""
    return holder.adapters if isinstance(holder, LoRALayer) else {holder.name: holder.adapter}


def names(model: nn.Module) -> list[str]:
    """The adapters on a model, oldest first."""
    return list(dict.fromkeys(name for _, holder in holders(model) for name in on(holder)))


def strength(model: nn.Module, name: str, factor: float) -> None:
    """Multiply what an adapter adds by a factor: 0 switches it off, 1 is how it was trained.

    Raises:
        ValueError: no such adapter, or it is merged.
    """
    known(model, name)
    layers = [(layer, on(layer)[name]) for _, layer in holders(model) if name in on(layer)]
    if any(isinstance(layer, LoRALayer) and layer.merged is not None for layer, _ in layers):
        raise ValueError(f"the adapter {name!r} is merged: unmerge it before its strength is changed")
    for _, adapter in layers:
        adapter.strength = factor


def enable(model: nn.Module, *chosen: str) -> None:
    """Switch on these adapters (without names: all), and the others off."""
    for name in chosen:
        known(model, name)
    for name in names(model):
        strength(model, name, 1.0 if not chosen or name in chosen else 0.0)


def disable(model: nn.Module) -> None:
    """Switch all adapters off: the model computes as if it had none."""
    for name in names(model):
        strength(model, name, 0.0)


def merge(model: nn.Module) -> Handle:
    """Compute with the active adapters added to the weights, as fast as without adapters.

    The weights themselves and the state dict stay as they are, so `undo()` of the handle returned is exact, any
    number of times and in any type. It holds the sums beside the weights; to get rid of the adapters in a file,
    see `merged_state`.

    Raises:
        ValueError: no adapters, merged already, or weights that cannot be added to (quantised ones).
    """
    layers = [(name, layer) for name, layer in holders(model) if isinstance(layer, LoRALayer)]
    if not layers:
        raise ValueError(f"there is nothing to merge in this {type(model).__name__}: no layer is wrapped by an adapter")
    for name, layer in layers:
        if layer.merged is not None:
            raise ValueError(f"{name} is merged already")
    sums = [layer.sum() for _, layer in layers]
    handle = Handle(model, [name for name, _ in layers])
    for (_, layer), total in zip(layers, sums, strict=True):
        layer.merged = total
        handle.on_undo(layer.unmerge)
    return handle


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model as it would be without adapters but computing the same, to be exported.

    Raises:
        ValueError: weights that cannot be added to (quantised ones).
    """
    state = base_state(model)
    for name, layer in holders(model, aliases=True):
        if isinstance(layer, LoRALayer):
            weight = layer.sum() if layer.merged is None else layer.merged
        else:
            weight = model.get_submodule(name).weight.detach()
        state[f"{name}.weight".lstrip(".")] = weight
    return state


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model as it was before adapters were added."""
    kinds = {name: type(layer) for name, layer in holders(model, aliases=True)}
    renamed = {key: _name_without(key, kinds) for key in model.state_dict()}
    return {renamed[key]: value for key, value in model.state_dict().items() if renamed[key] is not None}


def _name_without(key: str, kinds: dict[str, type]) -> str | None:
    """What a tensor is called on the model without adapters; None for an adapter's own."""
    parts = key.split(".")
    for i in range(len(parts)):
        kind = kinds.get(".".join(parts[:i]))
        if kind is LoRALayer:
            return ".".join(parts[:i] + parts[i + 1 :]) if parts[i] == "base" else None
        if kind is Delta and parts[i] == "parametrizations":
            return ".".join([*parts[:i], "weight"]) if parts[-1] == "original" else None
    return key


def known(model: nn.Module, name: str) -> None:
    """Raise ValueError unless the model has an adapter of this name."""
    present = names(model)
    if name not in present:
        close = difflib.get_close_matches(name, present, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"the model has no adapter {name!r}{meant}; it has: {', '.join(present) or 'none'}")
