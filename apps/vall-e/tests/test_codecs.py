"""The published codecs' real architectures with random weights, and what is said when weights are missing."""

import warnings

import numpy as np
import pytest
import torch
from vall_e.codecs.codec import CodecUnavailable
from vall_e.codecs.encodec import WEIGHTS, Encodec, Vocos
from vall_e.codecs.load import published

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, about weight norm

VOCOS_CONFIG = """
feature_extractor:
  class_path: vocos.feature_extractors.EncodecFeatures
  init_args: {encodec_model: encodec_24khz, bandwidths: [1.5, 3.0, 6.0, 12.0], train_codebooks: false}
backbone:
  class_path: vocos.models.VocosBackbone
  init_args: {input_channels: 128, dim: 32, intermediate_dim: 64, num_layers: 1, adanorm_num_embeddings: 4}
head:
  class_path: vocos.heads.ISTFTHead
  init_args: {dim: 32, n_fft: 1280, hop_length: 320, padding: same}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of weights as their publishers name them, random ones."""
    from encodec import EncodecModel

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(EncodecModel.encodec_model_24khz(pretrained=False).state_dict(), folder / WEIGHTS)
    return folder


def check(codec, seconds=1.0):
    samples = np.random.default_rng(0).standard_normal(int(seconds * codec.sample_rate)).astype(np.float32) * 0.1
    codes = codec.encode(samples)
    info = published(codec.name)
    assert (codec.identity, codec.levels, codec.entries, codec.frame_rate) == (
        info.identity,
        info.levels,
        info.entries,
        info.frame_rate,
    )
    assert codes.shape[1] == codec.levels
    assert abs(len(codes) - seconds * codec.frame_rate) <= 1
    assert codes.max() < codec.entries
    decoded = codec.decode(codes)
    assert abs(len(decoded) - len(samples)) <= 2 * codec.sample_rate / codec.frame_rate
    assert np.isfinite(decoded).all()
    assert codec.decode(codes[:0]).shape == (0,)
    assert codec.mix(codes, codes[::-1], 0.25).shape == codes.shape
    return codes


def test_encodec(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Encodec.load(folder)
    check(Encodec.load(folder))
    check(Encodec.load(folder / WEIGHTS))


def test_vocos_decodes_the_codes_of_encodec(folder, monkeypatch):
    from encodec import EncodecModel
    from vocos import Vocos as Model

    build = EncodecModel.encodec_model_24khz
    monkeypatch.setattr(
        EncodecModel, "encodec_model_24khz", staticmethod(lambda pretrained=True: build(pretrained=False))
    )
    (folder / "config.yaml").write_text(VOCOS_CONFIG)
    torch.save(Model.from_hparams(str(folder / "config.yaml")).state_dict(), folder / "pytorch_model.bin")
    codec = Vocos.load(folder)
    np.testing.assert_array_equal(check(codec), check(Encodec.load(folder)))


def test_dac(tmp_path):
    from transformers import DacConfig, DacModel
    from vall_e.codecs.dac import Dac

    torch.manual_seed(0)
    config = DacConfig(encoder_hidden_size=8, decoder_hidden_size=64, n_codebooks=9, sampling_rate=44100)
    DacModel(config).save_pretrained(tmp_path)
    check(Dac.load(tmp_path), 0.5)


def test_a_hub_out_of_reach_is_asked_once(monkeypatch, tmp_path):
    import huggingface_hub
    from vall_e.codecs.dac import Dac

    asked = []

    class Unreachable:
        def head(self, url, timeout):
            asked.append(url)
            raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.utils, "get_session", Unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CodecUnavailable, match=r"Vocos' weights are not here \(no network\)"):
        Vocos.load(None)
    with pytest.raises(CodecUnavailable, match=r"DAC's weights are not here \(no network\): put config.json and model"):
        Dac.load(None)
    assert len(asked) == 2


def test_missing_weights_say_which_file_goes_where(tmp_path):
    with pytest.raises(CodecUnavailable, match=rf"put {WEIGHTS} into a folder and name it in codec.path"):
        Encodec.load(tmp_path)
    with pytest.raises(CodecUnavailable, match=r"put config.yaml and pytorch_model.bin into a folder"):
        Vocos.load(tmp_path)
