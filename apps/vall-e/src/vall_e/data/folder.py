"""A dataset of files: `data/{group}/{speaker}/{id}.enc` or `.sft`, with what is known of them in `metadata/`."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import stateio

from vall_e.data.enc import read_enc
from vall_e.data.store import CodecInfo, DatasetError, Entry, Utterance, no_match
from vall_e.tokenizer import NaiveTokenizer, Tokenizer

SUFFIXES = (".sft", ".enc")


class FolderDataset:
    """Reads a folder of encoded utterances; each split is what its patterns name.

    Args:
        data: the folder of codes.
        metadata: the folder of `{group}/{speaker}.json`; None reads lengths and texts from each file instead.
        frame_rate: codes a second, to tell lengths from durations.
        tokenizer: phonemes to ids; the naive one by default.

    Raises:
        DatasetError: the folder does not exist.
    """

    codec: CodecInfo | None = None

    def __init__(
        self, data: Path, metadata: Path | None, frame_rate: float, tokenizer: Tokenizer | None = None
    ) -> None:
        self.path, self.metadata, self.frame_rate = data, metadata, frame_rate
        self.tokenizer: Tokenizer = tokenizer or NaiveTokenizer()
        self._cache: dict[str, Utterance] = {}
        if not data.is_dir():
            raise DatasetError(f"{data}: no such folder; encode recordings with `vall-e-data prepare FOLDER`")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    def entries(self, split: str, patterns: Sequence[str]) -> list[Entry]:
        """The utterances whose `group/speaker` matches one of the patterns, sorted by name.

        Raises:
            DatasetError: there is none, or a file of metadata is damaged.
        """
        found, speakers = [], []
        for folder in sorted(p for p in self.path.glob("*/*") if p.is_dir()):
            group, speaker = folder.parent.name, folder.name
            speakers.append(f"{group}/{speaker}")
            if any(fnmatch.fnmatch(speakers[-1], p) for p in patterns):
                known = self._known(group, speaker)
                for path in sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES):
                    found.append(self._entry(split, group, speaker, path, known.get(path.stem)))
        if not found:
            raise no_match(self.path, split, patterns, speakers)
        return found

    def _known(self, group: str, speaker: str) -> dict[str, Any]:
        path = self.metadata / group / f"{speaker}.json" if self.metadata else None
        if path is None or not path.is_file():
            return {}
        try:
            return dict(stateio.json_read(path))
        except ValueError as e:
            raise DatasetError(
                f"{path}: not readable as metadata: {e}; make it anew with `vall-e-data metadata`"
            ) from e

    def _entry(self, split: str, group: str, speaker: str, path: Path, known: dict[str, Any] | None) -> Entry:
        key = f"{split}/{group}/{speaker}/{path.stem}"
        if known is None:
            utterance = self.read(key)
            frames, phones, duration = len(utterance.codes), len(utterance.phone_ids), utterance.duration
        else:
            duration = float(known["duration"])
            frames = round(duration * self.frame_rate)
            phones = len(known.get("phonemes", "")) + 2
        similar = tuple(known.get("similar") or ()) if known else ()
        return Entry(key, group, f"{group}/{speaker}", frames, phones, duration, similar)

    def read(self, key: str) -> Utterance:
        """One utterance.

        Raises:
            DatasetError: it is missing or damaged; the message names it.
        """
        if key not in self._cache:
            _, group, speaker, name = key.split("/", 3)
            stem = self.path / group / speaker / name
            path = next((p for s in SUFFIXES if (p := stem.with_name(name + s)).is_file()), None)
            if path is None:
                raise DatasetError(f"{stem}: no such utterance ({' or '.join(SUFFIXES)})")
            codes, metadata = read_enc(path) if path.suffix == ".enc" else _read_sft(path)
            try:
                self._cache[key] = self._utterance(key, codes, metadata)
            except (KeyError, ValueError) as e:
                raise DatasetError(f"{path}: {e}") from e
        return self._cache[key]

    def _utterance(self, key: str, codes: np.ndarray, metadata: dict[str, Any]) -> Utterance:
        length, rate = metadata.get("original_length"), metadata.get("sample_rate")
        return Utterance(
            key=key,
            codes=codes,
            phone_ids=np.array(self.tokenizer.encode(metadata["phonemes"])),
            text=metadata.get("text", ""),
            phonemes=metadata["phonemes"],
            language=metadata.get("language", "en"),
            duration=length / rate if length and rate else len(codes) / self.frame_rate,
        )

    def close(self) -> None:
        """Nothing is held open."""


def _read_sft(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        held = stateio.load(path)
        return held["codes"].numpy().astype(np.int64), dict(held["metadata"])
    except (stateio.StateFileError, KeyError, TypeError) as e:
        raise DatasetError(f"{path}: not a readable utterance: {e}") from e


def write_utterance(folder: Path, utterance: Utterance, sample_rate: int) -> Path:
    """Write one utterance as `{folder}/{group}/{speaker}/{id}.sft`, atomically."""
    import torch

    _, group, speaker, name = utterance.key.split("/", 3)
    path = folder / group / speaker / f"{name}.sft"
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "original_length": round(utterance.duration * sample_rate),
        "sample_rate": sample_rate,
        "text": utterance.text,
        "phonemes": utterance.phonemes,
        "language": utterance.language,
    }
    stateio.save({"codes": torch.from_numpy(utterance.codes.astype(np.int16)), "metadata": metadata}, path)
    return path
