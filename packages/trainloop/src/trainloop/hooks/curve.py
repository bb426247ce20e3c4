"""A number for every step, put together from pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Form = Literal["linear", "cosine", "sqrt"]

_FORMS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: (1.0 - math.cos(math.pi * x)) / 2.0,
    "sqrt": math.sqrt,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a curve: its value by the steps since it began, whether that moves, and for how many steps."""

    value: Callable[[int], float]
    moves: bool = True
    length: int = 0  # not used of the last one, which never ends


@dataclass(frozen=True, slots=True)
class Curve:
    """A function of the step made by `hold`, `ramp` and `free`, and joined by `then`.

    ```python
    factor = ramp(0.0, 1.0, 100).then(hold(1.0, 800)).then(ramp(1.0, 0.0, 100, "cosine"))
    factor(50), factor(500), factor(5000)  # 0.5, 1.0, 0.0
    ```

    A ramp over n steps has its first value at its own first step and its last one n steps later, where the next
    piece begins; after the last piece its value stays.
    """

    pieces: tuple[Piece, ...]
    last: Piece
    endless: bool = False

    def __call__(self, step: int) -> float:
        for piece in self.pieces:
            if step < piece.length:
                return piece.value(step)
            step -= piece.length
        return self.last.value(step)

    def then(self, other: Curve) -> Curve:
        """This curve, and `other` from where its pieces end.

        Raises:
            ValueError: this one never ends.
        """
        if self.endless:
            raise ValueError("nothing comes after a curve that never ends; give hold() its number of steps")
        return Curve(self.pieces + other.pieces, other.last, other.endless)

    def next_change(self, step: int) -> int | None:
        """The first step after `step` at which the value may be another one, or None."""
        begin = 0
        for piece in self.pieces:
            begin += piece.length
            if step < begin:
                return step + 1 if piece.moves else begin
        return step + 1 if self.last.moves else None

    @property
    def knots(self) -> list[int]:
        """The steps at which a piece begins."""
        found = [0]
        for piece in self.pieces:
            found.append(found[-1] + piece.length)
        return found


def hold(value: float, steps: int | None = None) -> Curve:
    """`value` for so many steps; for ever without them.

    Raises:
        ValueError: the value is not finite, or `steps` is below 1.
    """
    number = _finite(value)
    last = Piece(lambda _: number, moves=False)
    if steps is None:
        return Curve((), last, endless=True)
    return Curve((Piece(last.value, False, _length("hold", steps)),), last)


def ramp(begin: float, end: float, steps: int, form: Form = "linear") -> Curve:
    """From `begin` to `end` in so many steps: linearly, as half a cosine, or as the square root of the way.

    Raises:
        ValueError: a value is not finite, `steps` is below 1, or there is no such form.
    """
    if form not in _FORMS:
        raise ValueError(f"ramp(): form must be {', '.join(_FORMS)}, found {form!r}")
    way, a, b, n = _FORMS[form], _finite(begin), _finite(end), _length("ramp", steps)
    return Curve((Piece(lambda t: a + (b - a) * way(t / n), a != b, n),), Piece(lambda _: b, moves=False))


def free(value: Callable[[int], float]) -> Curve:
    """Any function of the step, from 0."""
    return Curve((), Piece(value), endless=True)


def as_curve(value: float | Curve | Callable[[int], float]) -> Curve:
    """A curve as it is, a number held for ever, or a function."""
    if isinstance(value, Curve):
        return value
    return free(value) if callable(value) else hold(value)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a curve's values must be finite, found {value}")
    return float(value)


def _length(what: str, steps: int) -> int:
    if steps != int(steps) or steps < 1:
        raise ValueError(f"{what}(): steps must be a whole number from 1, found {steps}")
    return int(steps)
