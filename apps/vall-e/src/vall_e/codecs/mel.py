"""Log-mel frames and their inverse, in the form that Vocos' 24 kHz vocoder reads.

Frames are magnitudes of a centred Hann STFT (1024 samples, hop 256) through 100 triangular bands on the HTK
mel scale, as natural logarithms.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

SAMPLE_RATE = 24000
N_FFT = 1024
HOP = 256
BANDS = 100
FLOOR = math.log(1e-2)
"""Quieter than this is silence: 80 dB under a full-scale tone, which 8 bits of codebook should not describe."""


@cache
def _filter_bank() -> Tensor:
    """Triangular bands [N_FFT // 2 + 1, BANDS] with centres equally spaced in HTK mels."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, BANDS + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp_min(0).float()


@cache
def _inverse_filter_bank() -> Tensor:
    return torch.linalg.pinv(_filter_bank())  # BANDS, bins


@cache
def _window() -> Tensor:
    return torch.hann_window(N_FFT)


def log_mel(samples: Tensor) -> Tensor:
    """Samples [T] at `SAMPLE_RATE` to log-mel frames [ceil(T / HOP), BANDS], not lower than `FLOOR`."""
    frames = -(-samples.shape[-1] // HOP)
    padded = torch.nn.functional.pad(samples, (N_FFT // 2, N_FFT // 2 + HOP))
    spectrum = torch.stft(padded, N_FFT, HOP, window=_window(), center=False, return_complex=True)
    mel = spectrum.abs()[:, :frames].T @ _filter_bank()  # frames, BANDS
    return mel.clamp_min(math.exp(FLOOR)).log()


def griffin_lim(mel: Tensor, iterations: int = 32, momentum: float = 0.99) -> Tensor:
    """Log-mel frames [F, BANDS] to samples [F * HOP], with phases found by fast Griffin-Lim.

    The magnitudes are the pseudo-inverse of the filter bank, clamped to be positive. Phases start from a fixed
    seed, so the same frames always give the same samples.

    Source: Perraudin, Balazs, Soendergaard, "A fast Griffin-Lim algorithm", WASPAA 2013.
    """
    magnitude = (mel.exp() @ _inverse_filter_bank()).clamp_min(0).T  # bins, F
    # Silence stays silent: what lies at the floor in all bands is not noise to be reconstructed.
    magnitude = magnitude * (mel > FLOOR + 0.05).any(-1)
    length = mel.shape[0] * HOP
    generator = torch.Generator().manual_seed(0)
    phase = torch.rand(magnitude.shape, generator=generator) * (2 * math.pi)
    estimate = torch.polar(magnitude, phase)
    previous = torch.zeros_like(estimate)
    for _ in range(iterations):
        rebuilt = _stft(_istft(estimate, length))
        step = rebuilt + momentum * (rebuilt - previous)
        previous = rebuilt
        estimate = magnitude * step / step.abs().clamp_min(1e-8)
    return _istft(estimate, length)


def _istft(spectrum: Tensor, length: int) -> Tensor:
    # One frame more than the mel has, so that the overlap-add is defined up to the last sample.
    spectrum = torch.nn.functional.pad(spectrum, (0, 1))
    return torch.istft(spectrum, N_FFT, HOP, window=_window(), length=length)


def _stft(samples: Tensor) -> Tensor:
    return torch.stft(samples, N_FFT, HOP, window=_window(), return_complex=True)[:, :-1]
