"""One line of JSON per step, appended and never rewritten."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch


class Sink(Protocol):
    """Where metric lines go. `kind` is `step`, `eval` or what the caller of `Trainer.log` names."""

    def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Appends `{"kind": …, "step": …, …}` lines to a file.

    A run killed in the middle of a line leaves a torn one; the next run starts on a fresh line, and
    `read_metrics` passes over it. Numbers that are not finite are written as the strings "nan", "inf" and
    "-inf", which every JSON reader takes.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        if self._file.tell() and not _ends_in_newline(path):
            self._file.write(b"\n")

    def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        row = {"kind": kind, "step": step, **{k: plain(v) for k, v in metrics.items()}}
        self._file.write(json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as f:
        f.seek(-1, os.SEEK_END)
        return f.read(1) == b"\n"


def plain(value: Any) -> Any:
    """A metric as JSON can hold it."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value)


def read_metrics(path: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows of a metrics file; lines that are torn are passed over.

    A step that was replayed after a crash is there twice; the later row is the one that counts, so the
    result holds one row for each kind and step, in the order of their last writing.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    with Path(path).open("rb") as f:
        for line in f:
            try:
                row = json.loads(line)
                key = (row["kind"], row["step"])
            except (ValueError, KeyError, TypeError):
                continue
            rows.pop(key, None)
            rows[key] = row
    return [row for row in rows.values() if kind is None or row["kind"] == kind]
