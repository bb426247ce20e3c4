"""An adapter from a file onto a model."""

from __future__ import annotations

import os

import torch
from torch import nn

from wrapkit._handle import Handle
from wrapkit._policy import Policy
from wrapkit.lora._control import holders, names, on
from wrapkit.lora._files import Stored, factors, read
from wrapkit.lora._layer import LoRALayer, sides, unsupported
from wrapkit.lora._spec import LoRA


def load(
    model: nn.Module, path: str | os.PathLike[str], name: str = "default", *, train_base: bool = False
) -> Handle:
    """Put a stored adapter on a model. If it has one of that name, on the same layers, its values are replaced.

    Returns:
        A handle; `undo()` takes off what was added (nothing, if the adapter was there).

    Raises:
        ValueError: the file is none, or was made for another model: every layer that is missing, and every shape
            that differs, is listed. The model is not changed then.
        FileNotFoundError, BackendUnavailable: as of `read`.
    """
    stored = read(path)
    problems = _problems(model, stored, name)
    if problems:
        raise ValueError(f"{os.fspath(path)} does not fit this {type(model).__name__}: {'; '.join(problems)}")
    handle = Handle(model, list(stored.adapters))
    if name not in names(model):
        for layer, adapter in stored.adapters.items():
            spec = LoRA(
                adapter.rank,
                adapter.rank * adapter.scale,
                Policy([layer]) if layer else None,
                adapter.dropout,
                name,
                embeddings=True,
                form=stored.form,  # type: ignore[arg-type] - checked by LoRA
                train_base=train_base,
            )
            handle.include(spec.apply(model))
    with torch.no_grad():
        for layer, holder in holders(model):
            for kind, parameter in factors(holder, name).items() if name in on(holder) else ():
                parameter.copy_(stored.tensors[layer][kind])
    return handle


def _problems(model: nn.Module, stored: Stored, name: str) -> list[str]:
    """What stands in the way of loading, all of it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    present = {layer: factors(holder, name) for layer, holder in holders(model) if name in on(holder)}
    problems = [f"it has no values for {layer}" for layer in present.keys() - stored.tensors.keys()]
    for layer, own in stored.tensors.items():
        if present and layer not in present:
            problems.append(f"{layer} carries no adapter {name!r} here")
        elif layer not in modules:
            problems.append(f"no layer {layer}")
        else:
            problems += _differences(layer, modules[layer], own, present.get(layer))
    return sorted(problems)


def _differences(
    layer: str, module: nn.Module, own: dict[str, torch.Tensor], present: dict[str, torch.Tensor] | None
) -> list[str]:
    base = module.base if isinstance(module, LoRALayer) else module
    if reason := unsupported(base):
        return [f"{layer}: {reason}"]
    out, into = sides(base)
    rank = own["lora_A"].size(0)
    expected = {"lora_A": (rank, *into), "lora_B": (out, rank), "magnitude": (out,)}
    if present is not None:
        expected |= {kind: tuple(tensor.shape) for kind, tensor in present.items()}
    return [
        f"{layer}.{kind} is {tuple(tensor.shape)}, expected {expected[kind]}"
        for kind, tensor in own.items()
        if tuple(tensor.shape) != expected[kind]
    ]
