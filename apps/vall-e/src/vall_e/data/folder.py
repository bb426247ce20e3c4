"""A dataset of files: `data/{group}/{speaker}/{id}.enc` or `.sft`, with what is known of them in `metadata/`."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import stateio

from vall_e.data.enc import read_enc
from vall_e.data.index import Sources, remembered
from vall_e.data.metadata import known_of
from vall_e.data.store import CodecInfo, DatasetError, Entry, Utterance, no_match
from vall_e.tokenizer import NaiveTokenizer, Tokenizer

SUFFIXES = (".sft", ".enc")


class FolderDataset:
    """Reads a folder of encoded utterances; each split is what its patterns name.

    Args:
        data: the folder of codes.
        metadata: the folder of `{group}/{speaker}.json`; None reads lengths and texts from each file instead.
        codec: what the codes mean.
        tokenizer: phonemes to ids; the naive one by default.
        index: the folder in which what the dataset holds is remembered; None for none.

    Raises:
        DatasetError: the folder does not exist.
    """

    def __init__(
        self,
        data: Path,
        metadata: Path | None,
        codec: CodecInfo,
        tokenizer: Tokenizer | None = None,
        index: Path | None = None,
    ) -> None:
        self._index = index
        self.path, self.metadata = data, metadata
        self.codec: CodecInfo | None = codec
        self.frame_rate = codec.frame_rate
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
        name = repr((str(self.path.resolve()), str(self.metadata), self.frame_rate, split, list(patterns)))
        rows = remembered(self._index, name, lambda sources: self._rows(split, patterns, sources))
        return [Entry(*row[:-1], tuple(row[-1])) for row in rows]

    def _rows(self, split: str, patterns: Sequence[str], sources: Sources) -> list[list[Any]]:
        found: list[list[Any]] = []
        speakers = []
        for folder in sorted(p for p in sources.add(self.path.resolve()).glob("*/*") if p.is_dir()):
            group, speaker = folder.parent.name, folder.name
            sources.add(folder.parent)
            speakers.append(f"{group}/{speaker}")
            if any(fnmatch.fnmatch(speakers[-1], p) for p in patterns):
                known = known_of(self.metadata, group, speaker, sources)
                for path in sorted(p for p in sources.add(folder).iterdir() if p.suffix in SUFFIXES):
                    key = f"{split}/{group}/{speaker}/{path.stem}"
                    if path.stem not in known:  # its lengths come from itself
                        sources.add(path)
                    lengths, similar = self._lengths(key, known.get(path.stem))
                    found.append([key, group, speakers[-1], *lengths, similar])
        if not found:
            raise no_match(self.path, split, patterns, speakers)
        return found

    def _lengths(self, key: str, known: dict[str, Any] | None) -> tuple[tuple[int, int, float], list[str]]:
        """((frames, phones, seconds), similar utterances) of one utterance."""
        if known is None:
            utterance = self.read(key)
            return (len(utterance.codes), len(utterance.phone_ids), utterance.duration), []
        duration = float(known["duration"])
        phones = len(known.get("phonemes", "")) + 2
        return (round(duration * self.frame_rate), phones, duration), list(known.get("similar") or ())

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
                self._check(codes)
                self._cache[key] = self._utterance(key, codes, metadata)
            except (KeyError, ValueError) as e:
                raise DatasetError(f"{path}: {e}") from e
        return self._cache[key]

    def _check(self, codes: np.ndarray) -> None:
        assert self.codec is not None
        levels, entries = self.codec.levels, self.codec.entries
        if codes.ndim != 2 or codes.shape[1] > levels:
            raise ValueError(f"expected codes of up to {levels} levels ({self.codec.name}), found {list(codes.shape)}")
        if codes.size and not 0 <= codes.min() <= codes.max() < entries:
            raise ValueError(f"codes {codes.min()} to {codes.max()}, expected 0 to {entries - 1} ({self.codec.name})")

    def _utterance(self, key: str, codes: np.ndarray, metadata: dict[str, Any]) -> Utterance:
        length, rate = metadata.get("original_length"), metadata.get("sample_rate")
        phonemes = "" if key.startswith("noise/") else metadata["phonemes"]
        return Utterance(
            key=key,
            codes=codes,
            phone_ids=np.array(self.tokenizer.encode(phonemes)),
            text=metadata.get("text", ""),
            phonemes=phonemes,
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
