"""Weights in a file: the model, what it is, its vocabulary and its codec, so that the file alone can speak."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stateio
import torch
from torch import Tensor

from vall_e.codecs.melvq import MelVQ
from vall_e.model.growth import lay_out_weights
from vall_e.model.model import VallE
from vall_e.model.spec import ModelSpec
from vall_e.tokenizer import NaiveTokenizer, Tokenizer, conflict

_CODEC = "codec."
_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")


class WeightsError(ValueError):
    """A file that holds no usable weights; the message says what is missing."""


@dataclass(frozen=True)
class Voice:
    """A loaded model with what it needs to speak.

    Attributes:
        model: in evaluation mode.
        tokenizer: with the vocabulary it was trained on.
        codec: that its codes belong to; None when the file holds none.
        settings: how it was trained to be used: `prompt_seconds`, `frames_per_phone`, `sampling`, `tasks`,
            `most_phones`, `most_frames`.
        stats: `global_step` and the like.
    """

    model: VallE
    tokenizer: Tokenizer
    codec: MelVQ | None
    settings: dict[str, Any]
    stats: dict[str, Any]


def weights_file(
    tensors: dict[str, Tensor],
    spec: ModelSpec,
    *,
    tokenizer: Tokenizer,
    codec: MelVQ | None,
    settings: dict[str, Any],
    stats: dict[str, Any],
) -> dict[str, Any]:
    """What a file of weights holds, in the established layout: flat tensors, and `config`, `stats` and `userdata`
    (the vocabulary, and the `tokenizer.json` where there is one), which SafeTensors files carry as JSON in their
    metadata.

    The codec lies beside the model's tensors, under names that begin with `codec.`.
    """
    if codec is not None:
        tensors = tensors | {_CODEC + k: v for k, v in codec.state().items()}
    userdata = {"symmap": tokenizer.vocabulary, "synthesis": settings}
    if tokenizer.json is not None:
        userdata["tokenizer"] = tokenizer.json
    return {"module": tensors, "config": spec.to_config(), "stats": stats, "userdata": userdata}


def load_weights(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    dtype: str = "float32",
    lora: str | Path | None = None,
    lora_strength: float = 1.0,
    config: dict[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Voice:
    """Load weights, ours or established ones, exports or checkpoints.

    Args:
        path: a file; or a checkpoint folder, in which `latest` names the checkpoint.
        device: where to.
        dtype: of the parameters: float32, bfloat16, float16.
        lora: an adapter for them.
        lora_strength: of the adapter.
        config: a model's entry in a configuration, for a file that holds none. Without it, that of an export
            beside the checkpoint, or of the `config.yaml` above it, is taken.
        tokenizer: that the weights were trained with, for a file that holds none.

    Raises:
        WeightsError: the file is missing or holds no model, or it was trained with another tokenizer.
        stateio.StateFileError: the file is damaged.
    """
    path = _file_in(Path(path))
    tensors, codec, held = _read(path)
    spec = _spec_of(path, tensors, config or held.get("config"))
    model = _model_of(path, tensors, spec)
    if lora is not None:
        from vall_e.adapter import applied

        model = _model_of(path, applied(model.float(), Path(lora), lora_strength), spec)
    model.to(present(device), getattr(torch, dtype)).requires_grad_(True)
    userdata = held.get("userdata") or {}
    return Voice(
        model=model.eval(),
        tokenizer=_tokenizer(path, userdata, tokenizer, spec),
        codec=codec,
        settings=userdata.get("synthesis") or {},
        stats=held.get("stats") or {},
    )


def load_model(path: str | Path, device: str | torch.device = "cpu") -> VallE:
    """The model in a file of weights, or in the newest checkpoint of a folder, ready to score and generate."""
    model = load_weights(path, device).model
    lay_out_weights(model)
    return model


def spec_in(path: str | Path) -> ModelSpec:
    """What the model in a file of weights is, without making it.

    Raises:
        WeightsError, stateio.StateFileError: as of `load_weights`.
    """
    path = _file_in(Path(path))
    tensors, _, held = _read(path)
    return _spec_of(path, tensors, held.get("config"))


def _spec_of(path: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None) -> ModelSpec:
    try:
        spec = ModelSpec.from_config(config or _config_near(path))
        return spec.matching({name: tuple(t.shape) for name, t in tensors.items()})
    except ValueError as e:
        raise WeightsError(f"{path}: {str(e).removeprefix(f'{path}: ')}") from e


def _model_of(path: Path, tensors: dict[str, Tensor], spec: ModelSpec) -> VallE:
    with torch.device("meta"):
        model = VallE(spec)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as e:
        raise WeightsError(f"{path}: these tensors are not those of a version 5 model: {e}") from e
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(
                f"{path}: {name} holds NaN or infinity: the training diverged; take an earlier checkpoint"
            )
    return model


def present(name: str | torch.device) -> torch.device:
    """A device that is here.

    Raises:
        ValueError: it is not.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device: {str(name)!r} cannot be used here: {str(e).splitlines()[0]}") from e


