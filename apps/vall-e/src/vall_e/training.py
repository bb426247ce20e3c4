"""A training run: the dataset's batches through an engine, with evaluation, checkpoints and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import distkit
import stateio
import torch
import trainloop
import wrapkit

from vall_e.build import build_model, optimizer_of, spec_of, teachers_of
from vall_e.codecs.melvq import MelVQ
from vall_e.config import Config
from vall_e.data.batches import Loader, TrainingSet
from vall_e.data.open import DatasetOf
from vall_e.data.order import batch_sampler
from vall_e.data.store import DatasetError
from vall_e.data.tasks import MIXING_TASKS, NOISE_TASKS, PromptRules, Prompts, Tasks
from vall_e.evaluation import Evaluator
from vall_e.model.model import Loss
from vall_e.model.sequence import Batch
from vall_e.plot import plot_losses
from vall_e.schedule import Schedule
from vall_e.weights import module_of, weights_file

_PRECISION: dict[str, Literal["fp32", "bf16", "fp16"]] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


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
        self.data = DatasetOf(cfg)
        self.codec, self.splits = self.data.codec, self.data.splits
        self.spec = spec_of(cfg, self.data)
        torch.manual_seed(cfg.trainer.seed)
        device = cfg.torch_device()
        self.model = build_model(cfg, self.spec, self.data.tokenizer)
        self.teachers = teachers_of(cfg, self.spec)
        rules = PromptRules(
            cfg.dataset.prompt_duration_range,
            cfg.dataset.prompt_dropout,
            cfg.dataset.prompt_max_samples,
            cfg.dataset.prompt_similar_p,
            cfg.dataset.prompt_similar_top_k,
            cfg.dataset.prompt_continuous_utterance_p,
            cfg.dataset.resps_append_p,
            cfg.dataset.resps_max_samples,
        )
        prompts = Prompts(self.data.file, self.splits["subtrain"], rules, self.data.frame_rate)
        self.loader = self._loader(prompts)
        self.trainer: trainloop.Trainer | None = None
        self.engine = self._engine(device)
        self.evaluator = Evaluator(
            self.model,
            self.codec,
            self.data.file,
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
        """An adapter has a folder of its own: `ckpt/<model>` holds what it was made for."""
        return self.cfg.ckpt_dir / (self.cfg.model.name if self.cfg.lora is None else self.cfg.lora.name)

    @property
    def weights_path(self) -> Path:
        """What a run exports: the weights, or the adapter."""
        if self.cfg.lora is not None:
            return self.ckpt_dir / "lora.sft"
        return self.ckpt_dir / f"{self.cfg.weights_name}.{self.cfg.weights_format}"

    @property
    def plot_path(self) -> Path:
        return self.cfg.rel_path / "loss.png"

    def notes(self) -> list[str]:
        """What a user should know before training starts."""
        lines = [f"left out: {count} utterances {reason}" for reason, count in self.data.left_out.items() if count]
        if self.data.without_codec:
            lines.append(f"nothing will be synthesised: {self.data.without_codec}")
        if self.cfg.dataset.validate_samples and (bad := self.data.unreadable()):
            raise DatasetError("\n".join([f"{len(bad)} utterances cannot be used:", *(f"  {k}: {r}" for k, r in bad)]))
        return lines

    # The parts ----------------------------------------------------------------------------------------------

    def _loader(self, prompts: Prompts) -> Loader:
        cfg, entries = self.cfg, self.splits["subtrain"]
        names = cfg.dataset.tasks_list or ["tts"]
        if set(names) & set(MIXING_TASKS) and self.codec is None:
            raise ValueError(
                f"dataset.tasks_list: {', '.join(sorted(set(names) & set(MIXING_TASKS)))} mix recordings and need the "
                f"codec of the dataset ({cfg.audio_backend}), which is not here"
            )
        if set(names) & set(NOISE_TASKS) and not self.data.noise:
            raise ValueError(
                f"dataset.tasks_list: {', '.join(sorted(set(names) & set(NOISE_TASKS)))} need noise: name it in "
                "dataset.noise"
            )
        if cfg.dataset.prompt_similar_p and not any(e.similar for e in entries):
            raise ValueError(
                "dataset.prompt_similar_p: no utterance is known to be like another; find out which are with "
                f"`vall-e-data metadata --yaml {cfg.yaml_path}`"
            )
        tasks = Tasks(self.data.file, prompts, self.data.noise, self.codec, cfg.dataset.noise_scale)
        sampler = batch_sampler(
            cfg.dataset,
            entries,
            cfg.hyperparameters.batch_size,
            self.data.frame_rate,
            rank=distkit.rank(),
            world_size=distkit.world_size(),
        )
        levels = cfg.lora.rvq_levels if cfg.lora is not None else []
        return Loader(
            TrainingSet(entries, tasks, names, self.spec, cfg.dataset.seed, levels),
            sampler,
            workers=cfg.dataset.workers,
        )

    def _engine(self, device: str) -> trainloop.Engine:
        cfg, hyper = self.cfg, self.cfg.hyperparameters
        options: dict[str, Any] = {"device": device}
        unused = {"find_unused_parameters": True}  # a batch need not have every level
        if cfg.trainer.backend == "ddp":
            options |= {"ddp": unused}
        if cfg.trainer.backend == "accelerate":
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs

            kwargs = [DistributedDataParallelKwargs(**unused)]
            options = {"accelerator": Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=kwargs)}
        if cfg.trainer.backend == "deepspeed":
            deepspeed = cfg.trainer.deepspeed
            scale = {"loss_scale_window": deepspeed.loss_scale_window, "min_loss_scale": deepspeed.min_loss_scale}
            half = {"fp16": scale} if cfg.trainer.amp and cfg.trainer.weight_dtype == "float16" else {}
            options |= {"zero_stage": deepspeed.zero_optimization_level, "config": {**half, **deepspeed.config}}
        return trainloop.build_engine(
            cfg.trainer.backend,
            cfg.model.name,
            self.model,
            lambda model: optimizer_of(cfg, model),
            scheduler=lambda optimizer: Schedule(
                optimizer, hyper.scheduler, hyper.warmup_steps, cfg.trainer.iterations, self._time_used
            ),
            clip=hyper.gradient_clipping,
            precision=_PRECISION[cfg.trainer.weight_dtype] if cfg.trainer.amp else "fp32",
            **options,
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
                keep_best=trainloop.Best("val.loss", cfg.trainer.keep_best_checkpoints)
                if cfg.trainer.keep_best_checkpoints
                else None,
                save=lambda tensors, path: stateio.save(self._file_of(tensors), path),
                load=module_of,
                suffix=".sft",
            ),
            state={"evaluation": self.evaluator},
            sinks=self._sinks(),
            log_dir=cfg.log_dir,
            save_every=cfg.trainer.save_frequency,
            eval_every=cfg.evaluation.frequency or None,
            export_every=cfg.trainer.save_frequency if cfg.trainer.export_on_save else None,
            evaluate=self._evaluate,
            eval_first=True,
            export=lambda _: self.export(),
            commands=commands,
            resume=trainloop.Resume(
                init_from=cfg.trainer.load_path,
                module_only=cfg.trainer.load_module_only,
                restart_step_count=cfg.trainer.restart_step_count,
                strict_world=False,
            ),
            save_on_oom=cfg.trainer.save_on_oom,
        )

    def _sinks(self) -> list[trainloop.TensorBoard | trainloop.WandB]:
        """Where metrics go besides `metrics.jsonl`, on the leader."""
        cfg = self.cfg
        sinks: list[trainloop.TensorBoard | trainloop.WandB] = []
        if cfg.trainer.tensorboard and distkit.is_leader():
            sinks.append(trainloop.TensorBoard(cfg.log_dir))
        if cfg.trainer.wandb and distkit.is_leader():
            sinks.append(trainloop.WandB(project="vall-e", name=cfg.start_time, config=cfg.to_state()))
        return sinks

    def _time_used(self) -> float:
        """The share of the time limit that is used up."""
        if self.trainer is None or not self.cfg.trainer.minutes:
            return 0.0
        return self.trainer.elapsed / (self.cfg.trainer.minutes * 60)

    # What the trainer calls ---------------------------------------------------------------------------------

    def _feed(self, engine: trainloop.Engine, batch: Batch, _: trainloop.StepContext) -> trainloop.StepOutput:
        """The mean loss over all samples of a batch, whichever level each of them is at."""
        loss = engine.module(batch, every_head=self.cfg.trainer.backend == "deepspeed")
        nll, head = loss.nll, loss.head
        detached = nll.detach()
        levels = {f"level{h}": detached[head == h].mean() for h, _ in batch.heads}
        total = (nll * self._factors(head)).mean()
        if self.teachers:
            total = self._taught(total, loss, batch)
        return trainloop.StepOutput(
            total,
            weight=len(batch.lengths),
            metrics=levels,
            samples=len(batch.lengths),
            tokens=batch.output.numel(),
        )

    def _factors(self, head: torch.Tensor) -> torch.Tensor:
        """The weight [G] of each loss, by its task (`loss_factors`)."""
        given, levels = self.cfg.model.loss_factors, self.spec.levels
        by_head = [given.get("tts", 1.0)] * (levels + 1) + [given.get("stt", 1.0), given.get("len", 1.0)]
        return torch.tensor(by_head, device=head.device)[head]

    def _taught(self, own: torch.Tensor, loss: Loss, batch: Batch) -> torch.Tensor:
        """The loss against data and teachers, whose answers count by their number of rows."""
        hyper = self.cfg.hyperparameters
        teach = trainloop.Distillation(hyper.teacher_loss_fn, 1.0, hyper.teacher_temperature)
        with torch.no_grad():
            answers = {name: teacher(batch).logits for name, teacher in self.teachers.items()}
        rows = sum(len(logits) for logits in loss.logits)
        taught = own.new_zeros(())
        for i, logits in enumerate(loss.logits):
            targets = {name: said[i].to(logits.device) for name, said in answers.items()}
            taught = taught + len(logits) / rows * teach(logits.float(), targets)
        return (1 - hyper.teacher_alpha) * own + hyper.teacher_alpha * taught

    def _evaluate(self, trainer: trainloop.Trainer) -> dict[str, float]:
        measured: dict[str, float] = {}
        folder = self.cfg.log_dir / str(trainer.step)
        for split in self.splits:
            if trainer.stop_requested:
                break
            size = self.cfg.evaluation.loss_size
            measured |= self.evaluator.losses(split, size, lambda: trainer.stop_requested)
            # Before the first step there is nothing to hear.
            if trainer.step and self.cfg.evaluation.size and self.codec and not trainer.stop_requested:
                measured |= self.evaluator.synthesise(split, self.cfg.evaluation.size, folder)
        if "val.loss" in measured:
            levels = " ".join(f"{measured[f'val.level{i}']:.2f}" for i in range(self.spec.levels))
            trainer.say(f"step {trainer.step}: validation loss by level {levels}")
        return measured

    def export(self) -> Path:
        """Write the weights, or the adapter that is trained, with all that is needed to speak with them.

        Every rank calls it, because gathering what is divided among them takes all; the leader writes.
        """
        tensors = self.engine.state_dict()["module"]
        if distkit.is_leader():
            if self.cfg.lora is None:
                stateio.save(self._file_of(tensors), self.weights_path)
            else:
                about = {"config": json.dumps(self.cfg.to_state()["loras"][self.cfg.loras.index(self.cfg.lora)])}
                self.weights_path.parent.mkdir(parents=True, exist_ok=True)
                wrapkit.lora.save(self.model, self.weights_path, self.cfg.lora.name, metadata=about)
        return self.weights_path

    def _file_of(self, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The model's tensors with all that is needed to speak with them."""
        assert self.trainer is not None
        entries, clock = self.splits["subtrain"], self.engine.clock
        return weights_file(
            tensors,
            self.spec,
            tokenizer=self.data.tokenizer,
            codec=self.codec if isinstance(self.codec, MelVQ) else None,
            settings={
                "codec": self.data.info.name if self.data.info else self.cfg.audio_backend,
                "prompt_seconds": self.cfg.dataset.prompt_duration_range[1],
                "frames_per_phone": sum(e.frames for e in entries) / sum(e.phones for e in entries),
                "sampling": self.cfg.evaluation.kwargs,
                "tasks": sorted(set(self.cfg.dataset.tasks_list) or {"tts"}),
            },
            stats={
                "global_step": self.trainer.step,
                "micro_step": clock.micro,
                "global_samples": clock.samples,
                "tokens_processed": clock.tokens,
            },
        )

    def run(self) -> trainloop.RunResult:
        """Train to the end, or until a signal or a command stops it; export and draw the losses."""
        assert self.trainer is not None
        result = self.trainer.run()
        if self.cfg.trainer.export_on_quit:
            self.export()
        if distkit.is_leader():
            plot_losses(self.cfg.rel_path / "logs", self.plot_path)
        return result
