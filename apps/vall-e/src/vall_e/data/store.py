"""The dataset file: `/{training|validation|noise}/{group}/{speaker}/{id}` with codes, phoneme ids and attributes."""

from __future__ import annotations

import fnmatch
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import stateio

from vall_e.data.index import Sources, remembered
from vall_e.tokenizer import NaiveTokenizer, Tokenizer, conflict

if TYPE_CHECKING:
    import h5py


class DatasetError(ValueError):
    """A dataset that cannot be used; the message says which file, why, and what to do."""


@dataclass(frozen=True)
class Utterance:
    """One encoded utterance.

    Attributes:
        key: `{split}/{group}/{speaker}/{id}`.
        codes: integers [frames, levels].
        phone_ids: integers [N].
        text, phonemes, language: as they were prepared.
        duration: seconds.
    """

    key: str
    codes: np.ndarray
    phone_ids: np.ndarray
    text: str
    phonemes: str
    language: str
    duration: float


@dataclass(frozen=True)
class CodecInfo:
    """What the codes of a dataset mean.

    Attributes:
        name: the codec.
        identity: its hash; weights trained on other codes do not fit.
        levels, entries: codebooks, and codes in each.
        frame_rate: codes a second.
    """

    name: str
    identity: str
    levels: int
    entries: int
    frame_rate: float


def write_dataset(path: Path, utterances: Iterable[Utterance], tokenizer: Tokenizer, codec: CodecInfo) -> int:
    """Write a dataset; its name appears when it is complete and on the disk. Returns the number of utterances.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    count = 0
    ids = np.uint8 if max(tokenizer.vocabulary.values()) < 256 else np.uint16
    with new_hdf5(path) as f:
        write_tokenizer(f, tokenizer)
        f.attrs["codec"] = json.dumps(codec.__dict__)
        for u in utterances:
            group = f.create_group(u.key)
            group.create_dataset("audio", data=u.codes.astype(np.int16), compression="lzf")
            group.create_dataset("text", data=u.phone_ids.astype(ids), compression="lzf")
            for name in ("text", "phonemes", "language", "duration"):
                group.attrs[name] = getattr(u, name)
            count += 1
    return count


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to be filled, in the place of `path` when it is complete and on the disk.

    Raises:
        OSError: the disk is full, or the folder cannot be written; what was there before is still there.
    """
    import h5py

    with stateio.atomic_writer(path) as file:
        out = _Output(file)
        try:
            with h5py.File(out, "w") as f:
                yield f
        except Exception:
            if out.error is None:
                raise
        if out.error is not None:
            raise out.error


class _Output(io.RawIOBase):
    """A file that keeps its first error: one that reaches HDF5 while it closes a file crashes the process."""

    def __init__(self, file: io.FileIO) -> None:
        self.error: OSError | None = None
        self._file = file
        self.seek, self.tell, self.readinto = file.seek, file.tell, file.readinto  # type: ignore[method-assign]

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        try:
            while len(rest) and self.error is None:
                rest = rest[self._file.write(rest) :]
        except OSError as e:
            self.error = e
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size) if self.error is None else 0
        except OSError as e:
            self.error = e
            return 0


def write_tokenizer(file: h5py.File, tokenizer: Tokenizer) -> None:
    """Store a tokenizer at a dataset's root: `symmap`, and `tokenizer` for one that is made of a file."""
    file["symmap"] = json.dumps(tokenizer.vocabulary, ensure_ascii=False)
    if tokenizer.json is not None:
        file["tokenizer"] = tokenizer.json


def read_tokenizer(file: h5py.File) -> Tokenizer | None:
    """The tokenizer of a dataset, where it has one of its own."""
    if "tokenizer" in file:
        from vall_e.tokenizer_json import JsonTokenizer

        return JsonTokenizer(file["tokenizer"].asstr()[()], file.filename)
    return NaiveTokenizer(json.loads(file["symmap"][()])) if "symmap" in file else None


@dataclass(frozen=True)
class Entry:
    """An utterance in the index of a dataset: lengths without the data.

    `similar` names utterances of the same speaker that sound most like it, the nearest first.
    """

    key: str
    group: str
    speaker: str
    frames: int
    phones: int
    duration: float
    similar: tuple[str, ...] = ()


class Dataset(Protocol):
    """Where utterances are read from: a `DatasetFile` or a `FolderDataset`.

    Attributes:
        path: what messages name.
        tokenizer: phonemes to ids; None where neither the dataset nor the configuration has one.
        codec: what the codes mean, where the dataset says.
    """

    path: Path
    tokenizer: Tokenizer | None
    codec: CodecInfo | None

    def entries(self, split: str, patterns: Sequence[str]) -> list[Entry]: ...
    def read(self, key: str) -> Utterance: ...
    def close(self) -> None: ...


def no_match(path: Path, split: str, patterns: Sequence[str], speakers: Sequence[str]) -> DatasetError:
    """What to raise when no utterance of a split matches."""
    there = f"it holds {', '.join(speakers)}" if speakers else "there is no such split"
    return DatasetError(f"{path}: no {split} utterance matches dataset.{split} {list(patterns)}: {there}")


