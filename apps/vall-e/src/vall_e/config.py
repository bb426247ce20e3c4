"""The configuration: sections and fields as users of existing YAML files know them.

The folder of the YAML file is the root: `data/`, `metadata/`, `ckpt/`, `logs/` and `data.h5` lie beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from basecfg import BaseConfig, Field, Section


class Dataset(Section):
    """Which utterances are read, and how batches are made of them."""

    training: list[str] = Field(["*/*"], description="`group/speaker` patterns of the training split")
    validation: list[str] = Field(["*/*"], description="`group/speaker` patterns of the validation split")
    hdf5_name: str = Field("data.h5", description="the dataset's file, beside the YAML file")
    workers: int = Field(0, ge=0, description="processes that prepare batches; 0 prepares them in the trainer")
    duration_range: tuple[float, float] = Field(
        (0.3, 16.0), description="seconds; utterances outside are left out and counted"
    )
    prompt_duration_range: tuple[float, float] = Field(
        (3.0, 3.0), description="seconds of the prompt, drawn from another utterance of the speaker"
    )
    prompt_dropout: float = Field(0.1, ge=0, le=1, description="share of the training samples without a prompt")
    seed: int = Field(0, description="of the order, the prompts and the levels drawn")


class Model(Section):
    """The model that is trained."""

    name: str = Field("ar+nar", description="the folder under ckpt/")
    version: Literal[5] = Field(5, description="of the tensors' layout")
    size: str | float | dict[str, Any] = Field(
        "full",
        description="quarter, half, full, double, extended, a number, or dim/heads/layers/ffn/… by name",
    )
    langs: int = Field(6, ge=1, description="rows of the language table")
    tasks: int = Field(9, ge=1, description="rows of the task table")
    tones: int = Field(1, ge=1, description="rows of the tone table")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the output of each block")
    capabilities: list[str] = Field(["ar", "nar"], description="what is trained: ar, nar")
    experimental: dict[str, Any] = Field({}, description="flags of the architecture: see docs")


class Hyperparameters(Section):
    """How a step is made."""

    batch_size: int = Field(8, ge=1, description="utterances in a batch at most")
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches in an optimizer step")
    gradient_clipping: float = Field(1.0, gt=0, description="the norm that gradients are clipped to")
    optimizer: str = Field("adamw", description="a name that wrapkit.optimizer knows: adamw, prodigy, …")
    optimizer_params: dict[str, Any] = Field({}, description="passed to it: betas, weight_decay, …")
    learning_rate: float = Field(1e-4, gt=0, description="at the end of the warm-up")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    scheduler: Literal["constant", "cosine"] = Field(
        "cosine", description="after the warm-up; cosine ends at 2 % when the iterations or minutes do"
    )


class Evaluation(Section):
    """What is measured every so often."""

    batch_size: int = Field(32, ge=1, description="utterances in a pass")
    frequency: int = Field(250, ge=0, description="steps between evaluations; 0 for one at the end only")
    size: int = Field(4, ge=0, description="utterances synthesised of each split")
    loss_size: int = Field(96, ge=1, description="utterances of each split that the loss is averaged over")
    kwargs: dict[str, Any] = Field({}, description="of the synthesis: temperature, top_k, top_p, …")


class Trainer(Section):
    """How long training goes on, and what is kept."""

    iterations: int = Field(1_000_000, ge=0, description="optimizer steps in all")
    minutes: float = Field(0.0, ge=0, description="of training in all, over resumes; 0 for no limit")
    save_frequency: int = Field(250, ge=1, description="steps between checkpoints")
    keep_last_checkpoints: int = Field(4, ge=1, description="older ones are removed")
    export_on_save: bool = Field(False, description="also export the weights at each checkpoint")
    weight_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the matrix products under amp"
    )
    amp: bool = Field(False, description="automatic mixed precision in weight_dtype; parameters stay float32")
    backend: Literal["local"] = Field("local", description="how the engine runs")
    seed: int = Field(0, description="of the parameters and of dropout")


class Codec(Section):
    """The embedded codec, when the dataset is prepared with it."""

    levels: int = Field(8, ge=1, le=8, description="codebooks")
    entries: int = Field(1024, ge=2, le=65536, description="codes in each")
    stack: int = Field(1, ge=1, description="mel frames (93.75 a second) to a code")
    iterations: int = Field(10, ge=1, description="k-means iterations a level")
    minutes: float = Field(20.0, gt=0, description="of the training split that it is fitted on, at most")


class Demo(Section):
    """The embedded corpus, built when there is no dataset."""

    enabled: bool = Field(False, description="build the embedded corpus when the dataset is missing")
    utterances: int = Field(1800, ge=240, description="in all, over 6 voices and 2 languages")
    validation: int = Field(120, ge=16, description="of them held out, with texts of their own")


class Config(BaseConfig):
    """A VALL-E training run."""

    device: str = Field("auto", description="cpu, cuda, cuda:1, …; auto takes cuda where there is one")
    audio_backend: Literal["melvq"] = Field("melvq", description="the codec of the dataset")
    weights_name: str = Field("fp32", description="of exported weights")
    weights_format: Literal["sft", "pth"] = Field("sft", description="of exported weights")
    dataset: Dataset
    models: list[Model] = Field([{}], description="one entry", min_length=1, max_length=1)
    hyperparameters: Hyperparameters
    evaluation: Evaluation
    trainer: Trainer
    codec: Codec
    demo: Demo

    @property
    def hdf5_path(self) -> Path:
        return self.rel_path / self.dataset.hdf5_name

    @property
    def codec_path(self) -> Path:
        return self.rel_path / "codec.sft"

    @property
    def model(self) -> Model:
        return self.models[0]

    def torch_device(self) -> str:
        """The device to train on."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
