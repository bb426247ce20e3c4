"""Weights in a file: the model, what it is, its vocabulary and its codec, so that the file alone can speak."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stateio
import torch

from vall_e.codecs.melvq import MelVQ
from vall_e.model.model import VallE
from vall_e.model.spec import ModelSpec
from vall_e.tokenizer import NaiveTokenizer

_CODEC = "codec."


class WeightsError(ValueError):
    """A file that holds no usable weights; the message says what is missing."""


@dataclass(frozen=True)
class Voice:
    """A loaded model with what it needs to speak.

    Attributes:
        model: in evaluation mode.
        tokenizer: with the vocabulary it was trained on.
        codec: that its codes belong to; None when the file holds none.
        settings: how it was trained to be used: `prompt_seconds`, `frames_per_phone`, `sampling`.
        stats: `global_step` and the like.
    """

    model: VallE
    tokenizer: NaiveTokenizer
    codec: MelVQ | None
    settings: dict[str, Any]
    stats: dict[str, Any]


def save_weights(
    path: Path,
    model: VallE,
    *,
    vocabulary: dict[str, int],
    codec: MelVQ | None,
    settings: dict[str, Any],
    stats: dict[str, Any],
) -> None:
    """Export a model in the established layout: flat tensors, and `config`, `stats`, `userdata` as JSON.

    The codec lies beside the model's tensors, under names that begin with `codec.`.
    """
    tensors = dict(model.state_dict())
    if codec is not None:
        tensors |= {_CODEC + k: v for k, v in codec.state().items()}
    stateio.save(
        {
            "module": tensors,
            "config": model.spec.to_config(),
            "stats": stats,
            "userdata": {"symmap": vocabulary, "synthesis": settings},
        },
        path,
    )


def load_weights(path: str | Path, device: str | torch.device = "cpu") -> Voice:
    """Load exported weights, ours or established ones, from the file alone.

    Raises:
        WeightsError: the file is missing or holds no model.
        stateio.StateFileError: the file is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; `vall-e-train` exports ckpt/<name>/fp32.sft when it ends")
    held = stateio.load(path)
    tensors = held.get("module") if isinstance(held, dict) else None
    if not isinstance(tensors, dict) or "model.norm.weight" not in tensors:
        raise WeightsError(f"{path}: holds no VALL-E weights (no tensor model.norm.weight)")
    codec_state = {k.removeprefix(_CODEC): tensors.pop(k) for k in list(tensors) if k.startswith(_CODEC)}
    spec = ModelSpec.from_config(held.get("config") or {})
    spec = spec.matching({name: tuple(t.shape) for name, t in tensors.items()})
    model = VallE(spec)
    model.load_state_dict(tensors)
    userdata = held.get("userdata") or {}
    return Voice(
        model=model.to(device).eval(),
        tokenizer=NaiveTokenizer(userdata.get("symmap")),
        codec=MelVQ.from_state(codec_state) if codec_state else None,
        settings=userdata.get("synthesis") or {},
        stats=held.get("stats") or {},
    )


def load_model(path: str | Path, device: str | torch.device = "cpu") -> VallE:
    """The model in a file of weights, ready to score and generate."""
    return load_weights(path, device).model
