"""The Descript Audio Codec at 44.1 kHz (Kumar et al., 2023, arXiv 2306.06546): 9 codebooks of 1024 at 86 Hz."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vall_e.codecs.codec import CodecUnavailable, mix_samples
from vall_e.codecs.hub import folder_of

if TYPE_CHECKING:
    from torch import nn


FILES = ("config.json", "model.safetensors")


class Dac:
    """DAC's encoder and decoder.

    Args:
        model: `transformers.DacModel` at 44.1 kHz.
    """

    name = "dac"
    identity = "dac-44khz"
    sample_rate = 44100
    frame_rate = 44100 / 512
    levels = 9
    entries = 1024
    mix = mix_samples

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.eval()

    @classmethod
    def load(cls, path: Path | None) -> Dac:
        """With the published weights, from a folder (`config.json`, `model.safetensors`) or from the hub.

        Raises:
            CodecUnavailable: the package or the weights are missing.
        """
        try:
            from transformers import DacModel
        except ImportError as e:
            raise CodecUnavailable("the dac codec needs transformers: pip install 'vall-e[dac]'") from e
        try:
            return cls(DacModel.from_pretrained(str(path or folder_of("descript/dac_44khz", FILES))))
        except Exception as e:  # whatever the hub's client raises without a network
            raise CodecUnavailable(
                f"DAC's weights are not here ({(str(e).splitlines() or [type(e).__name__])[0]}): put "
                f"{' and '.join(FILES)} into a folder and name it in codec.path"
            ) from e

    @torch.inference_mode()
    def encode(self, samples: np.ndarray) -> np.ndarray:
        hop = round(self.sample_rate / self.frame_rate)
        padded = np.pad(np.asarray(samples, np.float32), (0, -len(samples) % hop))
        codes = self.model.encode(torch.from_numpy(padded)[None, None]).audio_codes  # 1, levels, T
        return codes[0].T.numpy().astype(np.uint16)

    @torch.inference_mode()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        if not len(codes):
            return np.zeros(0, np.float32)
        batch = torch.from_numpy(np.ascontiguousarray(codes.T)).long()[None]
        return self.model.decode(audio_codes=batch).audio_values[0].numpy()
