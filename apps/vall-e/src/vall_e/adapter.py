"""LoRA adapters in files, and the weights that they belong to."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stateio
import torch
import wrapkit
from torch import Tensor

if TYPE_CHECKING:
    from vall_e.model.model import VallE

_NAME = "lora"
_SKETCHED = ("sep", "model.norm.weight")
"""Parameters that no adapter is put on, and no backend packs."""
_COUNT = 32
_TOLERANCE = 0.02
"""Of a value: bfloat16 keeps 0.4 % of it."""


class AdapterError(ValueError):
    """A file that holds no adapter, or one for other weights."""


def about(model: VallE, config: dict[str, Any]) -> dict[str, str]:
    """What an adapter's file says of itself and of the weights under it, so that another model is noticed.

    Args:
        model: the weights, with or without adapters.
        config: the adapter's entry in the configuration.
    """
    return {"config": json.dumps(config), "base": json.dumps(_sketch(model.state_dict()))}


def _sketch(state: dict[str, Tensor]) -> dict[str, list[float]]:
    """A few values by which weights are known again, in whatever dtype."""
    return {name: state[name].detach().flatten()[:_COUNT].float().tolist() for name in _SKETCHED}


def applied(model: VallE, path: Path, strength: float) -> dict[str, Tensor]:
    """The state of a model with an adapter added to its weights.

    Args:
        path: a file of ours, .sft or .pth, or a folder in PEFT's layout.

    Raises:
        AdapterError: it is none, it holds what is not a number, or it was trained on other weights.
    """
    if path.is_dir():
        try:
            wrapkit.lora.load(model, path, _NAME)
        except FileNotFoundError as e:
            raise AdapterError(f"{path}: no adapter in PEFT's layout in this folder: {e}") from e
    else:
        held = _read(path)
        _check(path, held, model)
        with tempfile.TemporaryDirectory() as folder:  # a pickle too becomes the one form that wrapkit reads
            stateio.save(held, Path(folder) / "lora.sft")
            try:
                wrapkit.lora.load(model, Path(folder) / "lora.sft", _NAME)
            except ValueError as e:
                raise AdapterError(f"{path}: {str(e).partition(' ')[2]}") from e
    wrapkit.lora.strength(model, _NAME, strength)
    return wrapkit.lora.merged_state(model)


def export(path: Path, out: Path, dtype: str) -> int:
    """Write an adapter alone, in another dtype or form of file.

    Returns:
        How many numbers it has.

    Raises:
        AdapterError: the file is none.
    """
    held = _read(path)
    stateio.save(held, out, dtype=dtype)
    return sum(t.numel() for t in held["module"].values())


def is_adapter(path: Path) -> bool:
    """Whether a file of weights is an adapter."""
    return "lora" in stateio.inspect(path).metadata


def _read(path: Path) -> dict[str, Any]:
    try:
        held = stateio.load(path)
    except FileNotFoundError as e:
        raise AdapterError(f"{path}: no such file; `vall-e-train` exports ckpt/<name>/lora.sft") from e
    except stateio.StateFileError as e:
        raise AdapterError(f"{path}: not an adapter: {e}") from e
    if not isinstance(held, dict) or "lora" not in held or not isinstance(held.get("module"), dict):
        raise AdapterError(f"{path}: not an adapter: it says nothing of one (`lora`)")
    return held


def _check(path: Path, held: dict[str, Any], model: VallE) -> None:
    for name, tensor in held["module"].items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{path}: {name} holds NaN or infinity: its training diverged")
    alphas = held["lora"].get("alpha", {})
    if missing := [layer for layer in alphas if f"{layer}.lora_A" not in held["module"]]:
        raise AdapterError(f"{path}: incomplete: no values for {', '.join(missing)}")
    own = _sketch(model.state_dict())
    for name, values in held.get("base", {}).items():  # files made before it was kept have none
        one, other = torch.tensor(values), torch.tensor(own[name])
        if one.shape != other.shape or ((one - other).abs() > _TOLERANCE * other.abs() + 1e-4).any():
            raise AdapterError(f"{path}: this adapter was trained on other weights ({name} differs)")
