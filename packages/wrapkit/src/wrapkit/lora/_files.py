"""Adapters in files: PEFT's folder, and one file by itself, `lora.sft`.

PEFT's layout is described in its documentation (huggingface.co/docs/peft, "PEFT checkpoint format"):
`adapter_model.safetensors` with `base_model.model.<layer>.lora_A.weight`, and `adapter_config.json`. The other holds
`<layer>.lora_A` and `<layer>.lora_B`, loralib's names, and the rest as JSON under "lora" in its metadata.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wrapkit._originals import Embedding
from wrapkit.backends._probe import load as load_module
from wrapkit.lora._control import holders, known, on
from wrapkit.lora._layer import Adapter, LoRALayer
from wrapkit.lora._parametrize import Delta

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
# Our names and PEFT's, which has others for embeddings. "magnitude" is DoRA's.
_PEFT = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
_PEFT_EMBEDDING = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}


@dataclass
class Stored:
    """An adapter outside a model.

    Attributes:
        tensors: layer -> "lora_A", "lora_B" and, for DoRA, "magnitude".
        adapters: layer -> rank and scale.
        form: as of `LoRA`; "wrap" and "parametrize" are stored alike.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    form: str = "wrap"


def take(model: nn.Module, name: str) -> Stored:
    """An adapter as it is on a model now; the tensors are the parameters themselves."""
    known(model, name)
    stored = Stored()
    for layer, holder in holders(model):
        if name not in on(holder):
            continue
        stored.adapters[layer] = on(holder)[name]
        stored.tensors[layer] = factors(holder, name)
        if isinstance(holder, Delta):
            stored.form = "parametrize" if holder.magnitude is None else "dora"
    return stored


def factors(holder: LoRALayer | Delta, name: str) -> dict[str, Tensor]:
    """The parameters of one adapter on one layer."""
    if isinstance(holder, LoRALayer):
        return {"lora_A": holder.lora_A[name], "lora_B": holder.lora_B[name]}
    own: dict[str, Tensor] = {"lora_A": holder.lora_A, "lora_B": holder.lora_B}
    return own if holder.magnitude is None else {**own, "magnitude": holder.magnitude}


def save(
    model: nn.Module, path: str | os.PathLike[str], name: str = "default", metadata: Mapping[str, str] | None = None
) -> None:
    """Write an adapter: to one file if the path ends in .sft or .safetensors, else to a folder in PEFT's layout.

    Args:
        metadata: strings to keep in the header of the file of weights.

    Raises:
        ValueError: the model has no such adapter.
        BackendUnavailable: safetensors is not installed.
    """
    path, stored = Path(path), take(model, name)
    if path.suffix in (".sft", ".safetensors"):
        tensors = {_join(layer, kind): t for layer, own in stored.tensors.items() for kind, t in own.items()}
        about = {
            "name": name,
            "form": stored.form,
            "alpha": {layer: a.rank * a.scale for layer, a in stored.adapters.items()},
            "dropout": {layer: a.dropout for layer, a in stored.adapters.items()},
        }
        _write_tensors(path, tensors, {**(metadata or {}), "lora": json.dumps(about)})
        return
    path.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, own in stored.tensors.items():
        embedding = isinstance(_layer(model, layer), Embedding)
        for kind, tensor in own.items():
            if kind == "lora_B" and own["lora_A"].ndim > 2:  # a convolution's, with a kernel of 1
                tensor = tensor.view(*tensor.shape, *[1] * (own["lora_A"].ndim - 2))
            tensors[PREFIX + _join(layer, (_PEFT_EMBEDDING if embedding else _PEFT)[kind])] = tensor
    _write_tensors(path / WEIGHTS, tensors, dict(metadata or {}))
    _write(path / CONFIG, json.dumps(_peft_config(stored), indent=2).encode())