class DatasetFile:
    """Reads a dataset; utterances once read stay in memory up to `cache_bytes`, what it holds in the folder `index`.

    With `retokenize`, phoneme ids are made of the phonemes, by the tokenizer given or that of the file, not read as
    stored.

    It can be sent to another process, which opens the file for itself.

    Raises:
        DatasetError: the file is missing, not HDF5, damaged or empty, or its ids are those of another tokenizer.
    """

    def __init__(
        self,
        path: Path,
        cache_bytes: int = 1 << 30,
        *,
        retokenize: bool = True,
        tokenizer: Tokenizer | None = None,
        index: Path | None = None,
    ) -> None:
        self.path = path
        self._index = index
        self._retokenize = retokenize
        self._file: h5py.File | None = None
        self._cache: dict[str, Utterance] = {}
        self._room = cache_bytes
        file = self._open()
        self.codec: CodecInfo | None = None
        own = read_tokenizer(file)
        if tokenizer is not None and not retokenize and (why := conflict(own or NaiveTokenizer(), tokenizer)):
            raise DatasetError(
                f"{path}: its phoneme ids are of another tokenizer than tokenizer_path: {why}. Set "
                "dataset.retokenize_text=true to make them anew, or prepare the dataset again"
            )
        self.tokenizer = tokenizer or own
        if "codec" in file.attrs:
            self.codec = CodecInfo(**json.loads(file.attrs["codec"]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_cache": {}}

    def _open(self) -> h5py.File:
        import h5py

        if self._file is None:
            if not self.path.is_file():
                raise DatasetError(
                    f"{self.path}: no such dataset; make one of your recordings with "
                    f"`vall-e-data prepare FOLDER --yaml {self.path.parent}/config.yaml`"
                )
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as e:
                raise DatasetError(
                    f"{self.path}: not a readable HDF5 file ({e}); it is damaged or not a dataset. "
                    "Move it away and run `vall-e-data prepare` again: what it had encoded is kept"
                ) from e
        return self._file

    def entries(self, split: str, patterns: Sequence[str]) -> list[Entry]:
        """The utterances of a split whose `group/speaker` matches one of the patterns, in the file's order.

        Raises:
            DatasetError: there is none, or the file is damaged.
        """
        name = repr((str(self.path.resolve()), split, list(patterns)))
        return [Entry(*row) for row in remembered(self._index, name, lambda s: self._rows(split, patterns, s))]

    def _rows(self, split: str, patterns: Sequence[str], sources: Sources) -> list[list[Any]]:
        found: list[list[Any]] = []
        speakers = []
        path = sources.add(self.path.resolve())
        try:
            for part in json.loads(self._open().attrs.get("shards", "[]")):
                if not sources.add(path.parent / part).is_file():
                    raise DatasetError(
                        f"{path.parent / part}: this part of {self.path.name} is missing: put it back, or make it with "
                        "`vall-e-data prepare --shard`, then run `vall-e-data index`"
                    )
            for group_name, group in self._open().get(split, {}).items():
                for speaker_name, speaker in group.items():
                    speakers.append(f"{group_name}/{speaker_name}")
                    if not any(fnmatch.fnmatch(speakers[-1], p) for p in patterns):
                        continue
                    for name, item in speaker.items():
                        key = f"{split}/{group_name}/{speaker_name}/{name}"
                        if item is None:
                            raise DatasetError(f"{self.path}: {key} left its part; run `vall-e-data index` again")
                        phones = 0 if split == "noise" else item["text"].shape[0]
                        lengths = [item["audio"].shape[0], phones, float(item.attrs["duration"])]
                        found.append([key, group_name, speakers[-1], *lengths])
        except (OSError, KeyError, RuntimeError) as e:
            raise DatasetError(f"{self.path}: the {split} split is damaged: {e}; prepare it again") from e
        if not found:
            raise no_match(self.path, split, patterns, speakers)
        return found

    def read(self, key: str) -> Utterance:
        """One utterance.

        Raises:
            DatasetError: it is missing or damaged; the message names it.
        """
        if key in self._cache:
            return self._cache[key]
        try:
            item = self._open()[key]
            attributes = dict(item.attrs)
            if key.startswith("noise/"):  # nothing is said in it, and some datasets store no text with it at all
                attributes = {"text": "", "phonemes": "", "language": "en", **attributes}
                phones = np.zeros(0, np.int64)
            elif self._retokenize:
                phones = self._ids(attributes["phonemes"])
            else:
                phones = item["text"][()].astype(np.int64)
            utterance = Utterance(
                key=key,
                codes=item["audio"][()],
                phone_ids=phones,
                text=attributes["text"],
                phonemes=attributes["phonemes"],
                language=attributes["language"],
                duration=float(attributes["duration"]),
            )
        except (OSError, KeyError, RuntimeError) as e:
            raise DatasetError(f"{self.path}: utterance {key} cannot be read: {e}; prepare it again") from e
        size = utterance.codes.nbytes + utterance.phone_ids.nbytes + 512
        if size <= self._room:
            self._room -= size
            self._cache[key] = utterance
        return utterance

    def _ids(self, phonemes: str) -> np.ndarray:
        # What a dataset of another vocabulary holds that this one does not, was unknown when it was made, too.
        return np.array((self.tokenizer or NaiveTokenizer()).encode(phonemes, unknown="replace"), np.int64)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
