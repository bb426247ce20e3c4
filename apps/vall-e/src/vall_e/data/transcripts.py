"""Finding recordings and their transcripts in a folder, in the three forms in which people keep them."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from vall_e.audio import SUFFIXES
from vall_e.data.recording import Recording, held_out
from vall_e.text import printable


@dataclass
class Found:
    """What a folder holds: recordings, and (file, reason) for each that is left out."""

    recordings: list[Recording] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Take what another folder holds as well."""
        self.recordings += other.recordings
        self.skipped += other.skipped


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
    audio = _audio(folder)
    listed = _Lists(folder, {p.with_suffix(".txt") for p in audio})
    found = Found(skipped=listed.skipped)
    taken: set[str] = set()
    for path in audio:
        try:
            text = printable(_transcript(path, listed))
        except _LeftOut as e:
            found.skipped.append((path, str(e)))
            continue
        recording = _placed(path, folder, speaker, text, language)
        recording = replace(recording, split="validation" if held_out(text, validation) else "training")
        if recording.key in taken:
            found.skipped.append((path, f"another recording is already {recording.key}"))
            continue
        taken.add(recording.key)
        found.recordings.append(recording)
    return found


def find_noise(folder: Path) -> Found:
    """Find recordings of background noise, which need no transcript, below `folder`.

    Raises:
        FileNotFoundError: the folder does not exist, or no audio lies below it.
    """
    found = Found()
    recordings: dict[str, Recording] = {}
    for path in _audio(folder):
        recording = replace(_placed(path, folder, None, "", "en"), split="noise")
        if _dangling(path):
            found.skipped.append((path, _dangling(path)))
        elif recording.key in recordings:
            found.skipped.append((path, f"another recording is already {recording.key}"))
        else:
            recordings[recording.key] = recording
    found.recordings = list(recordings.values())
    return found


class _LeftOut(ValueError):
    """Why a recording cannot be used."""


def _audio(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder that holds your recordings")
    files = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir()]
    if not files:
        raise FileNotFoundError(f"{folder}: no audio below this folder; looked for {', '.join(SUFFIXES)}")
    return sorted(files)


def _placed(path: Path, folder: Path, speaker: str | None, text: str, language: str) -> Recording:
    """A recording by where it lies: in the folder of its speaker, in that of the group."""
    inside = path.relative_to(folder)
    owner = speaker or (path.parent.name if len(inside.parts) > 1 else folder.resolve().name)
    group = inside.parts[-3] if len(inside.parts) > 2 and speaker is None else folder.resolve().name
    name = "_".join(inside.with_suffix("").parts) if speaker else path.stem
    return Recording(id=name, group=group, speaker=owner, audio=path, text=text, language=language)


def _transcript(audio: Path, listed: _Lists) -> str:
    """What is said in a recording.

    Raises:
        _LeftOut: nothing that could be spoken is known.
    """
    if reason := _dangling(audio):
        raise _LeftOut(reason)
    sidecar = audio.with_suffix(".txt")
    if reason := _dangling(sidecar):
        raise _LeftOut(f"its transcript {sidecar.name} is {reason}")
    own = _read(sidecar).strip() if sidecar.is_file() else None
    text = own or listed.text_of(audio)
    if text is None and own is not None:
        raise _LeftOut(f"its transcript {sidecar.name} is empty")
    if text is None:
        raise _LeftOut("no transcript: no sidecar .txt, metadata.csv row or `name: text` line")
    if not any(c.isalnum() for c in text):
        raise _LeftOut(f"the transcript has no words: {text!r}")
    if text.startswith("[") and text.endswith("]"):
        raise _LeftOut(f"the transcript describes a sound, not words: {text!r}")
    return text


def _dangling(path: Path) -> str:
    """What is wrong with a link that leads nowhere; empty for anything else."""
    return f"a link to {path.readlink()}, which does not exist" if path.is_symlink() and not path.exists() else ""


def _read(path: Path) -> str:
    """A text file, without the mark that some editors put in front.

    Raises:
        _LeftOut: it is not UTF-8, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        found = f"byte 0x{e.object[e.start]:02x} at {e.start}"
        raise _LeftOut(f"{path.name} is not UTF-8 ({found}): save it as UTF-8") from e
    except OSError as e:
        raise _LeftOut(f"{path.name} cannot be read: {e.strerror}") from e


class _Lists:
    """The transcripts that lists in a folder give, by the path that each names."""

    def __init__(self, folder: Path, sidecars: Set[Path]) -> None:
        self.texts: dict[Path, str] = {}
        # Lists often lie elsewhere than the audio: then the end of its path is what a list names.
        self.by_end: dict[tuple[str, ...], str] = {}
        self.skipped: list[tuple[Path, str]] = []
        lists = sorted(folder.rglob("*.csv")) + sorted(p for p in folder.rglob("*.txt") if p not in sidecars)
        for path in (p for p in lists if p.is_file()):
            try:
                written = _read(path)
            except _LeftOut as e:
                self.skipped.append((path, str(e)))
                continue
            for name, text in _table(written) if path.suffix == ".csv" else _lines(written):
                self._add(path.parent, Path(name), text)

    def _add(self, folder: Path, name: Path, text: str) -> None:
        if name.suffix.lower() in SUFFIXES:
            name = name.with_suffix("")
        for place in (folder, folder / "wavs"):
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


def _table(written: str) -> Iterator[tuple[str, str]]:
    """Rows of a `metadata.csv`: the last column that is not empty is the text."""
    for row in written.split("\n"):
        cells = [cell.strip() for cell in row.split("|")]
        if len(cells) >= 2 and cells[0] and any(cells[1:]):
            yield cells[0], next(c for c in reversed(cells) if c)


def _lines(written: str) -> Iterator[tuple[str, str]]:
    """`name: text` lines."""
    for line in written.split("\n"):
        name, colon, text = line.partition(":")
        if colon and name.strip() and " " not in name.strip() and text.strip() and not line.startswith(";"):
            yield name.strip(), text.strip()
