"""A training run: the dataset's batches through an engine, with evaluation, checkpoints and export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import stateio
import torch
import trainloop
import wrapkit

from vall_e.codecs.melvq import MelVQ
from vall_e.config import Config
from vall_e.data.batches import Loader, PromptRules, Prompts, TrainingSet
from vall_e.data.store import DatasetError, DatasetFile, Entry
from vall_e.evaluation import Evaluator
from vall_e.model.model import VallE
from vall_e.model.sequence import Batch
from vall_e.model.spec import ModelSpec
from vall_e.plot import plot_losses
from vall_e.schedule import Schedule
from vall_e.tokenizer import default_vocabulary
from vall_e.weights import save_weights

_PRECISION = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class Training:
    """A run put together from its configuration.

    Args:
        cfg: the configuration; its folder holds the dataset and takes checkpoints and logs.
        commands: obey commands typed on stdin.

    Raises:
        DatasetError: the dataset is missing, damaged, empty, or of another codec than the one beside it.
        ValueError: the model does not fit the dataset.
    """

    def __init__(self, cfg: Config, *, commands: bool = True) -> None:
        self.cfg = cfg
        self.file = DatasetFile(cfg.hdf5_path)
        self.vocabulary = self.file.vocabulary or default_vocabulary()
        self.codec = _codec_of(cfg, self.file)
        training, dropped = _kept(cfg, self.file.entries("training", cfg.dataset.training))
        validation, more = _kept(cfg, self.file.entries("validation", cfg.dataset.validation))
        self.splits = {"subtrain": training, "val": validation}
        self.dropped = dropped + more
        self.spec = _spec_of(cfg, self.codec, self.vocabulary)
        torch.manual_seed(cfg.trainer.seed)
        device = cfg.torch_device()
        self.model = VallE(self.spec).to(device)
        rules = PromptRules(cfg.dataset.prompt_duration_range, cfg.dataset.prompt_dropout)
        prompts = Prompts(self.file, training, rules)
        self.loader = Loader(
            TrainingSet(self.file, training, prompts, self.spec, cfg.dataset.seed),
            batch_size=cfg.hyperparameters.batch_size,
            workers=cfg.dataset.workers,
        )
        self.trainer: trainloop.Trainer | None = None
        self.engine = self._engine(device)
        self.evaluator = Evaluator(
            self.model,
            self.codec,
            self.file,
            self.splits,
            self.loader,
            prompts,
            batch_size=cfg.evaluation.batch_size,
            autocast=self.engine.forward_context,
            sampling=cfg.evaluation.kwargs,
        )
        self.trainer = self._trainer(commands)

    # Where results are --------------------------------------------------------------------------------------

    @property
    def ckpt_dir(self) -> Path:
        return self.cfg.ckpt_dir / self.cfg.model.name

    @property
    def weights_path(self) -> Path:
        return self.ckpt_dir / f"{self.cfg.weights_name}.{self.cfg.weights_format}"

    @property
    def plot_path(self) -> Path:
        return self.cfg.rel_path / "loss.png"

    # The parts ----------------------------------------------------------------------------------------------

    def _engine(self, device: str) -> trainloop.LocalEngine:
        hyper, trainer = self.cfg.hyperparameters, self.cfg.trainer
        optimizer = wrapkit.optimizer(
            hyper.optimizer, self.model, lr=hyper.learning_rate, **_tuples(hyper.optimizer_params)
        )
        schedule = Schedule(optimizer, hyper.scheduler, hyper.warmup_steps, trainer.iterations, self._time_used)
        return trainloop.LocalEngine(
            self.cfg.model.name,
            self.model,
            optimizer,
            scheduler=schedule,
            clip=hyper.gradient_clipping,
            precision=_PRECISION[trainer.weight_dtype] if trainer.amp else "fp32",
            device=device,
        )

    def _trainer(self, commands: bool) -> trainloop.Trainer:
        cfg = self.cfg
        return trainloop.Trainer(
            trainloop.Engines([self.engine]),
            self.loader,
            self._feed,
            until=cfg.trainer.iterations,
            time_budget=cfg.trainer.minutes * 60 or None,
            accumulate=cfg.hyperparameters.gradient_accumulation_steps,
            checkpoints=trainloop.CheckpointStore(
                self.ckpt_dir,
                keep_last=cfg.trainer.keep_last_checkpoints,
                save=lambda state, path: stateio.save({"module": state}, path),
                load=lambda path: stateio.load(path)["module"],
                suffix=".sft",
            ),
            log_dir=cfg.log_dir,
            save_every=cfg.trainer.save_frequency,
            eval_every=cfg.evaluation.frequency or None,
            export_every=cfg.trainer.save_frequency if cfg.trainer.export_on_save else None,
            evaluate=self._evaluate,
            eval_first=True,
            export=lambda _: self.export(),
            commands=commands,
        )

    def _time_used(self) -> float:
        """The share of the time limit that is used up."""
        if self.trainer is None or not self.cfg.trainer.minutes:
            return 0.0
        return self.trainer.elapsed / (self.cfg.trainer.minutes * 60)

    # What the trainer calls ---------------------------------------------------------------------------------

    def _feed(self, engine: trainloop.Engine, batches: list[Batch], _: trainloop.StepContext) -> trainloop.StepOutput:
        """The mean loss over all samples of a batch, whichever level each of them is at."""
        device = self.model.device
        losses = [self.model.batch_loss(batch.to(device)) for batch in batches]
        nll = torch.cat([loss.per_request for loss in losses])
        head = torch.cat([loss.head for loss in losses])
        detached = nll.detach()
        levels = {f"level{h}": detached[head == h].mean() for h in head.unique().tolist()}
        return trainloop.StepOutput(
            nll.mean(),
            weight=len(nll),
            metrics=levels,
            samples=len(nll),
            tokens=sum(int(batch.output.numel()) for batch in batches),
        )

    def _evaluate(self, trainer: trainloop.Trainer) -> dict[str, float]:
        measured: dict[str, float] = {}
        folder = self.cfg.log_dir / str(trainer.step)
        for split in self.splits:
            if trainer.stop_requested:
                break
            size = self.cfg.evaluation.loss_size
            measured |= self.evaluator.losses(split, size, lambda: trainer.stop_requested)
            # Before the first step there is nothing to hear.
            if trainer.step and self.cfg.evaluation.size and not trainer.stop_requested:
                measured |= self.evaluator.synthesise(split, self.cfg.evaluation.size, folder)
        levels = " ".join(f"{measured[f'val.level{i}']:.2f}" for i in range(self.spec.levels) if "val.loss" in measured)
        trainer.say(f"step {trainer.step}: validation loss by level {levels}")
        return measured

    def export(self) -> Path:
        """Write the weights with all that is needed to speak with them."""
        assert self.trainer is not None
        phones = sum(e.phones for e in self.splits["subtrain"])
        save_weights(
            self.weights_path,
            self.model,
            vocabulary=self.vocabulary,
            codec=self.codec,
            settings={
                "prompt_seconds": self.cfg.dataset.prompt_duration_range[1],
                "frames_per_phone": sum(e.frames for e in self.splits["subtrain"]) / phones,
                "sampling": self.cfg.evaluation.kwargs,
            },
            stats={
                "global_step": self.trainer.step,
                "global_samples": self.engine.clock.samples,
                "tokens_processed": self.engine.clock.tokens,
            },
        )
        return self.weights_path

    def run(self) -> trainloop.RunResult:
        """Train to the end, or until a signal or a command stops it; export and draw the losses."""
        assert self.trainer is not None
        result = self.trainer.run()
        self.export()
        plot_losses(self.cfg.rel_path / "logs", self.plot_path)
        return result


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    """YAML has lists where optimizers take tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def _kept(cfg: Config, entries: list[Entry]) -> tuple[list[Entry], int]:
    """The utterances within `dataset.duration_range`, and how many are not."""
    shortest, longest = cfg.dataset.duration_range
    kept = [e for e in entries if shortest <= e.duration <= longest]
    if not kept:
        raise DatasetError(
            f"{cfg.hdf5_path}: none of {len(entries)} utterances lasts {shortest} to {longest} s "
            "(dataset.duration_range)"
        )
    return kept, len(entries) - len(kept)


