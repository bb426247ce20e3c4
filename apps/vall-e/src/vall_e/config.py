"""The configuration: sections and fields as users of existing YAML files know them.

The folder of the YAML file is the root: `data/`, `metadata/`, `ckpt/`, `logs/` and `data.h5` lie beside it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from basecfg import BaseConfig, Field, Section

from vall_e.migrations import MIGRATIONS

if TYPE_CHECKING:
    from vall_e.tokenizer import Tokenizer

DType = Literal["float32", "bfloat16", "float16"]
Task = Literal["tts", "tts-c", "stt", "ns", "sr", "tse", "cse", "nse", "len", "nar-len"]

_SIZES = ("label", "dim", "heads", "layers", "ffn", "audio_tokens", "text_tokens", "phoneme_tokens", "resp_levels")


class _Check:
    """A check beside a type: raises ValueError for a value that has the type and is still wrong."""

    def __init__(self, check: Callable[[Any], None]) -> None:
        self._check = check

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def checked(value: Any) -> Any:
            self._check(value)
            return value

        return core_schema.no_info_after_validator_function(checked, handler(source))


def _ascending(bounds: tuple[float, float]) -> None:
    if not 0 <= bounds[0] <= bounds[1]:
        raise ValueError("expected the shorter duration first, and none below 0")


def _known_sizes(size: str | float | dict[str, Any]) -> None:
    for key in size if isinstance(size, dict) else ():
        if key not in _SIZES:
            nearest = difflib.get_close_matches(str(key), _SIZES, n=1)
            raise ValueError(
                f"unknown key {key}{f'; did you mean {nearest[0]}?' if nearest else ''} (known: {', '.join(_SIZES)})"
            )


Seconds = Annotated[tuple[float, float], _Check(_ascending)]
Size = Annotated[str | float | dict[str, Any], _Check(_known_sizes)]


class Dataset(Section):
    """Which utterances are read, and how samples and batches are made of them."""

    training: list[str] = Field(["*/*"], description="`group/speaker` patterns of the training split")
    validation: list[str] = Field(["*/*"], description="`group/speaker` patterns of the validation split")
    noise: list[str] = Field([], description="`group/speaker` patterns of background noise, for ns, sr, nse")
    use_hdf5: bool = Field(True, description="read `hdf5_name`; else the files below data/ and metadata/")
    hdf5_name: str = Field("data.h5", description="the dataset's file, beside the YAML file")
    cache: bool = Field(True, description="remember under .cache/ what the dataset holds, until its files change")
    use_metadata: bool = Field(True, description="lengths and texts of a folder dataset come from metadata/*.json")
    validate_samples: bool = Field(
        False, description="read every utterance at the start, and report those that cannot be read"
    )
    workers: int = Field(0, ge=0, description="processes that prepare batches; 0 prepares them in the trainer")
    min_utterances: int = Field(1, ge=1, description="speakers with fewer are left out, and reported")
    max_utterances: int | None = Field(None, ge=1, description="of a speaker, the first so many are read")
    duration_range: Seconds = Field((0.3, 16.0), description="seconds; utterances outside are left out and counted")
    speaker_getter: Literal["folder", "prefix"] = Field(
        "folder", description="who speaks: the folder, or the part of an utterance's name before `_` or `-`"
    )
    sample_type: Literal["path", "speaker", "group"] = Field(
        "path", description="an epoch takes each utterance once, or speakers or groups equally often"
    )
    sample_order: Literal["interleaved", "duration", "shuffle"] = Field(
        "duration", description="batches of similar length (duration), speakers in turn, or at random"
    )
    sample_shuffle: bool = Field(True, description="in another order each epoch")
    sample_max_duration_batch: float = Field(
        0.0, ge=0, description="seconds of a batch at most, its longest times its size; 0 for no limit"
    )
    prompt_duration_range: Seconds = Field(
        (3.0, 3.0), description="seconds of the prompt, drawn from another utterance of the speaker"
    )
    prompt_max_samples: int = Field(1, ge=1, description="utterances that a prompt is joined of, at most")
    prompt_dropout: float = Field(0.1, ge=0, le=1, description="share of the training samples without a prompt")
    prompt_continuous_utterance_p: float = Field(
        0.0, ge=0, le=1, description="share of the prompts that are the utterance's own beginning (tts-c)"
    )
    prompt_similar_p: float = Field(
        0.0, ge=0, le=1, description="share of the prompts taken from the most similar utterances (metadata)"
    )
    prompt_similar_top_k: int = Field(1, ge=1, description="of the similar utterances, one of the first so many")
    resps_max_samples: int = Field(1, ge=1, description="utterances of a speaker joined into one, at most")
    resps_append_p: float = Field(0.0, ge=0, le=1, description="how often another one is joined")
    tasks_list: list[Task] = Field(
        ["tts"], min_length=1, description="drawn from at random; a task named twice comes twice as often"
    )
    noise_scale: float = Field(0.25, ge=0, description="of the noise mixed into speech, by amplitude")
    retokenize_text: bool = Field(True, description="ids are made of the phonemes anew, not read from the dataset")
    seed: int = Field(0, description="of the order, the prompts and the levels drawn")


class Experimental(Section):
    """Flags of the architecture and of the objective, as existing weights have them."""

    noncausal_masks: bool = Field(True, description="passes above level 0 see the whole sequence")
    unified_position_ids: bool = Field(False, description="positions run on instead of restarting in each segment")
    audio_embedding_sums: bool | Literal["prom", "resp"] = Field(
        True, description="levels below are summed: everywhere, nowhere, or in one segment"
    )
    split_classifiers: bool = Field(True, description="a head for each level instead of one for all")
    classifiers_bias: bool = Field(True, description="the heads have biases")
    length_offset: int = Field(0, ge=0, le=1, description="1: the length task counts the stop token (old weights)")
    rvq_levels_p: Literal["auto", "equal"] | list[float] = Field(
        "auto", description="how often each level is trained: level i by levels - i, equally, or weights"
    )
    delay: bool | list[int] = Field(
        False,
        description="instead of AR+NAR predict all levels at once, each a frame behind the one below, or by offsets",
    )
    masking_train_p: float = Field(0.0, ge=0, le=1, description="share of level 0 that trains demasking (nar-len)")


class Model(Section):
    """A model: the one that is trained, or a teacher of it."""

    name: str = Field("ar+nar", description="the folder under ckpt/")
    version: Literal[5] = Field(5, description="of the tensors' layout")
    size: Size = Field(
        "full",
        description="quarter, half, full, double, extended, a number, or dim/heads/layers/ffn/… by name",
    )
    langs: int | list[str] = Field(6, description="rows of the language table, or the language of each by name")
    tasks: int = Field(9, ge=1, description="rows of the task table")
    tones: int = Field(1, ge=1, description="rows of the tone table")
    training: bool = Field(True, description="train it; the one entry that is")
    teacher: bool = Field(False, description="distil from it")
    path: Path | None = Field(None, description="weights to start from (fine-tuning), or the teacher's")
    frozen_params: list[str] = Field([], description="patterns of parameters that are not trained")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the output of each block")
    loss_factors: dict[str, float] = Field({}, description="weights of the losses by task: tts, nar-len, stt, len")
    capabilities: list[Literal["ar", "nar", "nar-len", "stt", "len", "lang"]] = Field(
        ["ar", "nar"], description="what is trained: level 0 (ar), the levels above (nar), tasks; lang says nothing"
    )
    experimental: Experimental


class LoRA(Section):
    """Low-rank adapters on the trunk's matrices."""

    name: str = Field("lora", description="the adapter's folder under ckpt/")
    rank: int = Field(8, ge=1, description="of each adapter")
    alpha: float = Field(16.0, gt=0, description="scale, divided by the rank")
    training: bool = Field(True, description="train it; the base is then frozen")
    embeddings: bool = Field(False, description="adapt the embeddings and heads too")
    parametrize: bool = Field(False, description="adapt the weights in place instead of wrapping the layers")
    rvq_levels: list[int] = Field([], description="the levels that it is trained on; none for all")
    path: Path | None = Field(None, description="an adapter to start from")