def _file_in(path: Path) -> Path:
    """The file itself, or the newest checkpoint's in a folder `ckpt/<name>`, or that in `ckpt/<name>/<tag>`."""
    if path.is_dir():
        path = path.resolve()
        latest = path / "latest"
        folder = path / latest.read_text(encoding="utf-8").strip() if latest.is_file() else path
        manifest = stateio.json_read(folder / "manifest.json", {})
        names = [f"{engine}.sft" for engine in manifest.get("engines", ())] or ["state.sft", "state.pth"]
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise WeightsError(f"{path}: no weights in this folder (looked for {folder}/{', '.join(names)})")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; `vall-e-train` exports ckpt/<name>/fp32.sft when it ends")
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], MelVQ | None, dict[str, Any]]:
    """(the model's tensors, the codec if the file has one, everything in the file)."""
    held = stateio.load(path)
    held = held if isinstance(held, dict) else {}
    tensors = held.get("module", held)  # others' files hold the tensors alone
    tensors = {_PREFIX.sub("", k): t for k, t in tensors.items() if isinstance(t, Tensor)}
    tensors = {k: t for k, t in tensors.items() if not k.endswith(".inv_freq")}
    if "lora" in held or any(".lora_" in k for k in tensors):
        raise WeightsError(
            f"{path}: holds an adapter; give the weights that it was trained on as the model, and the exported "
            "ckpt/<name>/lora.sft as the adapter (lora)"
        )
    if "model.norm.weight" not in tensors:
        raise WeightsError(f"{path}: holds no VALL-E weights (no tensor model.norm.weight)")
    state = {k.removeprefix(_CODEC): tensors.pop(k) for k in list(tensors) if k.startswith(_CODEC)}
    return tensors, MelVQ.from_state(state) if state else None, held


def _tokenizer(path: Path, userdata: dict[str, Any], given: Tokenizer | None, spec: ModelSpec) -> Tokenizer:
    """The tokenizer in a file of weights, or the one given for a file without."""
    held: Tokenizer | None = None
    if userdata.get("tokenizer"):
        from vall_e.tokenizer_json import JsonTokenizer

        held = JsonTokenizer(userdata["tokenizer"], path)
    elif userdata.get("symmap"):
        held = NaiveTokenizer(userdata["symmap"])
    if given is not None:
        if held is not None and (why := conflict(held, given)):
            raise WeightsError(f"{path}: trained with another tokenizer than the one given (tokenizer_path): {why}")
        most = max(given.vocabulary.values())
        if most >= spec.phoneme_tokens:
            raise WeightsError(
                f"{path}: the weights have rows for {spec.phoneme_tokens} phonemes, but the tokenizer given "
                f"(tokenizer_path) has ids up to {most}: they were trained with another one"
            )
    return held or given or NaiveTokenizer()


def _config_near(path: Path) -> dict[str, Any]:
    """The model's entry for a checkpoint without one: of an export in the folder above, or of the YAML file above.

    Existing checkpoints lie at `ckpt/<name>/<tag>/state.sft` and leave it out; all but the number of heads could
    be read off the shapes.
    """
    for export in sorted(path.parent.parent.glob("*.sft")):
        metadata = stateio.inspect(export).metadata
        config = metadata.get("config")
        if config and "lora" not in metadata:
            return json.loads(config) if isinstance(config, str) else config
    for folder in path.resolve().parents[:4]:
        if (folder / "config.yaml").is_file():
            import yaml

            entries = (yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}).get("models") or ()
            own = [e for e in entries if e.get("name", "ar+nar") == path.parent.parent.name]
            if own or len(entries) == 1:
                return (own or entries)[0]
    raise WeightsError(
        f"{path}: the file holds no `config`, and neither an export beside it nor a config.yaml above it tells what "
        "model this is; give the model's entry of the YAML file: load_weights(path, config={...})"
    )
