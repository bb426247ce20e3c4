"""The model that a configuration trains: its shape from configuration and dataset, its weights, what is changed in it."""

from __future__ import annotations

import fnmatch
from dataclasses import replace

from vall_e.config import Config
from vall_e.data.open import DatasetOf
from vall_e.model.model import VallE
from vall_e.model.spec import ModelSpec


def spec_of(cfg: Config, data: DatasetOf) -> ModelSpec:
    """The shape of the model: what the dataset fixes is taken from it.

    Raises:
        ValueError: the configuration names sizes that the dataset does not have.
    """
    at = cfg.models.index(cfg.model)
    entry = cfg.to_state()["models"][at]
    spec = ModelSpec.from_config(entry)
    given = entry["size"] if isinstance(entry["size"], dict) else {}
    info = data.info
    if info is not None:
        for name, found, needed in (
            ("audio_tokens", spec.audio_tokens, info.entries),
            ("resp_levels", spec.levels, info.levels),
        ):
            if name in given and found != needed:
                raise ValueError(
                    f"models[{at}].size.{name} is {found}, but the codec of {data.file.path} has {needed}; "
                    f"set {name}: {needed} or leave it out"
                )
        spec = replace(spec, audio_tokens=info.entries, levels=info.levels)
    if max(data.vocabulary.values()) >= spec.phoneme_tokens:
        raise ValueError(
            f"models[{at}].size.phoneme_tokens is {spec.phoneme_tokens}, but the vocabulary of {data.file.path} goes "
            f"up to {max(data.vocabulary.values())}"
        )
    return spec


def build_model(cfg: Config, spec: ModelSpec) -> VallE:
    """The model, with the weights it starts from and the parameters that are not trained."""
    model = VallE(spec)
    for pattern in cfg.model.frozen_params:
        frozen = [p for name, p in model.named_parameters() if fnmatch.fnmatch(name, pattern)]
        if not frozen:
            raise ValueError(f"frozen_params: {pattern!r} matches no parameter")
        for p in frozen:
            p.requires_grad_(False)
    return model
