"""Existing YAML files and the `config` in weights: keys that went, that moved, or whose values mean something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vall_e.model.spec import OURS_EXPERIMENTAL

Target = str | Callable[[Any], Mapping[str, Any] | tuple[Mapping[str, Any], str]]


def _gone(*so_anyway: Any, instead: str | None = None) -> Target:
    """A key that went: what is done instead of it; nothing is said at the values that ask for what is so anyway."""

    def target(value: Any) -> Mapping[str, Any] | tuple[Mapping[str, Any], str]:
        if value in so_anyway:
            return {}, ""
        return {} if instead is None else ({}, instead)

    return target


def _unsaid(_: Any) -> tuple[Mapping[str, Any], str]:
    """A key that went, of how something is computed, or that counts only beside another one that went."""
    return {}, ""


def _only(*values: Any) -> Target:
    """A key of an architecture; every value but these is another one, which is refused."""

    def target(value: Any) -> tuple[Mapping[str, Any], str]:
        if value not in values:
            raise ValueError(f"expected {values[0]!r}, found {value!r}; such a model can be neither trained nor loaded")
        return {}, ""

    return target


def _read_as(key: str, *meanings: tuple[Any, Any], remark: str | None = None) -> Target:
    """A key that is, with values of old and what they mean."""

    def target(value: Any) -> Mapping[str, Any] | tuple[Mapping[str, Any], str]:
        for old, new in meanings:
            if value == old:
                return {key: new} if remark is None else ({key: new}, remark)
        return {key: value}

    return target


def _scheduler(value: Any) -> Mapping[str, Any] | tuple[Mapping[str, Any], str]:
    key, name = "hyperparameters.scheduler", str(value or "").lower()
    if name == "":
        return {key: "constant"}, ""
    if name == "schedulefree":
        remark = "read as 'constant'; for a schedule-free optimizer set hyperparameters.optimizer: schedulefree"
        return {key: "constant"}, remark
    if name == "warmuplr":
        return {key: "constant"}
    if name in ("noam", "noamlr", "onecycle", "onecyclelr", "warmupdecaylr", "cosineannealinglr"):
        return {key: "cosine"}  # it too warms up and decays to the end of the run
    return {key: value}


def _scheduler_params(value: Any) -> Mapping[str, Any] | tuple[Mapping[str, Any], str]:
    if not value:
        return {}, ""
    warmup = value.get("warmup_steps") if isinstance(value, Mapping) else None
    return {} if warmup is None else {"hyperparameters.warmup_steps": warmup}


def _prompt_dropout(value: Any) -> Mapping[str, Any] | tuple[Mapping[str, Any], str]:
    return {"dataset.prompt_dropout": value} if value else ({}, "")


def _level_range(value: Any) -> Mapping[str, Any] | tuple[Mapping[str, Any], str]:
    if not value:
        return {}, ""
    try:
        first, last = value
        weights = [8 - level if first <= level <= last else 0 for level in range(8)]
    except (TypeError, ValueError):
        raise ValueError(f"expected the first level and the last, found {value!r}; set rvq_levels_p instead") from None
    return {"models.*.experimental.rvq_levels_p": weights}, f"read as rvq_levels_p: {weights}; set that instead"


_FLAG = (False, None)

_TOP: dict[str, Target] = {
    "mode": _gone(),
    "experimental": _gone(*_FLAG),
    "silent_errors": _gone(*_FLAG),
    "sample_rate": _gone(24_000, 44_100, None, instead="recordings have the rate of the codec"),
    "text_tokenizer_path": _gone(None, "", instead="texts are phonemes; their tokenizer is tokenizer_path"),
    "cfg_path": _gone(),
    "rel_path": _gone(),
    "device": _read_as("device", (None, "auto"), remark=""),
}

_DATASET: dict[str, Target] = {
    "dir": _gone(),
    "hdf5_flag": _gone("r", "a", None),
    "max_prompts": "dataset.prompt_max_samples",
    "max_utterances": _read_as("dataset.max_utterances", (0, None), remark=""),
    "p_resp_append": "dataset.resps_append_p",
    "p_resp_pad_silence": "dataset.resps_pad_silence_p",
    "prompt_duration": lambda value: {"dataset.prompt_duration_range": [value, value]},
    "prompt_inject_noise": _gone(*_FLAG, instead="noise is mixed in by tasks alone: ns, sr, nse"),
    "prompt_similar_top_k_offset": _gone(0, None, instead="the most similar utterance counts too"),
    "random_utterance": _gone(),
    "reencode_device": _unsaid,
    "reencode_on_concat": _gone(*_FLAG, instead="codes are joined as they are, without encoding the audio anew"),
    "resps_pad_silence_p": _gone(0, None, instead="utterances are joined without silence between them"),
    "sample_type_p": _gone(),
    "speaker_group_getter": _gone(None, "", instead="the group is the folder above the speaker's"),
    "speaker_languages": _gone({}, None, instead="the language is that which each utterance has in the dataset"),
    "speaker_name_getter": _gone(None, "", instead="who speaks is said by dataset.speaker_getter: folder or prefix"),
    "validate": "dataset.validate_samples",
}

_HYPERPARAMETERS: dict[str, Target] = {
    "autotune": _gone(*_FLAG, instead="nothing is tuned by itself; set hyperparameters.batch_size"),
    "autotune_params": _unsaid,
    "gradient_clipping": _read_as("hyperparameters.gradient_clipping", (0, None), remark=""),
    "scheduler_params": _scheduler_params,
    "scheduler_type": "hyperparameters.scheduler",
    "scheduler": _scheduler,
    "torch_optimizer": _gone(),
    "torch_scheduler": _gone(),
}

_EVALUATION: dict[str, Target] = {
    "kwargs.ar_temperature": "evaluation.kwargs.temperature",
    "kwargs.max_steps": "evaluation.kwargs.steps",
    "kwargs.min_ar_temperature": "evaluation.kwargs.min_temperature",
    "kwargs.top_no": "evaluation.kwargs.top_n_sigma",
    "load_disabled_engines": _gone(*_FLAG),
    "noise": _gone(*_FLAG),
}

_TRAINER: dict[str, Target] = {
    "activation_checkpointing": lambda value: {"trainer.gradient_checkpointing": True} if value else ({}, ""),
    "aggressive_optimizations": _gone(*_FLAG),
    "check_for_oom": _gone(
        True, None, instead="running out of memory is always noticed; trainer.save_on_oom says what then"
    ),
    "ddp": _gone(*_FLAG, instead="several processes need trainer.backend: ddp"),
    "gc_mode": _gone(None),
    "keep_last": "trainer.keep_last_checkpoints",
    "keep_last_checkpoints": _read_as("trainer.keep_last_checkpoints", (0, None), remark=""),
    "load_disabled_engines": _gone(*_FLAG),
    "load_state_dict": _gone(
        *_FLAG, instead="to start from weights instead of a checkpoint, name them in models[].path"
    ),
    "load_tag": _read_as("trainer.load_tag", ("", None), ("latest", None), remark=""),
    "load_webui": _gone(*_FLAG, instead="the page is a command of its own: vall-e-webui"),
    "no_logger": _gone(*_FLAG),
    "save_disabled_engines": _gone(*_FLAG),
    "save_on_quit": _gone(True, None, instead="a run that is stopped always saves"),
    "save_tag": _gone("step", None, instead="a checkpoint is always named by its step"),
}

_NOT_COMPRESSED = "weights are not compressed in training"

_DEEPSPEED: dict[str, Target] = {
    "amp": _gone(*_FLAG, instead="mixed precision is trainer.amp"),
    "compression_bits": _gone(None, 0, instead=_NOT_COMPRESSED),
    "compression_training": _gone(*_FLAG, {}, instead=_NOT_COMPRESSED),
    "inferencing": _gone(*_FLAG, instead="speech is made without DeepSpeed"),
    "max_loss_scale": _gone(),
    "optimizer": _gone(*_FLAG, instead="the optimizer is hyperparameters.optimizer, on every backend"),
    "profile": _gone(*_FLAG, instead="set flops_profiler in trainer.deepspeed.config instead"),
    "use_compression_training": _gone(*_FLAG, instead=_NOT_COMPRESSED),
    "zero_optimization_level": _read_as(
        "trainer.deepspeed.zero_optimization_level",
        (3, 2),
        remark="read as 2: 3 would divide the parameters, and evaluation needs them whole",
    ),
}

_OF_THE_WEIGHTS = "the codec is that of the weights"

_INFERENCE: dict[str, Target] = {
    "amp": _gone(*_FLAG, instead="speech is computed in inference.weight_dtype, parameters and products"),
    "audio_backend": _gone(None, "", instead=_OF_THE_WEIGHTS),
    "audio_backends": _gone(None, {}, [], instead=_OF_THE_WEIGHTS),
    "backend": _gone("local", None, "", instead="speech is made without a training backend"),
    "batch_size": _gone(),
    "normalize": _gone(*_FLAG),
    "use_vocos": _gone(instead=_OF_THE_WEIGHTS),
}

_OF_THE_CODEC = "the codec says how many levels there are"

_MODEL: dict[str, Target] = {
    "arch_type": _only("llama", "auto", "", None),
    "attention": _unsaid,  # how it is computed, not what
    "experts": _only(1, 0, None),
    "kwargs": _gone({}, None),
    "prom_levels": _gone(instead=_OF_THE_CODEC),
    "resp_levels": _gone(instead=_OF_THE_CODEC),
    "rvq_levels": _gone(instead=_OF_THE_CODEC),
    "tones": _read_as("models.*.tones", (0, 1), remark="read as 1: one row that no sample asks for"),
}

_NOT_DROPPED = "nothing is dropped there; models[].dropout is on the output of each block"
_LENGTHS = "lengths are trained where capabilities or dataset.tasks_list have len"

_EXPERIMENTAL: dict[str, Target] = {
    # Other architectures. What can be had both ways is a field.
    **{key: _only(*values) for key, values in OURS_EXPERIMENTAL.items() if not {True, False} <= {*values}},
    "hf": _only(False, None),
    # Other ways of training the same one.
    "audio_level_loss_factors": _gone(
        "auto", instead="every level weighs the same; rvq_levels_p says how often it comes"
    ),
    "cfg_cond_dropout_p": _gone(0, instead="no sample is trained without its text and prompt"),
    "cfg_prom_dropout_p": _prompt_dropout,
    "cfg_text_dropout_p": _gone(0, instead="no sample is trained without its text"),
    "codebook_dropout_p": _gone(0, instead=_NOT_DROPPED),
    "ignore_inputs_for_loss": _gone(True, instead="the loss is of the output alone"),
    "lang_cond_dropout_p": _gone(0, instead="no sample is trained without its language"),
    "layer_dropout_p": _gone(0, instead=_NOT_DROPPED),
    "len_loss_factor": _gone(1e-05, instead="the loss of the length is weighted by loss_factors.len"),
    "len_parallel_training": _gone(True, instead=_LENGTHS),
    "len_train_p": _gone(0, instead=_LENGTHS),
    "masking_ratio": _gone("random", instead="the share that is masked is drawn anew each time, from a cosine"),
    "masking_train_rvq_levels": _gone([0, 0], None, instead="level 0 alone is demasked"),
    "p_len_train": _gone(0, instead=_LENGTHS),
    "p_rvq_levels": "models.*.experimental.rvq_levels_p",
    "parallel_attention_mask_dropout": _gone(0, instead=_NOT_DROPPED),
    "resp_parallel_training": _gone(True, instead="each sample is trained at one level"),
    "rvq_level_range": _level_range,
    "token_dropout_error": _gone(0, instead="codes are trained as they are"),
    "token_dropout_rate": _gone(0, instead="codes are trained as they are"),
    "use_raw_text_p": _gone(0, instead="phonemes alone are trained, not the text"),
    **dict.fromkeys(
        (
            "audio_decoder_ffn_expansion_size",
            "audio_encoder_ffn_expansion_size",
            "layerskip_e_scale",
            "layerskip_p_max",
            "layerskip_r",
            "max_position_embeddings",
            "per_level_normalization",
            "token_dropout_rvq_levels",
            "use_audio_encoder_ffn",
            "use_audio_encoder_level_weights",
            "use_audio_encoder_norm",
            "use_streamlined_calc_loss",
        ),
        _unsaid,
    ),
}

MIGRATIONS: dict[str, Target] = {
    place + key: target
    for place, targets in (
        ("", _TOP),
        ("dataset.", _DATASET),
        ("models.*.", _MODEL),
        ("models.*.experimental.", _EXPERIMENTAL),
        ("hyperparameters.", _HYPERPARAMETERS),
        ("evaluation.", _EVALUATION),
        ("trainer.", _TRAINER),
        ("trainer.deepspeed.", _DEEPSPEED),
        ("inference.", _INFERENCE),
        ("optimizations.", {"tensorrt": _gone(*_FLAG)}),
    )
    for key, target in targets.items()
}
