"""The model that a configuration trains: its shape, the weights it starts from, and what is changed in it."""

from __future__ import annotations

import fnmatch
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import wrapkit
from torch import nn

from vall_e.config import Config, Optimizations
from vall_e.data.open import DatasetOf
from vall_e.model.attention import leave_uncompiled
from vall_e.model.model import VallE
from vall_e.model.spec import ModelSpec
from vall_e.tokenizer import Tokenizer, conflict

BLOCKS = wrapkit.Policy(["model.layers"])
"""The transformer's blocks: what is checkpointed, quantised and adapted."""

_BITSANDBYTES = {"adam": "adam8bit", "adamw": "adamw8bit", "sgd": "sgd8bit", "adagrad": "adagrad8bit"}
_DADAPTATION = {"adam": "dadapt-adam", "adamw": "dadapt-adam", "sgd": "dadapt-sgd"}


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
    phonemes = max(data.tokenizer.vocabulary.values()) + 1
    if "phoneme_tokens" not in given:
        return replace(spec, phoneme_tokens=max(spec.phoneme_tokens, phonemes))
    if phonemes > spec.phoneme_tokens:
        raise ValueError(
            f"models[{at}].size.phoneme_tokens is {spec.phoneme_tokens}, but the vocabulary of {data.file.path} goes "
            f"up to {phonemes - 1}; set phoneme_tokens: {phonemes} or leave it out"
        )
    return spec


def build_model(cfg: Config, spec: ModelSpec, tokenizer: Tokenizer) -> VallE:
    """The model on its device, with its weights, replacements, adapters and frozen parameters.

    Args:
        cfg: says what is changed in it.
        spec: its shape.
        tokenizer: of the dataset, which the weights to start from have to share.

    Raises:
        ValueError: the weights do not fit, or a pattern matches nothing.
        BackendUnavailable: an optimization whose package cannot be used here.
    """
    chosen = cfg.optimizations
    layers = _layers(chosen)
    with _injected(layers) if chosen.injects else nullcontext():
        model = VallE(spec)
    if cfg.model.path is not None:
        start_from(
            model,
            cfg.model.path,
            resize=cfg.trainer.resize_modules,
            strict=cfg.trainer.strict_loading,
            tokenizer=tokenizer,
        )
    model.to(cfg.torch_device())
    if chosen.replace and not chosen.injects:
        for kind, name in layers.items():
            wrapkit.replace(model, name, BLOCKS if kind is nn.Linear else wrapkit.Policy(types=[kind]))
    for pattern in cfg.model.frozen_params:
        _freeze(model, pattern)
    if cfg.lora is not None:
        _adapt(cfg, model)
    if cfg.trainer.gradient_checkpointing or chosen.unsloth:
        wrapkit.Checkpoint(BLOCKS, offload=chosen.unsloth, skip_last=chosen.unsloth and spec.layers > 1).apply(model)
    if chosen.model_offloading:
        try:
            wrapkit.Offload(**chosen.model_offloading).apply(model)
        except TypeError as e:
            raise ValueError(f"optimizations.model_offloading: {e}; its keys are those of wrapkit.Offload") from e
    if chosen.compile:
        leave_uncompiled()
        wrapkit.compile(model, BLOCKS, backend="inductor" if chosen.compile is True else chosen.compile, dynamic=True)
    return model


def teachers_of(cfg: Config, spec: ModelSpec) -> dict[str, VallE]:
    """The models to distil from, by name, frozen.

    Raises:
        ValueError: a teacher without weights, or of other outputs than the student's.
    """
    from vall_e.weights import load_weights

    teachers = {}
    for entry in (m for m in cfg.models if m.teacher):
        if entry.path is None:
            raise ValueError(f"models: the teacher {entry.name} needs weights: set its path")
        teacher = load_weights(entry.path, cfg.torch_device()).model
        if (teacher.spec.classes, teacher.spec.delay) != (spec.classes, spec.delay):
            raise ValueError(
                f"models: the teacher {entry.name} predicts {teacher.spec.classes} classes (delay: "
                f"{teacher.spec.delay}), the student {spec.classes} (delay: {spec.delay}); they have to share codec, "
                "phonemes and delay"
            )
        teachers[entry.name] = teacher.requires_grad_(False)
    return teachers


