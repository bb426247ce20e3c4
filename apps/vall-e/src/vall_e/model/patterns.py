"""Layouts of several codebooks in one sequence: at which step each code of each frame stands.

A codec gives Q codes (levels) a frame, a sequence model takes one step after another. A layout says at which step each
of the T x Q codes stands, each level in a slot of its own, so that a step holds up to Q codes. Which codes a model may
condition on follows: those of earlier steps. Source: Copet et al., "Simple and Controllable Music Generation", 2023,
arXiv 2306.05284, section 2.2.

Nothing here knows a model: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Layout:
    """A place for each code.

    Attributes:
        steps: integers [T, Q], the step of each code; no two codes of a level share one.
    """

    steps: np.ndarray

    def __post_init__(self) -> None:
        if self.steps.ndim != 2 or not self.steps.shape[1]:
            raise ValueError(f"steps: expected [frames, levels], found shape {list(self.steps.shape)}")
        if self.steps.min(initial=0) < 0:
            raise ValueError(f"steps: expected 0 or more, found {self.steps.min()}")
        ordered = np.sort(self.steps, 0)
        for frame, level in np.argwhere(ordered[1:] == ordered[:-1])[:1].tolist():
            raise ValueError(f"steps: two codes of level {level} stand at step {ordered[frame, level]}")

    @property
    def length(self) -> int:
        """Steps in all, S."""
        return int(self.steps.max(initial=-1)) + 1

    def spread(self, codes: np.ndarray, empty: int) -> np.ndarray:
        """Codes [T, Q] as a sequence [S, Q], with `empty` where no code stands.

        Raises:
            ValueError: the codes are not as many as the layout places.
        """
        if codes.shape != self.steps.shape:
            raise ValueError(f"codes: expected shape {list(self.steps.shape)}, found {list(codes.shape)}")
        sequence = np.full((self.length, codes.shape[1]), empty, codes.dtype)
        np.put_along_axis(sequence, self.steps, codes, 0)
        return sequence

    def gather(self, sequence: np.ndarray) -> np.ndarray:
        """The codes [T, Q] of a sequence [S, Q]: undoes `spread`.

        Raises:
            ValueError: the sequence is of another length; `whole` says how many frames of it there are.
        """
        if sequence.shape != (self.length, self.steps.shape[1]):
            raise ValueError(
                f"sequence: expected shape {[self.length, self.steps.shape[1]]}, found {list(sequence.shape)}"
            )
        return np.take_along_axis(sequence, self.steps, 0)

    def whole(self, done: int) -> int:
        """Frames at the beginning all of whose codes stand in the first `done` steps: what can be heard by then."""
        late = (self.steps >= done).any(1)
        return int(late.argmax()) if late.any() else len(late)


def parallel(frames: int, levels: int) -> Layout:
    """All codes of a frame at one step: S = T."""
    return delay(frames, [0] * levels)


def delay(frames: int, offsets: Sequence[int]) -> Layout:
    """Each level so many steps behind the frame, a level each: S = T + the largest offset."""
    return Layout(np.arange(frames)[:, None] + np.asarray(offsets, np.int64))


def unrolled(frames: int, levels: int) -> Layout:
    """One code a step, the levels of a frame one after the other: S = T x Q."""
    return Layout(np.arange(frames * levels).reshape(frames, levels))


def coarse_first(frames: int, stages: Sequence[int]) -> Layout:
    """All frames of the first levels, then all frames of the next ones: S = T x the number of stages.

    Args:
        stages: levels in each; `[1, 7]` is VALL-E's division of eight, `[1] * 8` goes level by level.

    Raises:
        ValueError: a stage without a level.
    """
    if not stages or min(stages) < 1:
        raise ValueError(f"stages: expected 1 level or more in each, found {list(stages)}")
    stage = np.repeat(np.arange(len(stages)), stages)
    return Layout(np.arange(frames)[:, None] + stage * frames)
