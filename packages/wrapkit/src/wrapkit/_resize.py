"""`resize`: a weight with more or fewer rows, for a grown vocabulary or a cut one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wrapkit._handle import Handle
from wrapkit._originals import Conv1d, Conv2d, Embedding, Linear

# What layers say about the size of their weight: attribute -> dimension.
_SIZES: dict[type[nn.Module], dict[str, int]] = {
    Linear: {"out_features": 0, "in_features": 1},
    Embedding: {"num_embeddings": 0, "embedding_dim": 1},
    Conv1d: {"out_channels": 0, "in_channels": 1},
    Conv2d: {"out_channels": 0, "in_channels": 1},
}


def resize(model: nn.Module, name: str, size: int, dim: int = 0) -> Handle:
    """Trim or grow a parameter along one dimension. Tied places get the same new one.

    What is kept keeps its values; what is new is drawn from a normal distribution of mean zero with the standard
    deviation of the old values. A bias along the first dimension of its layer's weight goes along, and so do the
    layers' attributes (out_features, num_embeddings, …). Optimizers must be built anew.

    Args:
        name: dotted, of a parameter of any number of dimensions.
        size: the new length.
        dim: of the parameter; negative counts from the end.

    Returns:
        A handle; `undo()` puts the old parameters back.

    Raises:
        ValueError: no such parameter or dimension, or a size below 1.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if name not in parameters:
        raise ValueError(f"there is no parameter {name!r}; there are {', '.join(list(parameters)[:5])}, …")
    old = parameters[name]
    if not -old.ndim <= dim < old.ndim:
        raise ValueError(f"{name} has {old.ndim} dimensions, got dim={dim}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    dim %= old.ndim
    new = _resized(old, size, dim)
    handle = Handle(model, [])
    for prefix, module in model.named_modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is old:
                _put(handle, module, key, new)
                handle.changed.append(f"{prefix}.{key}".lstrip("."))
                if key == "weight":
                    _follow(handle, prefix, module, size, dim)
    return handle


def _resized(old: nn.Parameter, size: int, dim: int) -> nn.Parameter:
    shape = list(old.shape)
    shape[dim] = size
    kept = min(size, old.size(dim))
    data = torch.empty(shape, dtype=old.dtype, device=old.device)
    with torch.no_grad():
        data.narrow(dim, 0, kept).copy_(old.narrow(dim, 0, kept))
        if size > kept:
            deviation = old.float().std(correction=0).item()
            data.narrow(dim, kept, size - kept).normal_(0, deviation)
    return nn.Parameter(data, requires_grad=old.requires_grad)


def _follow(handle: Handle, prefix: str, module: nn.Module, size: int, dim: int) -> None:
    """What else has to fit the weight of a layer."""
    kind = next((kind for kind in _SIZES if isinstance(module, kind)), None)
    if kind is None:
        return
    for attribute in (a for a, of_dim in _SIZES[kind].items() if of_dim == dim):
        before = getattr(module, attribute)
        setattr(module, attribute, size)
        handle.on_undo(lambda a=attribute, b=before: setattr(module, a, b))
    bias = module._parameters.get("bias")
    if bias is not None and dim == 0:
        _put(handle, module, "bias", _resized(bias, size, 0))
        handle.changed.append(f"{prefix}.bias".lstrip("."))


def _put(handle: Handle, module: nn.Module, key: str, new: Tensor) -> None:
    old = module._parameters[key]

    def check() -> str | None:
        return None if module._parameters.get(key) is new else f"the {key} of a {type(module).__name__} was replaced"

    module._parameters[key] = new  # type: ignore[assignment]
    handle.on_undo(lambda: module._parameters.update({key: old}), check)
