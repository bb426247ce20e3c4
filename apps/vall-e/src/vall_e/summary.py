"""What a finished run has learned, in figures that can be checked by ear."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import stateio
from trainloop import read_metrics

from vall_e import metrics
from vall_e.evaluation import Spoken
from vall_e.training import Training

_SENTENCES = 16


@dataclass(frozen=True)
class Speech:
    """How what is spoken compares with its recordings.

    Attributes:
        nearest: of `sentences` held-out sentences, how many spoken ones are nearest to their own recording.
        own, other: mean warped distance of held-out speech to its own and to the other recordings.
        train_mel_stft, train_stoi: greedy speech of training sentences: (own recording, another recording).
        reference: a WAV to speak like.
    """

    sentences: int
    nearest: int
    own: float
    other: float
    train_mel_stft: tuple[float, float]
    train_stoi: tuple[float, float]
    reference: Path


@dataclass(frozen=True)
class Report:
    """The figures of a run.

    Attributes:
        losses: name to (before, after), in nats.
        speech: None where the codec is missing, or nothing is to be synthesised (evaluation.size, the tasks).
    """

    losses: dict[str, tuple[float, float]]
    speech: Speech | None


def report(training: Training) -> Report:
    """Measure a trained model: losses before and after, and speech of both splits against its recordings.

    WAVs go to `logs/<start>/final/`, the figures to `report.json` beside them.
    """
    folder = training.cfg.log_dir / "final"
    folder.mkdir(parents=True, exist_ok=True)
    audible = training.codec is not None and training.speaks and training.cfg.evaluation.size > 0
    result = Report(_before_and_after(training), _speech(training, folder) if audible else None)
    stateio.json_write(asdict(result), folder / "report.json", pretty=True)
    return result


def _speech(training: Training, folder: Path) -> Speech:
    assert training.codec is not None
    evaluator, rate = training.evaluator, training.codec.sample_rate
    held_out = evaluator.speak(evaluator.fixed("val", _SENTENCES), seed=1)
    trained = evaluator.speak(evaluator.fixed("subtrain", _SENTENCES // 2), seed=1, temperature=0.0)
    for split, spoken in (("val", held_out), ("subtrain", trained)):
        for s in spoken:
            s.write(folder / split, rate)
    distance = metrics.warped_distances(
        [metrics.frames(s.out) for s in held_out], [metrics.frames(s.target) for s in held_out]
    )
    n = len(distance)
    first = min(held_out, key=lambda s: s.entry.key)
    return Speech(
        sentences=n,
        nearest=int((distance.argmin(1) == np.arange(n)).sum()),
        own=float(np.diag(distance).mean()),
        other=float((distance.sum() - np.trace(distance)) / max(1, n * n - n)),
        train_mel_stft=_own_and_other(trained, metrics.mel_stft),
        train_stoi=_own_and_other(trained, metrics.aligned_stoi),
        reference=folder / "val" / f"{first.entry.key.replace('/', '_')}.target.wav",
    )


def _before_and_after(training: Training) -> dict[str, tuple[float, float]]:
    """The teacher-forced losses at step 0, from the first run's log, and now."""
    before: dict[str, float] = {}
    for path in sorted((training.cfg.rel_path / "logs").glob("*/metrics.jsonl")):
        for row in read_metrics(path, "eval"):
            if row["step"] == 0:
                before = row
    size = training.cfg.evaluation.loss_size
    after: dict[str, float] = {}
    for split in training.splits:
        after |= training.evaluator.losses(split, size)
    return {k: (before.get(k, float("nan")), v) for k, v in after.items()}


def _own_and_other(spoken: list[Spoken], measure) -> tuple[float, float]:
    """The mean of a measure of each utterance against its recording, and against its neighbour's."""
    pairs = [(s.out, s.target, t.target) for s, t in zip(spoken, spoken[1:] + spoken[:1], strict=True)]
    own = [measure(out, mine) for out, mine, _ in pairs]
    other = [measure(out, theirs) for out, _, theirs in pairs]
    return float(np.nanmean(own)), float(np.nanmean(other))


def describe(training: Training, result: Report) -> str:
    """The summary that ends a run."""
    cfg, spec, trainer = training.cfg, training.spec, training.trainer
    assert trainer is not None
    parameters = sum(p.numel() for p in training.model.parameters())
    measures = training.evaluator.measures
    heads = [f"{name.removeprefix('level'):>5}" for name in measures]

    def row(split: str, when: int) -> str:
        losses = (result.losses[f"{split}.{name}"][when] for name in measures)
        return " ".join(f"{loss:{len(head)}.2f}" for loss, head in zip(losses, heads, strict=True))

    minutes = sum(e.duration for e in training.splits["subtrain"]) / 60
    utterances = len(training.splits["subtrain"])
    lines = [
        f"Trained     {cfg.model.name}, {parameters / 1e6:.1f} M parameters (dim {spec.dim}, {spec.layers} layers),",
        f"            on {utterances} utterances ({minutes:.0f} minutes);",
        f"            {trainer.step} steps in {trainer.elapsed / 60:.1f} minutes",
        f"Loss        in nats, levels {' '.join(heads)}",
        f"  training    before          {row('subtrain', 0)}",
        f"              after           {row('subtrain', 1)}",
        f"  held out    before          {row('val', 0)}",
        f"              after           {row('val', 1)}",
    ]
    if speech := result.speech:
        mel_stft, stoi = speech.train_mel_stft, speech.train_stoi
        lines += [
            f"Speech      {speech.nearest} of {speech.sentences} held-out sentences are nearest to their own recording",
            f"            (warped distance {speech.own:.2f}, to the others {speech.other:.2f})",
            f"            training sentences, greedily: mel-STFT {mel_stft[0]:.2f} to their own recording,",
            f"            {mel_stft[1]:.2f} to another; STOI after alignment {stoi[0]:.2f} and {stoi[1]:.2f}",
            f"WAVs        {cfg.log_dir / 'final'}",
        ]
    if training.plot_path.exists():
        lines.append(f"Losses      {training.plot_path}")
    lines.append(f"Weights     {training.weights_path}")
    best = training.best()
    if best is not None:
        lines.append(
            f"Best        step {best[0]}, of the checkpoints that were evaluated: validation loss {best[1]:.4f}"
        )
        if best[0] != trainer.step:
            lines.append(f"            to speak with it: {_weights_arguments(training, training.weights_at(best[0]))}")
    if speech := result.speech:
        lines += [
            "",
            'Speak       uv run vall-e "The old captain found a golden ring." '
            f"{speech.reference} --out-path out.wav {_weights_arguments(training, training.weights_path)}",
        ]
    return "\n".join(["", *lines, ""])


def _weights_arguments(training: Training, weights: Path) -> str:
    """How `vall-e` is told to speak with what was trained."""
    if training.cfg.lora is None:
        return f"--model {weights}"
    return f"--model {training.cfg.model.path} --lora {weights}"