def optimizer_of(cfg: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer by its name, or what the optimizations put in its place."""
    hyper, chosen = cfg.hyperparameters, cfg.optimizations
    name = hyper.optimizer.lower()
    if chosen.optimizers and chosen.dadaptation:
        name = _DADAPTATION.get(name, name)
    elif chosen.optimizers and chosen.bitsandbytes:
        name = _BITSANDBYTES.get(name, name)
    # YAML has lists where optimizers take tuples.
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in hyper.optimizer_params.items()}
    # A gradient that is not finite is found by the engine, which skips the step on all ranks.
    return wrapkit.optimizer(name, model, lr=hyper.learning_rate, nonfinite="ignore", **options)


def start_from(model: VallE, path: Path, *, resize: bool, strict: bool, tokenizer: Tokenizer) -> None:
    """Load weights from a file, those of another table size too when `resize` allows it.

    Raises:
        ValueError: tensors are missing, unknown or of another shape (all of them are named), or the weights were
            trained with another tokenizer.
    """
    from vall_e.weights import load_weights

    voice = load_weights(path)
    donor = voice.model
    if why := conflict(voice.tokenizer, tokenizer):
        raise ValueError(
            f"{path}: trained with another tokenizer than this dataset's: {why}. Set tokenizer_path to that of the "
            "weights, or start from others"
        )
    given, own = donor.state_dict(), model.state_dict()
    wrong = {n: t.shape for n, t in own.items() if n in given and given[n].shape != t.shape}
    if wrong and not resize:
        listed = "; ".join(f"{n} {list(given[n].shape)} instead of {list(shape)}" for n, shape in wrong.items())
        raise ValueError(
            f"{path}: tensors of another shape: {listed}. Set trainer.resize_modules=true to keep the rows that there "
            "are and to draw the others"
        )
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if strict and (missing or unknown):
        raise ValueError(
            f"{path}: missing {', '.join(missing) or 'none'}; unknown {', '.join(unknown) or 'none'}. Set "
            "trainer.strict_loading=false to load what fits"
        )
    for name, shape in wrong.items():
        for dim, size in enumerate(shape):
            if donor.get_parameter(name).shape[dim] != size:
                wrapkit.resize(donor, name, size, dim)
    model.load_state_dict(donor.state_dict(), strict=False)


def _layers(chosen: Optimizations) -> dict[type[nn.Module], str]:
    """Which kinds of layers are changed, and into what."""
    kinds = [name for name in ("bitsandbytes", "bitnet", "fp8") if getattr(chosen, name)]
    if len(kinds) > 1 and chosen.linear:
        raise ValueError(f"optimizations: {' and '.join(kinds)} would each replace the linear layers; choose one")
    layers: dict[type[nn.Module], str] = {}
    if chosen.linear and kinds:
        names = {"bitsandbytes": "bnb.int8-training", "bitnet": "bitlinear", "fp8": "te.fp8"}
        layers[nn.Linear] = names[kinds[0]]
    if chosen.embedding and chosen.bitsandbytes:
        layers[nn.Embedding] = "bnb.stable-embedding"
    return layers


def _injected(layers: dict[type[nn.Module], str]) -> AbstractContextManager[Any]:
    return wrapkit.inject(**{kind.__name__: name for kind, name in layers.items()})


def _freeze(model: nn.Module, pattern: str) -> None:
    frozen = [p for name, p in model.named_parameters() if fnmatch.fnmatch(name, pattern)]
    if not frozen:
        raise ValueError(f"frozen_params: {pattern!r} matches no parameter")
    for p in frozen:
        p.requires_grad_(False)


def _adapt(cfg: Config, model: nn.Module) -> None:
    """Put the adapter that is trained on the blocks (and on the embeddings and heads), and freeze the rest."""
    lora = cfg.lora
    assert lora is not None
    include = ["model.layers.*.self_attn", "model.layers.*.mlp"]
    if lora.embeddings:
        include += ["text_emb", "proms_emb", "resps_emb", "classifiers"]
    wrapkit.LoRA(
        lora.rank,
        lora.alpha,
        wrapkit.Policy(include),
        name=lora.name,
        embeddings=lora.embeddings,
        # The model reads its embeddings' weights, which a layer around them would not change.
        form="parametrize" if lora.parametrize or lora.embeddings else "wrap",
    ).apply(model)
    if lora.path is not None:
        wrapkit.lora.load(model, lora.path, lora.name)
