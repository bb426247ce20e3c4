"""What a codec is: samples to integer codes and back, with the sizes that a model needs to know."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class CodecUnavailable(RuntimeError):
    """A codec cannot be loaded here; the message says what is missing and where to put it."""


class Codec(Protocol):
    """A neural or embedded audio codec.

    Attributes:
        name: as `audio_backend` has it.
        identity: what the codes mean; codes of another identity do not fit.
        sample_rate: Hz.
        frame_rate: codes a second, at each level.
        levels, entries: codebooks, and codes in each.
    """

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def frame_rate(self) -> float: ...
    @property
    def levels(self) -> int: ...
    @property
    def entries(self) -> int: ...

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Float samples [T] at `sample_rate` to codes [frames, levels]."""
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [frames, levels or fewer] to float samples [T]."""
        ...

    def mix(self, codes: np.ndarray, other: np.ndarray, scale: float) -> np.ndarray:
        """The codes of both sounds at once, the second one scaled in amplitude; both [frames, levels], as many."""
        ...


def mix_samples(self: Codec, codes: np.ndarray, other: np.ndarray, scale: float) -> np.ndarray:
    """`Codec.mix` of a codec that knows no shorter way: decode, add, encode."""
    mixed = self.decode(codes) + scale * self.decode(other)
    return np.resize(self.encode(mixed.astype(np.float32)), codes.shape)
