from functools import partial

import numpy as np
import pytest
import torch
from vall_e.codecs import mel, melvq
from vall_e.codecs.codec import mix_samples


@pytest.fixture(scope="module")
def codec(speech):
    return melvq.fit(speech, levels=3, entries=16, stack=4, iterations=5)


def test_each_level_brings_the_frames_closer(codec, speech):
    codes = codec.encode(speech[0])
    assert codes.shape[1] == 3
    frames = mel.log_mel(torch.from_numpy(speech[0]))
    errors = [(codec.decode_mel(codes[:, :n])[: len(frames)] - frames).pow(2).mean() for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_griffin_lim_gives_back_the_frames(speech):
    frames = mel.log_mel(torch.from_numpy(speech[0]))
    again = mel.log_mel(mel.griffin_lim(frames))
    assert (again - frames).abs().mean() < 0.35


def test_saved_and_loaded_it_is_the_same_codec(codec, speech, tmp_path):
    codec.save(tmp_path / "codec.sft")
    loaded = melvq.MelVQ.load(tmp_path / "codec.sft")
    assert loaded.identity == codec.identity
    np.testing.assert_array_equal(loaded.encode(speech[1]), codec.encode(speech[1]))


@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_mixed_without_phases_it_sounds_as_mixed_samples_do(codec, speech, scale):
    one = codec.encode(speech[0])
    two = np.resize(codec.encode(speech[1]), one.shape)
    mixed, by_samples = (mix(one, two, scale) for mix in (codec.mix, partial(mix_samples, codec)))
    assert mixed.shape == by_samples.shape == one.shape
    a, b, alone = (codec.decode_mel(c) for c in (mixed, by_samples, one))
    assert (a - b).abs().mean() < 0.6 * (alone - b).abs().mean()
    np.testing.assert_array_equal(codec.mix(one, two, 0.0), codec._quantized(codec.decode_mel(one)))


def test_too_little_audio_is_an_error(speech):
    with pytest.raises(ValueError, match="stacked frames"):
        melvq.fit(speech[:1], entries=4096)
