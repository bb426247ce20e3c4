"""What a model is made of: sizes, counts and flags, read from a config, a file's metadata or its shapes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

LANGUAGES = ("en", "ja", "de", "fr", "zh", "ko")
"""The languages of the rows of `langs_emb`, in order; a model can have more."""

TASKS = {"tts": 0, "tts-c": 1, "ns": 2, "sr": 3, "tse": 4, "soe": 5, "mask": 6, "eoe": 7, "stt": 8}
"""Rows of `tasks_emb`; a task's name inside a prompt is one such row."""

SIZES = {
    # label: (dim, heads, layers)
    "quarter": (256, 4, 12),
    "half": (512, 8, 12),
    "full": (1024, 16, 12),
    "double": (2048, 32, 12),
    "extended": (1024, 16, 24),
}

LENGTH_DIGITS = 11
"""Tokens of the `len` task: start (also the digit 0), the digits 1 to 9, stop (10)."""


@dataclass(frozen=True)
class ModelSpec:
    """The shape of an AR+NAR model, version 5.

    Attributes:
        dim: width of the residual stream, D.
        heads: attention heads; each is dim / heads wide.
        layers: transformer blocks.
        ffn: width of the MLP as a multiple of dim.
        audio_tokens: codes of one codebook, A; id A is the stop token, or the mask of NAR-len.
        phoneme_tokens: rows of the phoneme table, P.
        text_tokens: rows of the raw text table.
        levels: codebooks, Q.
        langs, tasks, tones: rows of their tables.
        languages: the names of the first `langs` rows; a row without a name is asked for by its number.
        noncausal_masks: NAR passes see the whole sequence instead of the past only.
        unified_position_ids: positions run on over the sequence instead of restarting in each segment.
        audio_embedding_sums: levels below the predicted one are summed (`True`, or only in the prompt or the
            response), or only the one just below is embedded (`False`).
        split_classifiers: a head for each level, instead of one for all.
        classifier_rows: rows of the one head for all; 0 for as many as the largest head needs.
        classifiers_bias: the output heads have biases.
        delay: all levels are predicted at once, each so many frames behind the first as `offsets` says (True: as its
            number), instead of AR+NAR.
        masking_train_p: share of the level 0 samples that are trained to be demasked (NAR-len).
        length_offset: what the `len` task adds to the number of frames (1 in weights trained before us).
    """

    dim: int = 1024
    heads: int = 16
    layers: int = 12
    ffn: float = 4
    audio_tokens: int = 1024
    phoneme_tokens: int = 256
    text_tokens: int = 8575
    levels: int = 8
    langs: int = 6
    languages: tuple[str, ...] = LANGUAGES
    tasks: int = 9
    tones: int = 1
    dropout: float = 0.0
    noncausal_masks: bool = True
    unified_position_ids: bool = False
    audio_embedding_sums: bool | Literal["prom", "resp"] = True
    split_classifiers: bool = True
    classifier_rows: int = 0
    classifiers_bias: bool = True
    length_offset: int = 0
    delay: bool | tuple[int, ...] = False
    masking_train_p: float = 0.0
    level_weights: tuple[float, ...] | Literal["auto", "equal"] = "auto"
    capabilities: tuple[str, ...] = field(default=("ar", "nar"))

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(
                f"model size: dim {self.dim} must be a multiple of 2 x heads ({self.heads}) for rotary positions"
            )

        if self.langs < 1 or len(set(self.languages)) < len(self.languages):
            raise ValueError(f"langs: expected 1 or more languages, each once, found {self.langs}: {self.languages}")
        if self.delay and self.masking_train_p:
            raise ValueError(
                "experimental.masking_train_p: a model with delay has no level 0 to be demasked; set it to 0"
            )

    @property
    def offsets(self) -> tuple[int, ...]:
        """Frames that each level stands behind the first, with `delay`.

        Raises:
            ValueError: there is not one a level, or one stands before the first, which says where all end.
        """
        offsets = tuple(range(self.levels)) if self.delay is True else self.delay or ()
        if len(offsets) != self.levels or offsets[0] or min(offsets) < 0:
            raise ValueError(
                f"experimental.delay: expected {self.levels} offsets, one a level, 0 for the first and 0 or more for "
                f"the others, found {list(offsets)}"
            )
        return offsets

    @property
    def modality(self) -> str:
        """How the model generates when nothing else is asked for."""
        return "delay" if self.delay else "ar+nar"

    @property
    def stop(self) -> int:
        """The stop token of level 0, and the mask token of NAR-len."""
        return self.audio_tokens

    @property
    def classes(self) -> list[int]:
        """Classes of each head: the levels, NAR-len, speech-to-text, length."""
        codes = self.audio_tokens
        return [codes + 1] + [codes] * (self.levels - 1) + [codes, self.phoneme_tokens, LENGTH_DIGITS]

    def language_row(self, language: str | int) -> int:
        """The row of a language's name, or of its number.

        Raises:
            ValueError: the model does not know it; those that it knows are named.
        """
        if not isinstance(language, str):
            return int(language)
        names = self.languages[: self.langs]
        if language not in names:
            raise ValueError(f"language: this model knows {', '.join(names)} (models.0.langs), found {language!r}")
        return names.index(language)

    def sums(self, segment: Literal["prom", "resp"]) -> bool:
        return self.audio_embedding_sums is True or self.audio_embedding_sums == segment

    def level_probabilities(self) -> list[float]:
        """How often each level is drawn in training: `auto` weights level i by levels - i."""
        if self.level_weights == "auto":
            weights = [float(self.levels - i) for i in range(self.levels)]
        elif self.level_weights == "equal":
            weights = [1.0] * self.levels
        else:
            weights = list(self.level_weights)
            if len(weights) != self.levels or min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(
                    f"rvq_levels_p: expected {self.levels} weights of 0 or more, one a level, found {weights}"
                )
        return [w / sum(weights) for w in weights]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ModelSpec:
        """From a model's entry in a config, or the `config` stored beside weights.

        Raises:
            ValueError: it is none, or describes another architecture; every key that does is named.
        """
        if not isinstance(config, dict) or not isinstance(config.get("experimental") or {}, dict):
            raise ValueError(f"config: expected a model's entry, a mapping, found {config!r:.80}")
        experimental = config.get("experimental") or {}
        if strange := [*_foreign(config, _OURS), *_foreign(experimental, OURS_EXPERIMENTAL, "experimental.")]:
            raise ValueError(f"config: this is another architecture than version 5 with llama's: {'; '.join(strange)}")
        p = experimental.get("rvq_levels_p", "auto")
        delay = experimental.get("delay", False)
        langs = config.get("langs", 6)
        return cls(
            **_size(config.get("size") or "full"),
            langs=langs if isinstance(langs, int) else len(langs),
            languages=LANGUAGES if isinstance(langs, int) else tuple(langs),
            tasks=config.get("tasks", 9),
            tones=config.get("tones", 1),
            dropout=config.get("dropout", 0.0),
            noncausal_masks=experimental.get("noncausal_masks", True),
            unified_position_ids=experimental.get("unified_position_ids", False),
            audio_embedding_sums=experimental.get("audio_embedding_sums", True),
            split_classifiers=experimental.get("split_classifiers", True),
            classifiers_bias=experimental.get("classifiers_bias", True),
            # Weights made before the field existed were trained on the length + 1.
            length_offset=experimental.get("length_offset", 1),
            delay=delay if isinstance(delay, bool) else tuple(delay),
            masking_train_p=experimental.get("masking_train_p", 0.0),
            level_weights=p if isinstance(p, str) else tuple(p),
            capabilities=tuple(config.get("capabilities", ("ar", "nar"))),
        )

    def to_config(self) -> dict[str, Any]:
        """The `config` stored beside weights: `from_config` reads it back."""
        return {
            "name": "+".join(c for c in self.capabilities if c in ("ar", "nar")) or "ar+nar",
            "version": 5,
            "size": {
                "label": "custom",
                "dim": self.dim,
                "heads": self.heads,
                "layers": self.layers,
                "ffn": self.ffn,
                "audio_tokens": self.audio_tokens,
                "text_tokens": self.text_tokens,
                "phoneme_tokens": self.phoneme_tokens,
                "resp_levels": self.levels,
            },
            "tasks": self.tasks,
            "langs": self.langs if self.languages == LANGUAGES else list(self.languages),
            "tones": self.tones,
            "arch_type": "llama",
            "dropout": self.dropout,
            "capabilities": list(self.capabilities),
            "experimental": {
                "split_classifiers": self.split_classifiers,
                "audio_embedding_sums": self.audio_embedding_sums,
                "unified_position_ids": self.unified_position_ids,
                "noncausal_masks": self.noncausal_masks,
                "classifiers_bias": self.classifiers_bias,
                "length_offset": self.length_offset,
                "delay": self.delay if isinstance(self.delay, bool) else [*self.delay],
                "masking_train_p": self.masking_train_p,
                "rvq_levels_p": self.level_weights if isinstance(self.level_weights, str) else [*self.level_weights],
            },
        }

    def matching(self, shapes: dict[str, tuple[int, ...]]) -> ModelSpec:
        """This spec with every count that the shapes of a state dict show taken from them."""
        seen: dict[str, Any] = {}
        for key, name in {
            "langs": "langs_emb.weight",
            "tasks": "tasks_emb.weight",
            "tones": "tones_emb.weight",
            "phoneme_tokens": "text_emb.weight",
            "text_tokens": "raw_text_emb.weight",
            "levels": "rvq_l_emb.weight",
            "audio_tokens": "proms_emb.embeddings.0.weight",
        }.items():
            if name in shapes:
                seen[key] = shapes[name][0]
        widths = {"dim": shapes["sep"][0]} if "sep" in shapes else {}
        layers = len([n for n in shapes if n.endswith(".input_layernorm.weight")])
        wrong = [f"{k} {getattr(self, k)}, not {v}" for k, v in widths.items() if v != getattr(self, k)]
        wrong += [f"layers {self.layers}, not {layers}"] if layers and layers != self.layers else []
        if wrong:
            raise ValueError(f"the config says {' and '.join(wrong)} as the tensors have; it belongs to other weights")
        if "model.layers.0.mlp.up_proj.weight" in shapes:
            inner, dim = shapes["model.layers.0.mlp.up_proj.weight"]
            seen["ffn"] = inner / dim
        seen["split_classifiers"] = "classifiers.proj.0.weight" in shapes
        seen["classifier_rows"] = shapes["classifier.weight"][0] if "classifier.weight" in shapes else 0
        seen["classifiers_bias"] = bool({"classifiers.proj.0.bias", "classifier.bias"} & shapes.keys())
        return replace(self, **seen)


