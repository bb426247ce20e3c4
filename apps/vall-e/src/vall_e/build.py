"""The model that a configuration trains: its shape, the weights it starts from, and what is changed in it."""

from __future__ import annotations

import fnmatch
import inspect
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import wrapkit
from torch import nn

from vall_e.codecs.load import published
from vall_e.config import Config, Optimizations
from vall_e.data.batches import WITHOUT_LEVELS
from vall_e.data.open import DatasetOf
from vall_e.data.store import CodecInfo
from vall_e.model.attention import leave_uncompiled
from vall_e.model.model import VallE
from vall_e.model.spec import ModelSpec
from vall_e.tokenizer import conflict
from vall_e.weights import Voice, load_weights, spec_in

BLOCKS = wrapkit.Policy(["model.layers"])
"""The transformer's blocks: what is checkpointed, quantised and adapted."""

_FLAGS = ("unified_position_ids", "noncausal_masks", "audio_embedding_sums", "length_offset")
"""Of a model's entry under `experimental`: weights of one value have the shapes of those of another."""
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
    if cfg.model.path is not None:  # a flag that the configuration leaves out is that of the weights
        left_out = [f for f in _FLAGS if cfg.source_of(f"models.{at}.experimental.{f}") == "default"]
        held = spec_in(cfg.model.path)
        spec = replace(spec, **{f: getattr(held, f) for f in left_out})
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


def trained_by(cfg: Config, spec: ModelSpec) -> tuple[list[str], list[int]]:
    """The tasks that a run draws from, and the levels at which those of speech are trained.

    The capabilities say which levels: `ar` is level 0, `nar` those above it. `stt`, `len` and `nar-len` among them are
    tasks too, each drawn one time in ten where `dataset.tasks_list` does not have it.

    Raises:
        ValueError: nothing is left to train, or a level is named that the model does not have.
    """
    able, given = cfg.model.capabilities, list(cfg.dataset.tasks_list)
    able_levels = [level for level in range(spec.levels) if ("nar" if level else "ar") in able]
    tasks: list[str] = [t for t in given if able_levels or t in WITHOUT_LEVELS]
    more = [t for t in able if t in WITHOUT_LEVELS and t not in given]
    if tasks and more:
        tasks *= math.ceil((10 - len(more)) / len(tasks))
    tasks += more
    chances = spec.level_probabilities()
    if spec.delay:
        if cfg.lora is not None and cfg.lora.rvq_levels:
            raise ValueError("loras[].rvq_levels: a model with delay trains all levels at once; leave it out")
        levels = list(range(spec.levels))
    else:
        chosen = (cfg.lora.rvq_levels if cfg.lora is not None else []) or list(range(spec.levels))
        if wrong := [level for level in chosen if not 0 <= level < spec.levels]:
            raise ValueError(f"loras[].rvq_levels: the model has the levels 0 to {spec.levels - 1}, found {wrong}")
        levels = [level for level in able_levels if level in chosen and chances[level] > 0]
    if not tasks or (not levels and set(tasks) - set(WITHOUT_LEVELS)):
        raise ValueError(
            f"there is nothing to train: models[].capabilities are {able}, dataset.tasks_list is {given}, "
            f"rvq_levels_p gives the levels the chances {[round(c, 3) for c in chances]}"
            + (f", loras[].rvq_levels are {cfg.lora.rvq_levels}" if cfg.lora is not None else "")
        )
    return tasks, levels


