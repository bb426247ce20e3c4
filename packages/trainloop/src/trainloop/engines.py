"""The engines of a run, in the order they are trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from trainloop.engine import Engine

RESERVED = ("trainer", "rng", "loader", "state")  # other files of a checkpoint
_NAME = re.compile(r"[A-Za-z0-9_+.-]+")


class Engines(Mapping[str, Engine]):
    """An ordered mapping from name to engine.

    Args:
        engines: a mapping, or engines that carry their names.

    Raises:
        ValueError: no engine; two of one name; a name that is not one of its engine or cannot name a
            file (letters, digits, `_`, `+`, `.` and `-` can) or names another file of a checkpoint.
    """

    def __init__(self, engines: Mapping[str, Engine] | Iterable[Engine]) -> None:
        pairs = list(engines.items()) if isinstance(engines, Mapping) else [(e.name, e) for e in list(engines)]
        if not pairs:
            raise ValueError("Engines needs at least one engine")
        self._engines: dict[str, Engine] = {}
        for name, engine in pairs:
            if name in self._engines:
                raise ValueError(f"two engines are named {name!r}")
            if name != engine.name:
                raise ValueError(f"the engine under {name!r} is named {engine.name!r}; use one name for it")
            if not _NAME.fullmatch(name) or name.startswith(".") or name in RESERVED:
                raise ValueError(
                    f"an engine's name becomes a file name, and {name!r} cannot: "
                    f"use letters, digits, '_', '+', '.' and '-', and none of {', '.join(RESERVED)}"
                )
            self._engines[name] = engine

    def __getitem__(self, name: str) -> Engine:
        try:
            return self._engines[name]
        except KeyError:
            raise KeyError(f"no engine {name!r}; there are {', '.join(self._engines)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._engines)

    def __len__(self) -> int:
        return len(self._engines)

    @property
    def trained(self) -> list[Engine]:
        """The engines with role `train`, in order. The role is read anew each time, so it may change."""
        return [e for e in self._engines.values() if e.role == "train"]

    @property
    def teachers(self) -> dict[str, Engine]:
        return {n: e for n, e in self._engines.items() if e.role == "teacher"}

    @property
    def only(self) -> Engine:
        """The one engine of a run that has one.

        Raises:
            ValueError: there are several.
        """
        if len(self._engines) != 1:
            raise ValueError(f"there are {len(self._engines)} engines: {', '.join(self._engines)}")
        return next(iter(self._engines.values()))

    def __repr__(self) -> str:
        return f"Engines({', '.join(f'{n}: {e.role}' for n, e in self._engines.items())})"
