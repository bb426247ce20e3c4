"""Builds the demo corpus: sentences spoken and phonemised by espeak-ng, kept as WAV, text and phonemes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vall_e.corpus.sentences import sentences
from vall_e.data.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE_RATE = 24000


@dataclass(frozen=True)
class Voice:
    """A speaker: an espeak-ng voice with its rate (words a minute) and pitch (0 to 100)."""

    name: str
    language: str
    espeak: str
    rate: int
    pitch: int


VOICES = (
    Voice("anna", "en", "en-us+f2", 180, 55),
    Voice("bruno", "en", "en-us+m3", 185, 45),
    Voice("carl", "en", "en-us+m7", 190, 40),
    Voice("dora", "de", "de+f3", 185, 55),
    Voice("emil", "de", "de+m1", 180, 45),
    Voice("fritz", "de", "de+m5", 190, 40),
)


def build_corpus(
    folder: Path, utterances: int, validation: int, *, progress: Callable[[int, int], None] | None = None
) -> list[Recording]:
    """Speak the corpus into `folder`, or find it there.

    Recordings lie at `{language}/{speaker}/{id}.wav`, with `.txt` and `.ipa` beside them; `index.json` is
    written last, so an interrupted build starts over and a complete one is not repeated. The texts of the
    validation split occur in it alone.

    Args:
        utterances: in all, shared equally by the voices.
        validation: of them in the validation split.
        progress: called with (utterances spoken, utterances).
    """
    import stateio

    index = folder / "index.json"
    wanted = {"utterances": utterances, "validation": validation, "voices": [v.__dict__ for v in VOICES]}
    if index.is_file():
        held = json.loads(index.read_text(encoding="utf-8"))
        if held["made_with"] == wanted:
            return [_recording(folder, row) for row in held["recordings"]]
    rows = _plan(utterances, validation)
    for done, row in enumerate(rows):
        _speak(folder, row)
        if progress:
            progress(done + 1, len(rows))
    stateio.json_write({"made_with": wanted, "recordings": rows}, index, pretty=True)
    return [_recording(folder, row) for row in rows]


def _plan(utterances: int, validation: int) -> list[dict]:
    """Who says what, in which split; voices of a language take turns, the held-out texts are the last ones."""
    rows = []
    languages = sorted({v.language for v in VOICES})
    for place, language in enumerate(languages):
        voices = [v for v in VOICES if v.language == language]
        count = utterances // len(languages) + (place < utterances % len(languages))
        held = validation // len(languages) + (place < validation % len(languages))
        for i, text in enumerate(sentences(language, count, seed=0)):
            rows.append(
                {
                    "id": f"{i:05d}",
                    "language": language,
                    "speaker": voices[i % len(voices)].name,
                    "text": text,
                    "split": "validation" if i >= count - held else "training",
                }
            )
    return rows


def _speak(folder: Path, row: dict) -> None:
    from vall_e import audio, espeak

    voice = next(v for v in VOICES if v.name == row["speaker"])
    samples = espeak.speak(row["text"], voice.espeak, rate=voice.rate, pitch=voice.pitch)
    row["phonemes"] = espeak.phonemize(row["text"], voice.language)
    path = _stem(folder, row)
    audio.write_wav(path.with_suffix(".wav"), audio.resample(samples, espeak.SAMPLE_RATE, SAMPLE_RATE), SAMPLE_RATE)
    path.with_suffix(".txt").write_text(row["text"] + "\n", encoding="utf-8")
    path.with_suffix(".ipa").write_text(row["phonemes"] + "\n", encoding="utf-8")


def _stem(folder: Path, row: dict) -> Path:
    return folder / row["language"] / row["speaker"] / row["id"]


def _recording(folder: Path, row: dict) -> Recording:
    return Recording(
        id=row["id"],
        group=row["language"],
        speaker=row["speaker"],
        audio=_stem(folder, row).with_suffix(".wav"),
        text=row["text"],
        language=row["language"],
        split=row["split"],
        phonemes=row["phonemes"],
    )