def _codec_of(cfg: Config, file: DatasetFile) -> MelVQ:
    """The codec beside the dataset, which must be the one that its codes were made by."""
    if not cfg.codec_path.is_file():
        raise DatasetError(f"{cfg.codec_path}: the codec of {file.path.name} is missing; prepare the dataset again")
    codec = MelVQ.load(cfg.codec_path)
    made_by = file.codec.identity if file.codec else "an unknown codec"
    if made_by != codec.identity:
        raise DatasetError(
            f"{file.path} holds codes of {made_by}, but {cfg.codec_path} is {codec.identity}: codes of one fit "
            "mean nothing to another. Put the right codec.sft back, or prepare the dataset again"
        )
    return codec


def _spec_of(cfg: Config, codec: MelVQ, vocabulary: dict[str, int]) -> ModelSpec:
    entry = cfg.model
    spec = ModelSpec.from_config(
        {
            "size": entry.size,
            "langs": entry.langs,
            "tasks": entry.tasks,
            "tones": entry.tones,
            "dropout": entry.dropout,
            "capabilities": entry.capabilities,
            "experimental": {"length_offset": 0, **entry.experimental},
        }
    )
    given = entry.size if isinstance(entry.size, dict) else {}
    for name, found, needed in (
        ("audio_tokens", spec.audio_tokens, codec.entries),
        ("resp_levels", spec.levels, codec.levels),
    ):
        if name in given and found != needed:
            raise ValueError(
                f"models[0].size.{name} is {found}, but the codec of {cfg.hdf5_path} has {needed}; "
                f"set {name}: {needed} or leave it out"
            )
    if max(vocabulary.values()) >= spec.phoneme_tokens:
        raise ValueError(
            f"models[0].size.phoneme_tokens is {spec.phoneme_tokens}, but the vocabulary of {cfg.hdf5_path} goes "
            f"up to {max(vocabulary.values())}"
        )
    return replace(spec, audio_tokens=codec.entries, levels=codec.levels)