class Hyperparameters(Section):
    """How a step is made."""

    batch_size: int = Field(8, ge=1, description="utterances in a batch at most")
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches in an optimizer step")
    gradient_clipping: float | None = Field(
        1.0, gt=0, description="the norm that gradients are clipped to; null for no clipping"
    )
    optimizer: str = Field("adamw", description="a name that wrapkit.optimizer knows: adamw, prodigy, apollo, …")
    optimizer_params: dict[str, Any] = Field({}, description="passed to it: betas, weight_decay, …")
    learning_rate: float = Field(1e-4, gt=0, description="at the end of the warm-up")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    scheduler: Literal["constant", "cosine"] = Field(
        "cosine", description="after the warm-up; cosine ends at 2 % when the iterations or minutes do"
    )
    teacher_alpha: float = Field(0.5, ge=0, le=1, description="share of the distillation loss")
    teacher_temperature: float = Field(1.0, gt=0, description="of the distillation")
    teacher_loss_fn: Literal["kl", "mse"] = Field("kl", description="of the distillation")


class Evaluation(Section):
    """What is measured every so often."""

    batch_size: int = Field(32, ge=1, description="utterances in a pass")
    frequency: int = Field(250, ge=0, description="steps between evaluations; 0 for one at the end only")
    size: int = Field(4, ge=0, description="utterances synthesised of each split")
    loss_size: int = Field(96, ge=1, description="utterances of each split that the loss is averaged over")
    kwargs: dict[str, Any] = Field({}, description="of the synthesis, as the command has them: temperature, top_p, …")