_OURS: dict[str, tuple[Any, ...]] = {
    "version": (5,),
    "arch_type": ("llama", "auto", "", None),
    "experts": (0, 1, None),
}
OURS_EXPERIMENTAL: dict[str, tuple[Any, ...]] = {
    # What existing files can name, and the values that mean the architecture and the flags that there are.
    "audio_embedding_mode": (None, ""),
    "audio_embedding_sums": (True, False, "prom", "resp"),
    "causal_size": (1,),
    "classifiers_bias": (True, False),
    "interleave": (False, None),
    "kv_heads": (0, None),
    "layerskip": (False, None),
    "len_use_logits": (False,),
    "logit_normalization": (0, None),
    "monolithic_audio_encoder": (False,),
    "noncausal_masks": (True, False),
    "predict_causally": (False,),
    "split_classifiers": (True, False),
    "tie_classifier_to_embedding": (False,),
    "unified_position_ids": (True, False),
    "use_segmented_attention_mask": (False,),
    "use_sliding_attention_mask": (False,),
}


def _foreign(config: dict[str, Any], ours: dict[str, tuple[Any, ...]], place: str = "") -> list[str]:
    """The keys whose values mean something else than ours, with what was expected."""
    return [
        f"{place}{key} is {config[key]!r}, expected {' or '.join(map(repr, values))}"
        for key, values in ours.items()
        if key in config and config[key] not in values
    ]


def _size(size: str | float | dict[str, Any]) -> dict[str, Any]:
    """The fields of a ModelSpec from a label, a multiple of the full width, or explicit numbers."""
    if isinstance(size, str):
        if size not in SIZES:
            raise ValueError(f"model size: expected one of {', '.join(SIZES)}, a number or a mapping, found {size!r}")
        dim, heads, layers = SIZES[size]
        return {"dim": dim, "heads": heads, "layers": layers}
    if isinstance(size, int | float):
        dim = int(1024 * size)
        return {"dim": dim, "heads": max(1, int(16 * size)), "layers": 12}
    renamed = {"resp_levels": "levels"}
    known = {f.name for f in fields(ModelSpec)}
    values = {renamed.get(k, k): v for k, v in size.items() if k != "label" and v is not None}
    if missing := [k for k in ("dim", "heads", "layers") if k not in values]:
        raise ValueError(f"model size: {', '.join(missing)} missing beside {', '.join(map(str, size))}")
    return {k: v for k, v in values.items() if k in known}
