"""The dataset that a configuration names: opened, filtered, with its codec and vocabulary; all checked to fit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vall_e.codecs.codec import Codec, CodecUnavailable
from vall_e.codecs.load import load_codec, published
from vall_e.config import Config
from vall_e.data.folder import FolderDataset
from vall_e.data.index import Sources
from vall_e.data.metadata import known_of
from vall_e.data.store import Dataset, DatasetError, DatasetFile, Entry
from vall_e.tokenizer import NaiveTokenizer, Tokenizer


class DatasetOf:
    """What a configuration trains on.

    Attributes:
        file: where utterances are read from.
        splits: the entries of `subtrain` (the training split) and `val`.
        noise: the entries of background noise.
        left_out: reason to number of utterances.
        info: what the codes mean.
        codec: to hear them; None when it is not here, with the reason in `without_codec`. A published one is looked
            for, and downloaded, when it is first asked for.
        tokenizer: phonemes to ids.

    Raises:
        DatasetError: it is missing, damaged, empty, or of another codec than the one beside it.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.file: Dataset = self._open()
        self.info = self.file.codec or published(cfg.audio_backend)
        if self.info is None or published(self.info.name) is None:
            self._found_codec  # noqa: B018 - it lies beside the dataset and has to fit it
        self.tokenizer: Tokenizer = self.file.tokenizer or NaiveTokenizer()
        self.left_out: Counter[str] = Counter()
        self.splits = {
            "subtrain": self._kept("training", cfg.dataset.training),
            "val": self._kept("validation", cfg.dataset.validation),
        }
        self.noise = self.file.entries("noise", cfg.dataset.noise) if cfg.dataset.noise else []

    @property
    def codec(self) -> Codec | None:
        return self._found_codec[0]

    @property
    def without_codec(self) -> str:
        return self._found_codec[1]

    @property
    def frame_rate(self) -> float:
        """Codes a second."""
        if self.info is not None:
            return self.info.frame_rate
        entries = self.splits["subtrain"]
        return sum(e.frames for e in entries) / sum(e.duration for e in entries)

    @property
    def _index(self) -> Path | None:
        return self.cfg.cache_dir / "index" if self.cfg.dataset.cache else None

    def _open(self) -> Dataset:
        cfg = self.cfg
        if cfg.dataset.use_hdf5:
            return DatasetFile(
                cfg.hdf5_path,
                retokenize=cfg.dataset.retokenize_text,
                tokenizer=cfg.chosen_tokenizer(),
                index=self._index,
            )
        info = published(cfg.audio_backend)
        if info is None:
            raise DatasetError(
                f"dataset.use_hdf5=false reads codes of a published codec; those of {cfg.audio_backend} lie in data.h5"
            )
        metadata = cfg.metadata_dir if cfg.dataset.use_metadata else None
        return FolderDataset(cfg.data_dir, metadata, info, cfg.chosen_tokenizer(), self._index)

    @cached_property
    def _found_codec(self) -> tuple[Codec | None, str]:
        """The codec that made the codes; one of another fit is an error, a missing one is not."""
        cfg, made_by = self.cfg, self.info
        try:
            codec = load_codec(cfg, made_by.name if made_by else cfg.audio_backend)
        except CodecUnavailable as e:
            if made_by is not None and made_by.name == "melvq":  # it was made with the dataset, so it was lost
                raise DatasetError(str(e)) from e
            return None, str(e)
        if made_by is None or made_by.identity != codec.identity:
            identity = made_by.identity if made_by else "an unknown codec"
            raise DatasetError(
                f"{self.file.path} holds codes of {identity}, but {cfg.codec_path} is {codec.identity}: codes of one "
                "fit mean nothing to another. Put the right codec.sft back, or prepare the dataset again"
            )
        return codec, ""

    def _kept(self, split: str, patterns: list[str]) -> list[Entry]:
        """The utterances of a split that the configuration does not leave out."""
        cfg = self.cfg.dataset
        entries = self.file.entries(split, patterns)
        if cfg.prompt_similar_p and split == "training" and not any(e.similar for e in entries):
            entries = self._compared(entries)
        if cfg.speaker_getter == "prefix":
            entries = [replace(e, speaker=f"{e.group}/{_prefix(e.key)}") for e in entries]
        shortest, longest = cfg.duration_range
        kept = [e for e in entries if shortest <= e.duration <= longest]
        self.left_out["outside dataset.duration_range"] += len(entries) - len(kept)
        if not kept:
            raise DatasetError(
                f"{self.file.path}: none of {len(entries)} {split} utterances lasts {shortest} to {longest} s "
                "(dataset.duration_range)"
            )
        if split == "training" and (cfg.min_utterances > 1 or cfg.max_utterances):
            kept = self._limited(kept)
        return kept

    def _compared(self, entries: list[Entry]) -> list[Entry]:
        """The entries with the utterances that sound most like them, as `vall-e-data metadata` found them."""
        known: dict[str, dict[str, Any]] = {}
        compared = []
        for e in entries:
            _, group, speaker, name = e.key.split("/", 3)
            folder = f"{group}/{speaker}"
            if folder not in known:
                known[folder] = known_of(self.cfg.metadata_dir, group, speaker, Sources())
            compared.append(replace(e, similar=tuple(known[folder].get(name, {}).get("similar") or ())))
        return compared

    def _limited(self, entries: list[Entry]) -> list[Entry]:
        cfg = self.cfg.dataset
        counts, seen = Counter(e.speaker for e in entries), Counter[str]()
        kept = []
        for e in entries:
            seen[e.speaker] += 1
            if counts[e.speaker] < cfg.min_utterances:
                self.left_out["of speakers below dataset.min_utterances"] += 1
            elif cfg.max_utterances and seen[e.speaker] > cfg.max_utterances:
                self.left_out["above dataset.max_utterances"] += 1
            else:
                kept.append(e)
        if not kept:
            raise DatasetError(
                f"{self.file.path}: no speaker has {cfg.min_utterances} utterances (dataset.min_utterances)"
            )
        return kept

    def unreadable(self) -> list[tuple[str, str]]:
        """(key, reason) of each utterance that cannot be read or whose codes lie outside the codebooks."""
        found = []
        for entry in [*self.splits["subtrain"], *self.splits["val"], *self.noise]:
            try:
                codes = self.file.read(entry.key).codes
                entries = self.info.entries if self.info else None
                if entries and codes.size and (codes.min() < 0 or codes.max() >= entries):
                    found.append((entry.key, f"codes {codes.min()} to {codes.max()}, expected 0 to {entries - 1}"))
                elif not codes.size:
                    found.append((entry.key, "no codes"))
            except DatasetError as e:
                found.append((entry.key, str(e)))
        return found


def _prefix(key: str) -> str:
    """`LJ001` of `…/LJ001-0002`."""
    name = key.rpartition("/")[2]
    return name.replace("_", "-").partition("-")[0]