class DeepSpeed(Section):
    """The DeepSpeed backend."""

    zero_optimization_level: int = Field(
        0, ge=0, le=2, description="ZeRO stage; 3 would divide the parameters, and evaluation needs them whole"
    )
    loss_scale_window: int = Field(1000, ge=1, description="fp16: steps without overflow before the scale doubles")
    min_loss_scale: float = Field(1.0, gt=0, description="fp16: the scale's lower bound")
    config: dict[str, Any] = Field({}, description="DeepSpeed's own configuration, merged last")


class Trainer(Section):
    """How long training goes on, and what is kept."""

    iterations: int = Field(1_000_000, ge=0, description="optimizer steps in all")
    minutes: float = Field(0.0, ge=0, description="of training in all, over resumes; 0 for no limit")
    save_frequency: int = Field(250, ge=1, description="steps between checkpoints")
    keep_last_checkpoints: int | None = Field(4, ge=1, description="older ones are removed; null keeps all")
    keep_best_checkpoints: int = Field(1, ge=0, description="by validation loss, kept besides the last")
    export_on_save: bool = Field(False, description="also export the weights at each checkpoint")
    export_on_quit: bool = Field(True, description="export the weights when a run ends")
    load_path: Path | None = Field(None, description="a checkpoint folder to start from, when this run has none yet")
    load_tag: int | None = Field(
        None, ge=0, description="step to start from, of load_path or else of this run, if not the newest"
    )
    load_module_only: bool = Field(False, description="take the parameters of load_path alone: a new optimizer")
    load_states: bool = Field(
        True, description="take the optimizer of load_path too; else a new one goes on from there"
    )
    restart_step_count: bool = Field(False, description="count the steps from 0 after load_path")
    save_on_oom: bool = Field(True, description="out of memory in a backward pass: save, then end")
    resize_modules: bool = Field(False, description="weights to start from may have fewer or more rows (languages, …)")
    strict_loading: bool = Field(True, description="weights to start from must hold every parameter, and no other")
    gradient_checkpointing: bool = Field(False, description="recompute the blocks in the backward pass")
    detect_grad_anomaly: bool = Field(
        False, description="name the operation whose gradient is the first not to be finite; slow"
    )
    weight_dtype: DType = Field("float32", description="of the matrix products under amp")
    amp: bool = Field(False, description="automatic mixed precision in weight_dtype; parameters stay float32")
    backend: Literal["local", "ddp", "deepspeed", "accelerate"] = Field("local", description="how the engine runs")
    deepspeed: DeepSpeed
    wandb: bool = Field(False, description="log to Weights & Biases too")
    tensorboard: bool = Field(False, description="log to TensorBoard too")
    seed: int = Field(0, description="of the parameters and of dropout")


class Inference(Section):
    """How speech is made from weights, by `vall-e --yaml`."""

    weight_dtype: DType = Field("float32", description="of the parameters")