def build_model(cfg: Config, spec: ModelSpec, data: DatasetOf) -> VallE:
    """The model on its device, with its weights, replacements, adapters and frozen parameters.

    Args:
        cfg: says what is changed in it.
        spec: its shape.
        data: the dataset, whose tokenizer and codec the weights to start from have to share.

    Raises:
        ValueError: the weights do not fit, an adapter has none under it, or a pattern matches nothing.
        BackendUnavailable: an optimization whose package cannot be used here.
    """
    chosen, place = cfg.optimizations, f"models.{cfg.models.index(cfg.model)}"
    layers = _layers(chosen)
    if cfg.lora is not None and cfg.model.path is None:
        raise ValueError(
            f"loras: the adapter {cfg.lora.name} needs trained weights under it, which it is then used with; set "
            f"{place}.path to them"
        )
    with _injected(layers) if chosen.injects else nullcontext():
        model = VallE(spec)
    if cfg.model.path is not None:
        start_from(
            model,
            cfg.model.path,
            resize=cfg.trainer.resize_modules,
            strict=cfg.trainer.strict_loading,
            data=data,
            place=place,
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


def teachers_of(cfg: Config, spec: ModelSpec, data: DatasetOf) -> dict[str, VallE]:
    """The models to distil from, by name, frozen.

    Raises:
        ValueError: a teacher without weights, of other outputs than the student's, or who reads other batches.
    """
    teachers = {}
    for entry in (m for m in cfg.models if m.teacher):
        if entry.path is None:
            raise ValueError(f"models: the teacher {entry.name} needs weights: set its path")
        voice = load_weights(entry.path, cfg.torch_device())
        _check_codec(entry.path, voice, data.info)
        teacher = voice.model
        if (teacher.spec.classes, teacher.spec.delay) != (spec.classes, spec.delay):
            raise ValueError(
                f"models: the teacher {entry.name} predicts {teacher.spec.classes} classes (delay: "
                f"{teacher.spec.delay}), the student {spec.classes} (delay: {spec.delay}); they have to share codec, "
                "phonemes and delay"
            )
        # Both read batches that are laid out for the student.
        _check_same(
            entry.path,
            teacher.spec,
            spec,
            {
                **{name: f"models.{cfg.models.index(cfg.model)}.experimental.{name}" for name in _FLAGS},
                **{name: f"models.{cfg.models.index(cfg.model)}.{name}" for name in ("langs", "tasks", "tones")},
            },
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
    try:
        return wrapkit.optimizer(name, model, lr=hyper.learning_rate, nonfinite="ignore", **options)
    except TypeError as e:
        raise ValueError(f"hyperparameters.optimizer_params: {e}; {name} takes {_options_of(name)}") from e


def _options_of(name: str) -> str:
    """The options of an optimizer, as its constructor names them."""
    try:
        kind = wrapkit.optim.optimizer_class(name)
    except ValueError:  # it has two parts
        return "those of wrapkit.optimizer"
    return ", ".join(n for n in inspect.signature(kind).parameters if n not in ("params", "lr"))


def start_from(model: VallE, path: Path, *, resize: bool, strict: bool, data: DatasetOf, place: str) -> None:
    """Load weights from a file, those of another table size too when `resize` allows it.

    Args:
        place: of the model's entry in the configuration.

    Raises:
        ValueError: tensors are missing, unknown or of another shape (all of them are named), or the weights were
            trained with another tokenizer, codec or flag of the architecture.
    """
    voice = load_weights(path)
    donor = voice.model
    _check_codec(path, voice, data.info)
    places = {name: f"{place}.experimental.{name}" for name in _FLAGS} | {"heads": f"{place}.size.heads"}
    _check_same(path, donor.spec, model.spec, places)
    if why := conflict(voice.tokenizer, data.tokenizer):
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


def _check_codec(path: Path, voice: Voice, info: CodecInfo | None) -> None:
    """Refuse weights of another codec than the dataset's: codes of one mean nothing to another."""
    named = published(voice.settings.get("codec", ""))
    identity = voice.codec.identity if voice.codec is not None else named and named.identity
    if identity and info is not None and identity != info.identity:
        raise ValueError(
            f"{path}: trained on codes of {identity}, but the dataset holds codes of {info.identity} ({info.name}). "
            "Prepare the dataset with the codec of the weights, or take weights of this one"
        )


def _check_same(path: Path, found: ModelSpec, expected: ModelSpec, places: dict[str, str]) -> None:
    """Refuse weights that differ in what no shape shows; `places` has the key of each field."""
    wrong = {n: getattr(found, n) for n in places if getattr(found, n) != getattr(expected, n)}
    if wrong:
        told = "; ".join(f"{n} {value} instead of {getattr(expected, n)}" for n, value in wrong.items())
        keys = " and ".join(f"{places[n]}: {str(value).lower()}" for n, value in wrong.items())
        raise ValueError(f"{path}: made with {told}. Set {keys}")


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
