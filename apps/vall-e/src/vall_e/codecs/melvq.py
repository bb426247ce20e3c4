"""`melvq`, the embedded codec: residual k-means over log-mel frames, decoded by Griffin-Lim.

It is fitted on the training split in seconds and needs no downloaded weights. A code covers `stack` mel frames,
so the frame rate is 93.75 Hz / stack; each level quantises what the levels before it left over.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vall_e.codecs import mel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np


@dataclass(frozen=True)
class MelVQ:
    """A fitted codec.

    Attributes:
        codebooks: [levels, entries, stack * BANDS], each level's centroids of the residual.
        mean: [stack * BANDS], taken off before the first level.
    """

    codebooks: Tensor
    mean: Tensor
    name = "melvq"
    sample_rate = mel.SAMPLE_RATE

    @property
    def levels(self) -> int:
        return self.codebooks.shape[0]

    @property
    def entries(self) -> int:
        return self.codebooks.shape[1]

    @property
    def stack(self) -> int:
        return self.mean.shape[0] // mel.BANDS

    @property
    def frame_rate(self) -> float:
        """Codes a second."""
        return mel.SAMPLE_RATE / mel.HOP / self.stack

    @cached_property
    def identity(self) -> str:
        """A hash of the codebooks: codes made by another fit mean something else."""
        digest = hashlib.sha256(self.mean.numpy().tobytes())
        digest.update(self.codebooks.numpy().tobytes())
        return f"melvq-{self.levels}x{self.entries}-{digest.hexdigest()[:16]}"

    @cached_property
    def _half_norms(self) -> Tensor:
        return self.codebooks.pow(2).sum(-1) / 2  # levels, entries

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Samples [T] at `sample_rate` to codes uint16 [frames, levels]."""
        return self._quantized(mel.log_mel(torch.from_numpy(samples)))

    def mix(self, codes: np.ndarray, other: np.ndarray, scale: float) -> np.ndarray:
        """The codes of both sounds at once, the second one scaled in amplitude; both [frames, levels], as many.

        No phases are needed: those of two sounds have nothing to do with each other, so their powers add.
        """
        one, two = (self.decode_mel(c).exp() for c in (codes, other))
        return self._quantized(torch.hypot(one, scale * two).log())

    def _quantized(self, frames: Tensor) -> np.ndarray:
        """Log-mel frames [F, BANDS] to codes uint16 [ceil(F / stack), levels]."""
        import numpy as np

        residual = _stacked(frames, self.stack) - self.mean
        codes = np.empty((residual.shape[0], self.levels), np.uint16)
        for level, (book, half_norm) in enumerate(zip(self.codebooks, self._half_norms, strict=True)):
            index = _nearest(residual, book, half_norm)
            residual = residual - book[index]
            codes[:, level] = index.numpy()
        return codes

    def decode_mel(self, codes: np.ndarray | Tensor) -> Tensor:
        """Codes [frames, levels or fewer] to log-mel frames [frames * stack, BANDS]."""
        codes = torch.as_tensor(codes).long()
        if codes.numel() and (codes.max() >= self.entries or codes.min() < 0):
            raise ValueError(f"codes must lie in 0..{self.entries - 1}, found {codes.min()}..{codes.max()}")
        frames = self.mean.expand(codes.shape[0], -1).clone()
        for level in range(codes.shape[1]):
            frames += self.codebooks[level][codes[:, level]]
        return frames.view(-1, mel.BANDS).clamp_min(mel.FLOOR)

    def decode(self, codes: np.ndarray | Tensor) -> np.ndarray:
        """Codes [frames, levels or fewer] to float samples [frames * stack * HOP] at `sample_rate`."""
        import numpy as np

        if len(codes) == 0:
            return np.zeros(0, np.float32)
        return mel.griffin_lim(self.decode_mel(codes)).numpy()

    def state(self) -> dict:
        """What `from_state` rebuilds the codec from: tensors and plain values."""
        return {"codebooks": self.codebooks, "mean": self.mean}

    @classmethod
    def from_state(cls, state: dict) -> MelVQ:
        return cls(codebooks=state["codebooks"].float(), mean=state["mean"].float())

    def save(self, path: str | Path) -> None:
        """Store the codec with `stateio`, atomically."""
        import stateio

        stateio.save({"module": self.state(), "config": {"codec": self.name, "identity": self.identity}}, path)

    @classmethod
    def load(cls, path: str | Path) -> MelVQ:
        import stateio

        return cls.from_state(stateio.load(path)["module"])


def fit(
    recordings: Iterable[np.ndarray],
    *,
    levels: int = 8,
    entries: int = 1024,
    stack: int = 1,
    iterations: int = 10,
    max_vectors: int = 60_000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> MelVQ:
    """Fit a codec on recordings, each samples [T] at 24 kHz, by residual k-means.

    Args:
        levels: codebooks.
        entries: centroids in each, at most 65,536.
        stack: mel frames (93.75 a second) that one code covers.
        iterations: Lloyd iterations a level.
        max_vectors: a random subset of this many stacked frames is fitted.
        progress: called with (levels fitted, levels).

    Raises:
        ValueError: fewer stacked frames than entries.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.cat([_stacked(mel.log_mel(torch.from_numpy(x)), stack) for x in recordings])
    if vectors.shape[0] < entries:
        raise ValueError(
            f"melvq needs at least {entries} stacked frames to fit {entries} entries, found {vectors.shape[0]}: "
            "give more audio or a smaller codebook"
        )
    if vectors.shape[0] > max_vectors:
        vectors = vectors[torch.randperm(vectors.shape[0], generator=generator)[:max_vectors]]
    mean = vectors.mean(0)
    residual = vectors - mean
    books = []
    for level in range(levels):
        book = _kmeans(residual, entries, iterations, generator)
        residual = residual - book[_nearest(residual, book)]
        books.append(book)
        if progress:
            progress(level + 1, levels)
    return MelVQ(codebooks=torch.stack(books), mean=mean)


def _stacked(frames: Tensor, stack: int) -> Tensor:
    """Log-mel frames [F, BANDS], `stack` to a row: [ceil(F / stack), stack * BANDS]."""
    missing = -frames.shape[0] % stack
    if missing:
        frames = torch.cat([frames, frames.new_full((missing, mel.BANDS), mel.FLOOR)])
    return frames.view(-1, stack * mel.BANDS)


def _nearest(x: Tensor, book: Tensor, half_norm: Tensor | None = None) -> Tensor:
    """The index [N] of the centroid [K, D] nearest to each row of x [N, D]."""
    if half_norm is None:
        half_norm = book.pow(2).sum(-1) / 2
    # |x - c|^2 is smallest where |c|^2 / 2 - x.c is; in pieces, so that N x K never lies in memory at once.
    return torch.cat([torch.addmm(half_norm, part, book.T, alpha=-1).argmin(-1) for part in x.split(16384)])


def _kmeans(x: Tensor, entries: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm from random rows; an empty cluster restarts at a random row."""
    book = x[torch.randperm(x.shape[0], generator=generator)[:entries]].clone()
    for _ in range(iterations):
        index = _nearest(x, book)
        counts = torch.bincount(index, minlength=entries)
        sums = torch.zeros_like(book).index_add_(0, index, x)
        book = sums / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            book[empty] = x[torch.randint(x.shape[0], (len(empty),), generator=generator)]
    return book
