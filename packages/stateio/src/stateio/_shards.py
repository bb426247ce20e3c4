"""A save in several files: shards under new names, then the index by rename, then the old shards go.

The index is Hugging Face's ``*.safetensors.index.json``; the object's tree is one more entry of its
metadata, sealed with a digest at a fixed place as in a SafeTensors header.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _safetensors
from ._atomic import atomic_writer, remove_stale_temporaries
from ._errors import CorruptFileError, StateFileError, TruncatedFileError
from ._layout import FORMAT_VERSION, NO_DIGEST, Layout, StoredTensor, check_version, seal, seal_is_intact

if TYPE_CHECKING:
    from ._collect import Source
    from ._stream import Progress

INDEX_SUFFIX = ".index.json"
_DIGEST_PREFIX = f'{{"metadata":{{"stateio":"{{\\"stateio_version\\":{FORMAT_VERSION},\\"header\\":\\"'.encode()


def resolve(path: str) -> str:
    """``path``, or the index beside it when only that exists."""
    index = path + INDEX_SUFFIX
    return index if not os.path.lexists(path) and os.path.exists(index) else path


def write(
    target: Path,
    sources: Mapping[str, Source],
    tree: Any,
    metadata: Mapping[str, Any],
    shard_bytes: int,
    progress: Progress | None,
) -> Path:
    """Write shards and the index that names them. Returns the index.

    A crash before the index is renamed leaves the previous save as it was, plus shards that the next save
    removes.
    """
    target = Path(os.path.realpath(target))
    groups = _group(sources, shard_bytes)
    token = secrets.token_hex(4)  # names that no earlier save used
    weight_map: dict[str, str] = {}
    written: list[Path] = []
    index = target.with_name(target.name + INDEX_SUFFIX)
    try:
        for i, names in enumerate(groups, 1):
            shard = target.with_name(f"{target.stem}-{token}-{i:05d}-of-{len(groups):05d}{target.suffix}")
            part = {name: sources[name] for name in names}
            flat = {name: {"$t": name} for name in names}
            flat = _safetensors.escape_single(flat)
            written.append(shard)
            with atomic_writer(shard) as file:
                _safetensors.write(file, part, flat, {}, plain_metadata={"format": "pt"}, progress=progress)
            weight_map |= dict.fromkeys(names, shard.name)
        content = {"stateio_version": FORMAT_VERSION, "header": NO_DIGEST, "tree": tree}
        own = json.dumps(content, separators=(",", ":"))
        total = sum(source.nbytes for source in sources.values())
        entries = {
            "stateio": own,
            "total_size": total,
            **{key: value for key, value in metadata.items() if key != "total_size"},
        }
        raw = json.dumps({"metadata": entries, "weight_map": weight_map}, separators=(",", ":")).encode()
        with atomic_writer(index) as file:
            file.write(seal(raw, len(_DIGEST_PREFIX)))
    except BaseException:
        if not _refers_to(index, token):  # an interrupt may come after the index is in place
            for shard in written:
                with suppress(FileNotFoundError):
                    shard.unlink()
        raise
    _remove_shards(target, keep={shard.name for shard in written})
    with suppress(FileNotFoundError):
        target.unlink()  # an earlier save in one file
    return index


def _refers_to(index: Path, token: str) -> bool:
    try:
        return f"-{token}-".encode() in index.read_bytes()
    except FileNotFoundError:
        return False


def _group(sources: Mapping[str, Source], shard_bytes: int) -> list[list[str]]:
    """Names in order, each group at most ``shard_bytes`` unless it is a single tensor."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, source in sources.items():
        if groups[-1] and size + source.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += source.nbytes
    return groups


def remove_shards_of(target: Path) -> None:
    """After a save in one file: remove the index and shards of an earlier sharded save of the same name."""
    target = Path(os.path.realpath(target))
    index = target.with_name(target.name + INDEX_SUFFIX)
    if index.exists():
        index.unlink()
        _remove_shards(target, keep=set())


def _remove_shards(target: Path, keep: set[str]) -> None:
    stem, suffix = re.escape(target.stem), re.escape(target.suffix)
    is_shard = re.compile(rf"{stem}-[0-9a-f]{{8}}-\d{{5}}-of-\d{{5}}{suffix}").fullmatch
    remove_stale_temporaries(target.parent, is_shard)
    for entry in os.listdir(target.parent):
        if is_shard(entry) and entry not in keep:
            with suppress(FileNotFoundError):
                (target.parent / entry).unlink()


def read_index(path: str, *, verify: bool) -> tuple[Layout, list[Layout]]:
    """The whole object's layout and those of its shards, for an index of ours or of others.

    Raises:
        CorruptFileError: the index is damaged, or a shard lacks a tensor that it lists.
        TruncatedFileError: a shard is missing.
    """
    raw = Path(path).read_bytes()
    try:
        index = json.loads(raw)
        weight_map = dict(index["weight_map"])
        metadata = dict(index.get("metadata") or {})
        if not all(isinstance(name, str) for item in weight_map.items() for name in item):
            raise TypeError("weight_map must map names to file names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"the shard index is damaged ({error!r})", path=path) from None
    tree, version = _index_tree(raw, metadata, weight_map, path, verify=verify)
    parts = [_read_shard(path, shard, weight_map, verify=verify) for shard in dict.fromkeys(weight_map.values())]
    tensors: dict[str, StoredTensor] = {}
    for part in parts:
        tensors |= part.tensors
    if version is None:
        tree = _safetensors.escape_single(tree)
    return Layout(path, "safetensors", tensors, tree, metadata, version), parts


def _index_tree(
    raw: bytes, metadata: dict[str, Any], weight_map: dict[str, str], path: str, *, verify: bool
) -> tuple[Any, int | None]:
    own = metadata.pop("stateio", None)
    if own is None:
        if _safetensors.OWN_MARK in raw:
            raise CorruptFileError("its metadata lacks 'stateio': the index changed", path=path)
        return {name: {"$t": name} for name in weight_map}, None
    try:
        stateio = json.loads(own)
        version = check_version(stateio["stateio_version"], path)
        tree = stateio["tree"]
    except StateFileError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"its stateio metadata is damaged ({error!r})", path=path) from None
    intact = raw.startswith(_DIGEST_PREFIX) and seal_is_intact(raw, len(_DIGEST_PREFIX))
    if verify and not intact:
        raise CorruptFileError("the index does not match its digest: it changed after writing", path=path)
    return tree, version


def _read_shard(index: str, shard: str, weight_map: dict[str, str], *, verify: bool) -> Layout:
    path = os.path.join(os.path.dirname(index), shard)
    if os.path.basename(shard) != shard:
        raise CorruptFileError(f"expected shards in the index's folder, found {shard!r}", path=index)
    if not os.path.exists(path):
        raise TruncatedFileError(f"its shard {shard} is missing", path=index)
    layout = _safetensors.read_layout(path, verify=verify)
    for name, home in weight_map.items():
        if home == shard and name not in layout.tensors:
            raise CorruptFileError(f"expected in shard {shard}, which lacks it", path=index, tensor=name)
    return layout
