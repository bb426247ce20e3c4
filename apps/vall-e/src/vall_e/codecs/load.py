"""Codecs by name."""

from __future__ import annotations

from pathlib import Path

from vall_e.codecs.codec import Codec, CodecUnavailable
from vall_e.config import Config
from vall_e.data.store import CodecInfo

_PUBLISHED = {
    # Vocos decodes EnCodec's codes, so the two share an identity.
    "encodec": CodecInfo("encodec", "encodec-24khz", 8, 1024, 75.0),
    "vocos": CodecInfo("vocos", "encodec-24khz", 8, 1024, 75.0),
    "dac": CodecInfo("dac", "dac-44khz", 9, 1024, 44100 / 512),
}


def published(name: str) -> CodecInfo | None:
    """What the codes of a codec with published weights mean; None for `melvq`, which is fitted."""
    return _PUBLISHED.get(name)


def load_codec(cfg: Config, name: str) -> Codec:
    """The codec of a dataset.

    Raises:
        CodecUnavailable: its package or its weights are missing here.
        stateio.StateFileError: its file is damaged.
    """
    if name != "melvq":
        return load_published(name, cfg.codec.path)
    from vall_e.codecs.melvq import MelVQ

    if not cfg.codec_path.is_file():
        raise CodecUnavailable(f"{cfg.codec_path}: the codec of the dataset is missing; prepare the dataset again")
    return MelVQ.load(cfg.codec_path)


def load_published(name: str, path: Path | None = None) -> Codec:
    """`encodec`, `vocos` or `dac`, with weights from `path` or, without one, from where their publisher has them.

    Raises:
        CodecUnavailable: the package or the weights are missing here.
    """
    if name == "encodec":
        from vall_e.codecs.encodec import Encodec

        return Encodec.load(path)
    if name == "vocos":
        from vall_e.codecs.encodec import Vocos

        return Vocos.load(path)
    from vall_e.codecs.dac import Dac

    return Dac.load(path)