def read(path: str | os.PathLike[str]) -> Stored:
    """An adapter from either layout, told apart as `save` does.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an adapter, or one with parts that cannot be used here; all of them are listed.
        BackendUnavailable: safetensors is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_peft(path)
    with load_module("safetensors", "safetensors", "lora").safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    about = json.loads(metadata.get("lora", "{}"))
    stored = Stored(form=about.get("form", "wrap"))
    strange = []
    for key, tensor in tensors.items():
        layer, _, kind = key.rpartition(".")
        if kind in _PEFT:
            stored.tensors.setdefault(layer, {})[kind] = tensor
        else:
            strange.append(key)
    _complete(stored, strange, path)
    for layer, own in stored.tensors.items():
        rank = own["lora_A"].size(0)
        alpha = about.get("alpha", {}).get(layer, rank)
        stored.adapters[layer] = Adapter(rank, alpha / rank, about.get("dropout", {}).get(layer, 0.0))
    return stored


def _read_peft(path: Path) -> Stored:
    config = json.loads((path / CONFIG).read_text("utf-8"))
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path / CONFIG} describes a {config.get('peft_type')} adapter, not LORA")
    stored = Stored(form="dora" if config.get("use_dora") else "wrap")
    kinds = {peft: kind for table in (_PEFT, _PEFT_EMBEDDING) for kind, peft in table.items()}
    strange = []
    for key, tensor in load_module("safetensors.torch", "safetensors", "lora").load_file(path / WEIGHTS).items():
        suffix = next((suffix for suffix in kinds if key.endswith(f".{suffix}")), None)
        if suffix is None or not key.startswith(PREFIX):
            strange.append(key)
            continue
        layer = key.removeprefix(PREFIX).removesuffix(suffix).removesuffix(".")
        kind = kinds[suffix]
        stored.tensors.setdefault(layer, {})[kind] = tensor.flatten(1) if kind == "lora_B" else tensor
    _complete(stored, strange, path)
    for layer, own in stored.tensors.items():
        rank = own["lora_A"].size(0)
        alpha = _pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha", rank))
        divisor = rank**0.5 if config.get("use_rslora") else rank
        stored.adapters[layer] = Adapter(rank, alpha / divisor, config.get("lora_dropout", 0.0))
    return stored


def _complete(stored: Stored, strange: list[str], path: Path) -> None:
    halves = [layer for layer, own in stored.tensors.items() if not {"lora_A", "lora_B"} <= own.keys()]
    problems = [f"unknown: {', '.join(strange)}"] if strange else []
    problems += [f"without their other half: {', '.join(halves)}"] if halves else []
    problems += ["it holds no adapter"] if not stored.tensors and not strange else []
    if problems:
        raise ValueError(f"{path} is not an adapter that can be loaded here; {'; '.join(problems)}")


def _pattern(patterns: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """PEFT's settings for single layers, keyed by the ends of their names."""
    found = (value for key, value in (patterns or {}).items() if layer == key or layer.endswith(f".{key}"))
    return next(found, default)


def _peft_config(stored: Stored) -> dict[str, Any]:
    ranks = {layer: a.rank for layer, a in stored.adapters.items()}
    alphas = {layer: a.rank * a.scale for layer, a in stored.adapters.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": next(iter(stored.adapters.values())).dropout,
        "rank_pattern": {layer: r for layer, r in ranks.items() if r != rank},
        "alpha_pattern": {layer: a for layer, a in alphas.items() if a != alpha},
        "target_modules": list(stored.adapters),
        "use_dora": stored.form == "dora",
        "use_rslora": False,
    }


def _layer(model: nn.Module, name: str) -> nn.Module:
    found = model.get_submodule(name)
    return found.base if isinstance(found, LoRALayer) else found


def _join(layer: str, kind: str) -> str:
    return f"{layer}.{kind}" if layer else kind


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    own = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    _write(path, load_module("safetensors.torch", "safetensors", "lora").save(own, {"format": "pt", **metadata}))


def _write(path: Path, content: bytes) -> None:
    """The whole file or none of it, also when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
