"""A preparation divided over jobs: each writes an HDF5 file of its own, and one index makes them a dataset."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vall_e.data.recording import Recording
from vall_e.data.store import DatasetError, new_hdf5, read_tokenizer, write_tokenizer
from vall_e.tokenizer import NaiveTokenizer, Tokenizer, conflict

if TYPE_CHECKING:
    import h5py


def parse_shard(text: str) -> tuple[int, int]:
    """`k/n`, the k-th of n jobs, k from 1.

    Raises:
        ValueError: it is not that.
    """
    k, slash, n = text.partition("/")
    if not (slash and k.isdigit() and n.isdigit() and 1 <= int(k) <= int(n)):
        raise ValueError(f"--shard: expected k/n with k from 1 to n, such as 3/8; found {text!r}")
    return int(k), int(n)


def shard_of(recordings: Sequence[Recording], k: int, n: int) -> list[Recording]:
    """The recordings of job k of n: by a hash of the name, so that another file added later moves no other."""
    return [r for r in recordings if zlib.crc32(r.key.encode()) % n == k - 1]


def shard_path(path: Path, k: int, n: int) -> Path:
    """`data.3-of-8.h5` for `data.h5`."""
    return path.with_name(f"{path.stem}.{k}-of-{n}{path.suffix}")


def find_shards(path: Path) -> list[Path]:
    """The files of a divided preparation beside `path`, all n of them.

    Raises:
        DatasetError: there is none, one is missing, or they are of several divisions.
    """
    name = re.compile(rf"{re.escape(path.stem)}\.(\d+)-of-(\d+){re.escape(path.suffix)}")
    found = {(int(m[1]), int(m[2])): p for p in path.parent.glob("*") if (m := name.fullmatch(p.name))}
    if not found:
        raise DatasetError(f"{path}: there is no shard to index (expected {path.stem}.1-of-N{path.suffix} beside it)")
    counts = sorted({n for _, n in found})
    if len(counts) > 1:
        raise DatasetError(
            f"{path.parent}: shards of several divisions: {', '.join(p.name for p in sorted(found.values()))}; remove "
            f"those that are not of the preparation in {' or '.join(map(str, counts))} parts that you mean"
        )
    wanted = [shard_path(path, k, counts[0]) for k in range(1, counts[0] + 1)]
    missing = [p.name for p in wanted if not p.is_file()]
    if missing:
        raise DatasetError(
            f"{path.parent}: {len(missing)} of {counts[0]} shards missing: {', '.join(missing)}; make them with "
            "`vall-e-data prepare --shard`"
        )
    return wanted


def write_index(path: Path, shards: Sequence[Path]) -> int:
    """Write an HDF5 file that links to every utterance of the shards, which stay where they are.

    Phoneme ids are made of the phonemes when they are read, so shards may have extended the vocabulary differently.

    Returns:
        The number of utterances.

    Raises:
        DatasetError: shards of different codecs or tokenizers, or an utterance in two of them.
    """
    import h5py

    tokenizers: dict[Path, Tokenizer] = {}
    codecs: dict[str, Path] = {}
    keys: set[str] = set()
    with new_hdf5(path) as out:
        for shard in shards:
            with _opened(shard) as f:
                codecs.setdefault(f.attrs["codec"], shard)
                tokenizers[shard] = read_tokenizer(f) or NaiveTokenizer()
                for key in _keys(f):
                    if key in keys:
                        raise DatasetError(f"{shard}: {key} is in another shard too")
                    group, _, name = key.rpartition("/")
                    out.require_group(group)[name] = h5py.ExternalLink(os.path.relpath(shard, path.parent), key)
                    keys.add(key)
        if len(codecs) > 1:
            a, b = list(codecs.values())[:2]
            raise DatasetError(f"{a} and {b} were made with different codecs; prepare one of them again")
        out.attrs["codec"] = next(iter(codecs))
        out.attrs["shards"] = json.dumps([os.path.relpath(s, path.parent) for s in shards])
        write_tokenizer(out, _merged(tokenizers))
    return len(keys)


def _opened(shard: Path) -> h5py.File:
    import h5py

    try:
        file = h5py.File(shard, "r")
    except OSError as e:
        raise DatasetError(f"{shard}: not a readable HDF5 file ({e}); prepare this shard again") from e
    if "codec" not in file.attrs:
        raise DatasetError(f"{shard}: it says no codec, so `vall-e-data prepare --shard` did not make it")
    return file


def _keys(file) -> list[str]:
    return [
        f"{split}/{group}/{speaker}/{name}"
        for split in ("training", "validation", "noise")
        for group in file.get(split, ())
        for speaker in file[split][group]
        for name in file[split][group][speaker]
    ]


def _merged(tokenizers: dict[Path, Tokenizer]) -> Tokenizer:
    """The file that all shards were made with, or the naive tokenizer with the symbols that any of them has more."""
    (first, one), *others = tokenizers.items()
    if one.json is None and all(t.json is None for _, t in others):
        known = NaiveTokenizer()
        return known.extended(s for t in tokenizers.values() for s in t.vocabulary if s not in known.vocabulary)
    for path, other in others:
        if why := conflict(one, other):
            raise DatasetError(f"{first} and {path} were made with different tokenizers: {why}; prepare one again")
    return one
