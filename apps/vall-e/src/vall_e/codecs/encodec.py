"""EnCodec at 24 kHz (Défossez et al., 2022, arXiv 2210.13438), 8 codebooks of 1024 at 75 Hz, and Vocos to decode it.

Its published weights are for non-commercial use (CC BY-NC 4.0).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vall_e.codecs.codec import CodecUnavailable, mix_samples
from vall_e.codecs.hub import folder_of

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "encodec_24khz-d7cc33bc.th"
VOCOS_FILES = ("config.yaml", "pytorch_model.bin")
_BANDWIDTH = 6.0  # kbit/s: 8 codebooks
_VOCOS_BANDWIDTH = 2  # the place of 6 kbit/s among Vocos' bandwidths


class Encodec:
    """EnCodec's encoder and decoder.

    Args:
        model: `encodec.EncodecModel` at 24 kHz.
    """

    name = "encodec"
    identity = "encodec-24khz"
    sample_rate = 24000
    frame_rate = 75.0
    levels = 8
    entries = 1024
    mix = mix_samples

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.eval()
        self.model.set_target_bandwidth(_BANDWIDTH)

    @classmethod
    def load(cls, path: Path | None) -> Encodec:
        """With the published weights, from a file or, without one, from where their publisher has them.

        Raises:
            CodecUnavailable: the package or the weights are missing.
        """
        return cls(_encodec(path))

    @torch.inference_mode()
    def encode(self, samples: np.ndarray) -> np.ndarray:
        frames = self.model.encode(torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None, None])
        codes = torch.cat([codes for codes, _ in frames], -1)  # 1, levels, T
        return codes[0].T.numpy().astype(np.uint16)

    @torch.inference_mode()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        if not len(codes):
            return np.zeros(0, np.float32)
        return self.model.decode([(_batched(codes), None)])[0, 0].numpy()


class Vocos(Encodec):
    """EnCodec's encoder with the Vocos decoder (Siuzdak, 2023, arXiv 2306.00814).

    Args:
        encoder: `encodec.EncodecModel` at 24 kHz, or None when nothing has to be encoded.
        decoder: `vocos.Vocos` for EnCodec's codes.
    """

    name = "vocos"

    def __init__(self, encoder: nn.Module | None, decoder: nn.Module) -> None:
        self.decoder: Any = decoder.eval()
        if encoder is not None:
            super().__init__(encoder)

    @classmethod
    def load(cls, path: Path | None) -> Vocos:
        try:
            from vocos import Vocos as Model
        except ImportError as e:
            raise CodecUnavailable("the vocos codec needs its package: pip install 'vall-e[vocos,encodec]'") from e
        try:
            folder = folder_of("charactr/vocos-encodec-24khz", VOCOS_FILES) if path is None else path
        except Exception as e:  # whatever the hub's client raises without a network
            raise _not_here("Vocos' weights", VOCOS_FILES, e) from e
        folder = folder if folder.is_dir() else folder.parent
        for name in VOCOS_FILES:
            if not (folder / name).is_file():
                raise _not_here("Vocos' weights", VOCOS_FILES, f"{folder / name} does not exist")
        try:
            with _quiet():
                decoder = Model.from_hparams(str(folder / VOCOS_FILES[0]))
        except OSError as e:  # it has EnCodec's codebooks downloaded
            raise CodecUnavailable(
                f"EnCodec's weights, which Vocos reads, are not here ({e}): put {WEIGHTS} into "
                f"{torch.hub.get_dir()}/checkpoints"
            ) from e
        # Some files hold EnCodec's own tensors too, and none holds all of its buffers.
        decoder.load_state_dict(torch.load(folder / VOCOS_FILES[1], weights_only=True), strict=False)
        weights = None if path is None else folder / WEIGHTS
        return cls(_encodec(weights) if weights is None or weights.is_file() else None, decoder)

    def encode(self, samples: np.ndarray) -> np.ndarray:
        if not hasattr(self, "model"):
            raise _not_here("EnCodec's weights, which encode for Vocos", (WEIGHTS,), "it lies not beside Vocos' files")
        return super().encode(samples)

    @torch.inference_mode()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        if not len(codes):
            return np.zeros(0, np.float32)
        features = self.decoder.codes_to_features(_batched(codes).transpose(0, 1))  # levels, 1, T
        samples = self.decoder.decode(features, bandwidth_id=torch.tensor([_VOCOS_BANDWIDTH]))
        return samples[0].numpy()


def _batched(codes: np.ndarray) -> torch.Tensor:
    """Codes [T, levels] as [1, levels, T]."""
    return torch.from_numpy(np.ascontiguousarray(codes.T)).long()[None]


def _encodec(path: Path | None) -> nn.Module:
    try:
        from encodec import EncodecModel
    except ImportError as e:
        raise CodecUnavailable("the encodec codec needs its package: pip install 'vall-e[encodec]'") from e
    path = path / WEIGHTS if path is not None and path.is_dir() else path
    if path is not None and not path.is_file():
        raise _not_here("EnCodec's weights", (WEIGHTS,), f"{path} does not exist")
    try:
        with _quiet():
            model = EncodecModel.encodec_model_24khz(pretrained=path is None)
    except Exception as e:  # whatever the download raises
        raise _not_here("EnCodec's weights", (WEIGHTS,), e) from e
    if path is not None:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says for each of EnCodec's layers: that they use weight_norm, which is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm", FutureWarning)
        yield


def _not_here(what: str, files: tuple[str, ...], why: object) -> CodecUnavailable:
    return CodecUnavailable(
        f"{what} are not here ({str(why).splitlines()[0] if str(why) else type(why).__name__}): put "
        f"{' and '.join(files)} into a folder and name it in codec.path"
    )
