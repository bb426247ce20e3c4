"""Keys of existing YAML files: where they went, and what has no effect here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Target = str | Callable[[Any], Mapping[str, Any]]

_ENTRIES = 4  # of `models` and `loras` that are looked at


def _nothing(_: Any) -> Mapping[str, Any]:
    return {}


_NO_EFFECT = (
    # What was chosen here is now always so, or chosen by the trainer, or was never more than a hint.
    *("mode", "experimental", "silent_errors", "sample_rate", "text_tokenizer_path", "cfg_path"),
    *(
        f"dataset.{key}"
        for key in (
            "hdf5_flag",
            "speaker_languages",
            "prompt_similar_top_k_offset",
            "prompt_inject_noise",
            "resps_pad_silence_p",
            "reencode_on_concat",
            "reencode_device",
            "sample_type_p",
            "dir",
        )
    ),
    *(f"hyperparameters.{key}" for key in ("autotune", "autotune_params", "torch_optimizer", "torch_scheduler")),
    *(
        f"trainer.{key}"
        for key in (
            "aggressive_optimizations",
            "check_for_oom",
            "ddp",
            "detect_grad_anomaly",
            "gc_mode",
            "keep_last",
            "load_disabled_engines",
            "load_state_dict",
            "load_states",
            "load_tag",
            "no_logger",
            "save_disabled_engines",
            "save_on_quit",
            "save_tag",
            "activation_checkpointing",
        )
    ),
    *(
        f"trainer.deepspeed.{key}"
        for key in (
            "compression_training",
            "inferencing",
            "max_loss_scale",
            "optimizer",
            "profile",
            "use_compression_training",
        )
    ),
    *(f"inference.{key}" for key in ("amp", "audio_backends", "backend", "batch_size", "normalize", "use_vocos")),
    *(f"optimizations.{key}" for key in ("tensorrt",)),
    *(f"evaluation.{key}" for key in ("load_disabled_engines", "noise")),
)
_NO_EFFECT_IN_MODELS = ("arch_type", "attention", "experts", "kwargs", "prom_levels", "resp_levels", "rvq_levels")


def _scheduler_params(value: Any) -> Mapping[str, Any]:
    warmup = value.get("warmup_steps") if isinstance(value, Mapping) else None
    return {} if warmup is None else {"hyperparameters.warmup_steps": warmup}


_SAME_AS_OURS: dict[str, tuple[Any, ...]] = {
    # Architectures that existing files can name, and the values that mean the one that there is.
    "audio_embedding_mode": (None, ""),
    "causal_size": (1,),
    "codebook_dropout_p": (0, 0.0),
    "hf": (False,),
    "interleave": (False,),
    "kv_heads": (0,),
    "layer_dropout_p": (0, 0.0),
    "len_use_logits": (False,),
    "logit_normalization": (0, 0.0),
    "masking_ratio": (0.8,),
    "monolithic_audio_encoder": (False,),
    "parallel_attention_mask_dropout": (0, 0.0),
    "per_level_normalization": (True, False),
    "predict_causally": (False,),
    "rvq_level_range": ([], None),
    "tie_classifier_to_embedding": (False,),
    "use_segmented_attention_mask": (False,),
    "use_sliding_attention_mask": (False,),
}
_HINTS = (
    "audio_level_loss_factors",
    "ignore_inputs_for_loss",
    "len_loss_factor",
    "len_parallel_training",
    "masking_train_rvq_levels",
    "max_position_embeddings",
    "resp_parallel_training",
    "use_audio_encoder_ffn",
    "use_audio_encoder_level_weights",
    "use_audio_encoder_norm",
    "use_streamlined_calc_loss",
)


def _if_ours(key: str, place: str) -> Callable[[Any], Mapping[str, Any]]:
    """A flag goes when it says what is so anyway; another value stays, and is an unknown key."""

    def target(value: Any) -> Mapping[str, Any]:
        return {} if value in _SAME_AS_OURS[key] else {f"{place}.{key} (only {_SAME_AS_OURS[key][0]!r})": value}

    return target


MIGRATIONS: dict[str, Target] = {
    **{key: _nothing for key in _NO_EFFECT},
    **{f"models.{i}.{key}": _nothing for i in range(_ENTRIES) for key in _NO_EFFECT_IN_MODELS},
    **{
        f"models.{i}.experimental.{key}": _if_ours(key, f"models.{i}.experimental")
        for i in range(_ENTRIES)
        for key in _SAME_AS_OURS
    },
    **{f"models.{i}.experimental.{key}": _nothing for i in range(_ENTRIES) for key in _HINTS},
    "dataset.validate": "dataset.validate_samples",
    "dataset.speaker_name_getter": _nothing,
    "dataset.speaker_group_getter": _nothing,
    "hyperparameters.scheduler_params": _scheduler_params,
}
