"""Scores of synthesised files: distances to their recordings, errors of what a transcriber hears, the voice."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vall_e import audio, espeak, metrics
from vall_e.codecs import mel

Transcriber = Callable[[Path], str]
Embedder = Callable[[Path], Any]


@dataclass(frozen=True)
class Score:
    """The scores of one file; None where there was nothing to compare with.

    Attributes:
        wer, cer, per: words, characters and phonemes wrong, as shares of the text's.
        mel_stft: auraloss' MelSTFTLoss to the recording.
        stoi: short-time objective intelligibility after alignment with the recording, -1 to 1.
        similarity: cosine of the speaker embeddings of the speech and of its prompt, -1 to 1.
    """

    path: str
    wer: float | None = None
    cer: float | None = None
    per: float | None = None
    mel_stft: float | None = None
    stoi: float | None = None
    similarity: float | None = None


def load_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
        ValueError: there is none.
    """
    module, colon, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function) if colon else _missing(name)
    except (ImportError, AttributeError) as e:
        raise ValueError(f"{name}: {e}") from e


def _missing(name: str) -> Callable[..., Any]:
    raise ValueError(f"{name}: expected module:function")


def score(
    out: Path,
    *,
    target: Path | None,
    prompt: Path | None,
    text: str | None,
    language: str = "en",
    transcriber: Transcriber | None = None,
    embedder: Embedder | None = None,
) -> Score:
    """Score one file of speech against its recording, its prompt and its text, as far as they are given."""
    speech = audio.read_audio(out, mel.SAMPLE_RATE)
    found: dict[str, float] = {}
    if target is not None:
        recording = audio.read_audio(target, mel.SAMPLE_RATE)
        found |= {
            "mel_stft": metrics.mel_stft(speech, recording),
            "stoi": metrics.aligned_stoi(speech, recording),
        }
    if prompt is not None:
        embed = embedder or long_term_spectrum
        found["similarity"] = _cosine(np.asarray(embed(out)), np.asarray(embed(prompt)))
    if text and transcriber is not None:
        found |= errors(text, transcriber(out), language)
    return Score(str(out), **found)


def errors(text: str, heard: str, language: str = "en") -> dict[str, float]:
    """Word, character and phoneme error rates of what was heard; case and punctuation do not count."""
    import jiwer

    said, heard = _plain(text), _plain(heard)
    phones, heard_phones = (" ".join(espeak.phonemize(t, language).replace(" ", "")) for t in (said, heard or " "))
    return {
        "wer": jiwer.wer(said, heard),
        "cer": jiwer.cer(said, heard),
        "per": jiwer.wer(phones, heard_phones),
    }


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() or c in "' " else " " for c in text.lower()).split())


def long_term_spectrum(path: Path) -> np.ndarray:
    """Mean and spread of the log-mel bands over the loud frames: a speaker embedding that needs no model [200].

    It tells voices apart by their timbre alone; a trained embedder does so much better.
    """
    frames = metrics.frames(audio.read_audio(path, mel.SAMPLE_RATE))
    loud = frames[frames.mean(1) >= np.median(frames.mean(1))]
    loud = loud - loud.mean()
    return np.concatenate([loud.mean(0), loud.std(0)])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(1e-12, float(np.linalg.norm(a) * np.linalg.norm(b))))


def mean_of(scores: Sequence[Score]) -> dict[str, float]:
    """The mean of each score over the files that have it."""
    rows = [asdict(s) for s in scores]
    names = [n for n in Score.__dataclass_fields__ if n != "path"]
    values = {n: [r[n] for r in rows if r[n] is not None and np.isfinite(r[n])] for n in names}
    return {n: float(np.mean(v)) for n, v in values.items() if v}
