"""Finding recordings and their transcripts in a folder, in the three forms in which people keep them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vall_e.audio import SUFFIXES
from vall_e.data.recording import Recording, held_out


@dataclass
class Found:
    """What a folder holds: recordings, and (file, reason) for each that is left out."""

    recordings: list[Recording] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def find_recordings(
    folder: Path, *, language: str = "en", speaker: str | None = None, validation: float = 0.05
) -> Found:
    """Find audio below `folder` and pair it with transcripts.

    A transcript is, in this order: a sidecar `NAME.txt`; a row of a `metadata.csv` in the LJSpeech form
    (`name|text|normalised text`), which stands beside the audio or beside its `wavs/` folder; a line
    `name: text` of any other `.txt` file in the folder. Names may have folders and a suffix in front of and
    behind them.

    Args:
        language: of all recordings.
        speaker: of all recordings; by default the folder that an audio file lies in, and the folder above it
            is the group.
        validation: the share of texts that is held out.

    Raises:
        FileNotFoundError: the folder does not exist, or no audio lies below it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder that holds your recordings")
    audio = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not audio:
        raise FileNotFoundError(f"{folder}: no audio below this folder; looked for {', '.join(SUFFIXES)}")
    listed = _Lists(folder)
    found = Found()
    taken: set[str] = set()
    for path in audio:
        text = _sidecar(path) or listed.text_of(path)
        if text is None:
            found.skipped.append((path, "no transcript: no sidecar .txt, metadata.csv row or `name: text` line"))
            continue
        if not any(c.isalnum() for c in text):
            found.skipped.append((path, f"the transcript has no words: {text!r}"))
            continue
        if text.startswith("[") and text.endswith("]"):
            found.skipped.append((path, f"the transcript describes a sound, not words: {text!r}"))
            continue
        inside = path.relative_to(folder)
        owner = speaker or (path.parent.name if len(inside.parts) > 1 else folder.resolve().name)
        group = inside.parts[-3] if len(inside.parts) > 2 and speaker is None else folder.resolve().name
        name = "_".join(inside.with_suffix("").parts) if speaker else path.stem
        recording = Recording(
            id=name,
            group=group,
            speaker=owner,
            audio=path,
            text=text,
            language=language,
            split="validation" if held_out(text, validation) else "training",
        )
        if recording.key in taken:
            found.skipped.append((path, f"another recording is already {recording.key}"))
            continue
        taken.add(recording.key)
        found.recordings.append(recording)
    return found


def _sidecar(audio: Path) -> str | None:
    path = audio.with_suffix(".txt")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


class _Lists:
    """The transcripts that lists in a folder give, by the path that each names."""

    def __init__(self, folder: Path) -> None:
        self.texts: dict[Path, str] = {}
        # Lists often lie elsewhere than the audio: then the end of its path is what a list names.
        self.by_end: dict[tuple[str, ...], str] = {}
        for path in sorted(folder.rglob("*.csv")) + sorted(folder.rglob("*.txt")):
            for written, text in _table(path) if path.suffix == ".csv" else _lines(path):
                name = Path(written)
                if name.suffix.lower() in SUFFIXES:
                    name = name.with_suffix("")
                for place in (path.parent, path.parent / "wavs"):
                    self.texts.setdefault(place / name, text)
                self.by_end.setdefault(name.parts, text)

    def text_of(self, audio: Path) -> str | None:
        stem = audio.with_suffix("")
        if stem in self.texts:
            return self.texts[stem]
        for length in range(min(3, len(stem.parts)), 0, -1):
            text = self.by_end.get(stem.parts[-length:])
            if text is not None:
                return text
        return None


def _table(path: Path) -> Iterator[tuple[str, str]]:
    """Rows of a `metadata.csv`: the last column that is not empty is the text."""
    with path.open(encoding="utf-8", newline="") as f:
        for row in csv.reader(f, delimiter="|", quoting=csv.QUOTE_NONE):
            cells = [cell.strip() for cell in row]
            if len(cells) >= 2 and cells[0] and any(cells[1:]):
                yield cells[0], next(c for c in reversed(cells) if c)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """`name: text` lines; a file without any is a sidecar."""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, colon, text = line.partition(":")
        if colon and name.strip() and " " not in name.strip() and text.strip() and not line.startswith(";"):
            yield name.strip(), text.strip()