class Optimizations(Section):
    """What wrapkit replaces in the model or the optimizer."""

    replace: bool = Field(True, description="swap layers in the model that was built")
    injects: bool = Field(False, description="overwrite torch.nn while the model is built, instead")
    linear: bool = Field(True, description="linear layers of the trunk are changed")
    embedding: bool = Field(False, description="embeddings are changed (bitsandbytes)")
    optimizers: bool = Field(True, description="the optimizer is changed (bitsandbytes, dadaptation)")
    bitsandbytes: bool = Field(False, description="8-bit linear layers and optimizer states")
    dadaptation: bool = Field(False, description="D-Adaptation: AdamW and SGD that find their learning rate")
    bitnet: bool = Field(False, description="ternary weights, 8-bit activations in training")
    fp8: bool = Field(False, description="TransformerEngine's FP8 (needs a GPU that has it)")
    unsloth: bool = Field(False, description="checkpointing with inputs offloaded to the CPU")
    model_offloading: dict[str, Any] = Field(
        {}, description="devices that the model is split over: see wrapkit.offload"
    )
    compile: bool | str = Field(False, description="torch.compile, or the name of its backend")


class Codec(Section):
    """The embedded codec, when the dataset is prepared with it."""

    levels: int = Field(8, ge=1, le=8, description="codebooks")
    entries: int = Field(1024, ge=2, le=32768, description="codes in each")
    stack: int = Field(1, ge=1, description="mel frames (93.75 a second) to a code")
    iterations: int = Field(10, ge=1, description="k-means iterations a level")
    minutes: float = Field(20.0, gt=0, description="of the training split that it is fitted on, at most")
    path: Path | None = Field(None, description="weights of encodec, vocos or dac on this disk")


class Demo(Section):
    """The embedded corpus, built when there is no dataset."""

    enabled: bool = Field(False, description="build the embedded corpus when the dataset is missing")
    utterances: int = Field(1800, ge=240, description="in all, over 6 voices and 2 languages")
    validation: int = Field(120, ge=16, description="of them held out, with texts of their own")


class Config(BaseConfig):
    """A VALL-E training run."""

    device: str = Field("auto", description="cpu, cuda, cuda:1, …; auto takes cuda where there is one")
    audio_backend: Literal["melvq", "encodec", "vocos", "dac"] = Field("melvq", description="the codec of the dataset")
    tokenizer: Literal["auto", "naive"] = Field(
        "auto", description="phonemes to ids: auto reads tokenizer_path where it is given, naive does not"
    )
    tokenizer_path: Path | None = Field(
        None, description="a tokenizer.json (Hugging Face tokenizers), beside the YAML file; none for the naive one"
    )
    weights_name: str = Field("fp32", description="of exported weights")
    weights_format: Literal["sft", "pth"] = Field("sft", description="of exported weights")
    dataset: Dataset
    models: list[Model] = Field([{}], description="the model that is trained, and its teachers", min_length=1)
    loras: list[LoRA] = Field([], description="adapters; one is trained")
    hyperparameters: Hyperparameters
    evaluation: Evaluation
    trainer: Trainer
    inference: Inference
    optimizations: Optimizations
    codec: Codec
    demo: Demo

    migrations = MIGRATIONS

    @classmethod
    def model_values(cls, config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
        return {"models": [{**config, "path": str(path)}]}

    @classmethod
    def lora_values(cls, config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
        return {"loras": [{**config, "path": str(path)}]}

    @property
    def hdf5_path(self) -> Path:
        return self.rel_path / self.dataset.hdf5_name

    @property
    def codec_path(self) -> Path:
        return self.rel_path / "codec.sft"

    def chosen_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of `tokenizer_path`; None to take that of the dataset or of the weights.

        Raises:
            TokenizerError: it cannot be used.
        """
        if self.tokenizer_path is None or self.tokenizer == "naive":
            return None
        from vall_e.tokenizer_json import JsonTokenizer

        return JsonTokenizer.load(self.rel_path / self.tokenizer_path)

    @property
    def model(self) -> Model:
        """The model that is trained."""
        trained = [m for m in self.models if m.training and not m.teacher]
        if len(trained) != 1:
            raise ValueError(f"models: one entry is to be trained, found {[m.name for m in trained] or 'none'}")
        return trained[0]

    @property
    def lora(self) -> LoRA | None:
        """The adapter that is trained."""
        trained = [lora for lora in self.loras if lora.training]
        if len(trained) > 1:
            raise ValueError(f"loras: one entry can be trained, found {[lora.name for lora in trained]}")
        return trained[0] if trained else None

    def torch_device(self) -> str:
        """The device to train on."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
