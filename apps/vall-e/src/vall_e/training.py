"""A training run: the dataset's batches through an engine, with evaluation, checkpoints and export."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import distkit
import stateio
import torch
import trainloop
import wrapkit

from vall_e.adapter import about
from vall_e.build import build_model, optimizer_of, spec_of, teachers_of, trained_by
from vall_e.codecs.melvq import MelVQ
from vall_e.config import Config
from vall_e.data.batches import WITHOUT_LEVELS, Loader, TrainingSet
from vall_e.data.open import DatasetOf
from vall_e.data.order import batch_sampler
from vall_e.data.store import DatasetError
from vall_e.data.tasks import MIXING_TASKS, NOISE_TASKS, PromptRules, Prompts, Tasks
from vall_e.evaluation import Evaluator
from vall_e.model.model import Loss
from vall_e.model.sequence import Batch
from vall_e.plot import plot_losses
from vall_e.schedule import Schedule
from vall_e.weights import present, weights_file

_OF_A_CALL = ("seed", "max_frames", "modality")
"""Of `evaluation.kwargs`, what each call of synthesis says for itself."""
_FACTORS = {"tts": "resp", "nar-len": "tts", "stt": "phn", "phn": "text", "len": ""}
"""Keys of `loss_factors`, and those that they fall back to: existing files name the segment that is predicted."""
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
        self._check_folders()
        device = str(present(cfg.torch_device()))
        self.data = DatasetOf(cfg)
        self.codec, self.splits = self.data.codec, self.data.splits
        self.spec = spec_of(cfg, self.data)
        self.tasks, self.levels = trained_by(cfg, self.spec)
        torch.manual_seed(cfg.trainer.seed)
        self.model = build_model(cfg, self.spec, self.data)
        self.teachers = teachers_of(cfg, self.spec, self.data)
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
            measures=self._measures(),
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

    @property
    def speaks(self) -> bool:
        """Whether it is trained for anything that can be heard."""
        return bool(set(self.tasks) - {"stt", "len"})

    def best(self) -> tuple[int, float] | None:
        """(step, validation loss) of the best checkpoint that is kept, of those that were evaluated."""
        assert self.trainer is not None
        assert self.trainer.checkpoints is not None
        return next(iter(self.trainer.checkpoints.scores().items()), None)

    def notes(self) -> list[str]:
        """What a user should know before training starts."""
        lines = [f"left out: {count} utterances {reason}" for reason, count in self.data.left_out.items() if count]
        if given := sorted(set(self.cfg.model.loss_factors) - {*_FACTORS, *_FACTORS.values()}):
            lines.append(
                f"without effect: loss_factors of {', '.join(given)}; there are those of what is predicted: "
                "tts (resp), nar-len, stt (phn, text), len"
            )
        if more := [t for t in self.tasks if t not in self.cfg.dataset.tasks_list]:
            lines.append(f"trained beside dataset.tasks_list, by models[].capabilities: {', '.join(more)}")
        often = self.cfg.evaluation.frequency, self.cfg.trainer.save_frequency
        if self.cfg.trainer.keep_best_checkpoints and often[0] and (both := math.lcm(*often)) > max(often):
            lines.append(
                f"the best checkpoint is looked for every {both} steps and at the end alone: evaluation.frequency is "
                f"{often[0]}, trainer.save_frequency {often[1]}"
            )
        if self.data.without_codec:
            lines.append(f"nothing will be synthesised: {self.data.without_codec}")
        if self.cfg.dataset.validate_samples and (bad := self.data.unreadable()):
            raise DatasetError("\n".join([f"{len(bad)} utterances cannot be used:", *(f"  {k}: {r}" for k, r in bad)]))
        return lines

    def _check_folders(self) -> None:
        """Refuse checkpoints of the trainer that this one replaces: they are the user's, and only give weights."""
        at, given = self.cfg.models.index(self.cfg.model), self.cfg.trainer.load_path
        if (found := _replaced(self.ckpt_dir)) is not None:
            raise ValueError(
                f"{found} is a checkpoint of the trainer that this one replaces. It stays as it is; go on from its "
                f"weights, with a new optimizer, under another name: models.{at}.name=NAME models.{at}.path={found}"
            )
        if given is not None and (given.is_file() or (given.is_dir() and _replaced(given) is not None)):
            raise ValueError(
                f"trainer.load_path: {given} is not a checkpoint of this trainer, but weights alone can be taken from "
                f"it: models.{at}.path={given} instead"
            )

    def _measures(self) -> list[str]:
        """What the validation loss is made of: the levels and the tasks that are trained."""
        levels = [f"level{i}" for i in self.levels] if set(self.tasks) - set(WITHOUT_LEVELS) else []
        masked = self.spec.masking_train_p and "level0" in levels
        return levels + [t for t in WITHOUT_LEVELS if t in self.tasks or (t == "nar-len" and masked)]

    # The parts ----------------------------------------------------------------------------------------------

    def _loader(self, prompts: Prompts) -> Loader:
        cfg, entries, names = self.cfg, self.splits["subtrain"], self.tasks
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
        return Loader(
            TrainingSet(entries, tasks, names, self.spec, cfg.dataset.seed, self.levels),
            sampler,
            workers=cfg.dataset.workers,
            on_restart=self._say,
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
                load=_module_in,
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
            eval_last=True,
            export=lambda _: self.export(),
            commands=commands,
            resume=trainloop.Resume(
                init_from=cfg.trainer.load_path,
                step=cfg.trainer.load_tag,
                module_only=cfg.trainer.load_module_only,
                states=cfg.trainer.load_states,
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

    def _say(self, text: str) -> None:
        assert self.trainer is not None
        self.trainer.say(text)

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
        heads = [*(f"level{i}" for i in range(self.spec.levels)), "nar-len", "stt", "len"]
        levels = {heads[h]: detached[head == h].mean() for h, _ in batch.heads}
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
        """The weight [G] of each loss, by what is predicted (`loss_factors`)."""
        given = self.cfg.model.loss_factors

        def factor(key: str) -> float:
            return given.get(key, factor(_FACTORS[key]) if key in _FACTORS else 1.0)

        by_head = [factor("tts")] * self.spec.levels + [factor("nar-len"), factor("stt"), factor("len")]
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
            audible = self.speaks and self.cfg.evaluation.size and self.codec
            if trainer.step and audible and not trainer.stop_requested:
                measured |= self.evaluator.synthesise(split, self.cfg.evaluation.size, folder)
        if "val.loss" in measured:
            told = " ".join(f"{name} {measured[f'val.{name}']:.2f}" for name in self.evaluator.measures)
            trainer.say(f"step {trainer.step}: validation loss {told}")
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
                self._save_adapter(self.weights_path)
        return self.weights_path

    def weights_at(self, step: int) -> Path:
        """What to speak with as of a checkpoint: its folder, or for an adapter a file that is written for it."""
        folder = self.ckpt_dir / str(step)
        if self.cfg.lora is None:
            return folder
        path = self.ckpt_dir / f"lora-{step}.sft"
        last = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(_module_in(folder / f"{self.cfg.model.name}.sft"))
        self._save_adapter(path)
        self.model.load_state_dict(last)
        return path

    def _save_adapter(self, path: Path) -> None:
        assert self.cfg.lora is not None
        entry = self.cfg.to_state()["loras"][self.cfg.loras.index(self.cfg.lora)]
        path.parent.mkdir(parents=True, exist_ok=True)
        wrapkit.lora.save(self.model, path, self.cfg.lora.name, about(self.model, entry))

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
                "sampling": {k: v for k, v in self.cfg.evaluation.kwargs.items() if k not in _OF_A_CALL},
                "tasks": sorted({*self.tasks, *(["nar-len"] if self.spec.masking_train_p else [])}),
                "most_phones": max(e.phones for e in entries),
                "most_frames": max(e.frames for e in entries),
            },
            stats={
                "global_step": self.trainer.step,
                "micro_step": clock.micro,
                "global_samples": clock.samples,
                "tokens_processed": clock.tokens,
            },
        )

    def run(self) -> trainloop.RunResult:
        """Train to the end, or until a signal or a command stops it; export and draw the losses.

        Raises:
            ValueError: no step gets a finite gradient any more, or the checkpoint is of something else.
            CheckpointError: checkpoints cannot be read or written.
        """
        assert self.trainer is not None
        try:
            with torch.autograd.set_detect_anomaly(self.cfg.trainer.detect_grad_anomaly):
                result = self.trainer.run()
        except trainloop.TooManySkips as e:
            raise ValueError(
                f"{e.why}. Lower hyperparameters.learning_rate or hyperparameters.gradient_clipping; the checkpoints "
                f"in {self.ckpt_dir} are from before"
            ) from e
        except trainloop.CheckpointError as e:
            if not e.remedy:
                raise
            entry = f"models.{self.cfg.models.index(self.cfg.model)}"
            if self.cfg.lora is not None:
                entry = f"loras.{self.cfg.loras.index(self.cfg.lora)}"
            raise trainloop.CheckpointError(
                f"{e.why}\nTrain with the configuration it was made with; or set another {entry}.name, and "
                "trainer.load_path to a checkpoint to start from (trainer.load_module_only=true takes its weights "
                f"alone); or delete {self.ckpt_dir} to start anew"
            ) from e
        except RuntimeError as e:
            if "returned nan values" not in str(e):
                raise
            raise ValueError(f"trainer.detect_grad_anomaly: {str(e).splitlines()[0]}") from e
        if self.cfg.trainer.export_on_quit:
            self.export()
        if distkit.is_leader():
            plot_losses(self.cfg.rel_path / "logs", self.plot_path)
        return result


def _module_in(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the module in a checkpoint, adapters included; those of the codec lie beside them."""
    return {name: t for name, t in stateio.load(path)["module"].items() if not name.startswith("codec.")}


def _replaced(folder: Path) -> Path | None:
    """A checkpoint of the trainer that this one replaces, `ckpt/<name>/<tag>` or in `ckpt/<name>`: without manifest."""
    inside = sorted(p for p in folder.glob("*") if p.is_dir() and ".rejected-" not in p.name)
    for place in (folder, *inside):
        files = {p.name for p in place.glob("*")}
        if files & {"state.sft", "state.pth"} and not files & {"manifest.json", "trainer.pth"}:
            return place
    return None
