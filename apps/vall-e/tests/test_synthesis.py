import dataclasses

import numpy as np
import pytest
from vall_e import audio
from vall_e.synthesis import Request, Speaker
from vall_e.text import pieces
from vall_e.weights import WeightsError, load_weights


@pytest.fixture(scope="module")
def speaker(prepared) -> Speaker:
    return Speaker(load_weights(prepared / "ckpt/ar+nar/fp32.sft"))


@pytest.fixture(scope="module")
def reference(prepared):
    return next(prepared.glob("corpus/en/*/*.wav"))


def test_texts_are_cut_where_sentences_end():
    text = "Dr. Smith came at 5.30 today. Who? J. R. did!\nThe end"
    assert pieces(text, "sentence") == ["Dr. Smith came at 5.30 today.", "Who?", "J. R. did!", "The end"]
    assert pieces(text, "line") == ["Dr. Smith came at 5.30 today. Who? J. R. did!", "The end"]
    assert pieces("…\n\n  ", "sentence") == []
    assert pieces("こんにちは。元気?", "sentence") == ["こんにちは。", "元気?"]


def test_the_same_seed_speaks_the_same_and_each_sentence_is_heard(speaker, reference):
    request = Request("One. Two.", reference, options={"temperature": 1.0})
    first = speaker.speak(request)
    np.testing.assert_array_equal(first, speaker.speak(request))
    assert not np.array_equal(first, speaker.speak(dataclasses.replace(request, seed=5)))
    one = speaker.speak(dataclasses.replace(request, text="One."))
    np.testing.assert_array_equal(first[: len(one)], one)
    assert len(first) > len(one)


def test_a_stream_has_the_frames_of_the_whole(speaker, reference):
    request = Request("A word. And some more words than that.", reference, options={"temperature": 1.0})
    whole = speaker.speak(request)
    chunks = list(speaker.stream(request, chunk_seconds=0.4))
    assert len(chunks) > 3
    assert sum(map(len, chunks)) == len(whole)
    assert max(float(np.abs(np.diff(c)).max(initial=0)) for c in chunks) < 1.5


def test_a_stream_is_a_wav(speaker, reference, tmp_path):
    request = Request("A word.", reference, options={"temperature": 1.0})
    count = audio.stream_wav(tmp_path / "s.wav", speaker.stream(request), speaker.sample_rate)
    assert len(audio.read_audio(tmp_path / "s.wav", speaker.sample_rate)) == pytest.approx(count, abs=64)


def test_references_that_cannot_be_used(speaker, tmp_path):
    rate = 8000
    for name, samples, message in (
        ("short", np.random.default_rng(0).normal(0, 0.1, 800), "0.10 s of sound are too short"),
        ("silent", np.zeros(8000), "too short"),
    ):
        audio.write_wav(tmp_path / f"{name}.wav", samples, rate)
        with pytest.raises(ValueError, match=message):
            speaker.speak(Request("Yes.", tmp_path / f"{name}.wav"))
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        speaker.speak(Request("Yes.", tmp_path / "empty.wav"))


def test_a_clipped_reference_is_said(speaker, tmp_path):
    loud = np.sign(np.sin(np.arange(24000) / 20))
    audio.write_wav(tmp_path / "loud.wav", loud, 24000)
    with pytest.warns(UserWarning, match="the recording is clipped"):
        speaker.speak(Request("Yes.", tmp_path / "loud.wav", options={"temperature": 1.0}))


def test_texts_and_languages_that_cannot_be_spoken(speaker):
    for request, message in (
        (Request(""), "there is nothing to say"),
        (Request("…!"), "there is nothing to say"),
        (Request("Yes.", language="xx"), "language: this model knows en, ja"),
        (Request("Yes.", options={"temprature": 1}), "did you mean temperature"),
    ):
        with pytest.raises(ValueError, match=message):
            speaker.speak(request)


def test_phonemes_that_the_weights_do_not_know_are_an_error_or_dropped(speaker, reference, monkeypatch):
    monkeypatch.setattr("vall_e.espeak.phonemize", lambda *_: "ja\u2603s")
    request = Request("Yes.", reference, options={"temperature": 1.0})
    with pytest.raises(ValueError, match="\u2603"):
        speaker.speak(request)
    assert len(speaker.speak(dataclasses.replace(request, unknown="drop")))


def test_a_sentence_longer_than_any_in_training_is_spoken_in_parts(speaker):
    text = ", ".join(["seven birds sang about rain"] * 6) + "."
    parts = speaker._phonemes(text, "en", True)
    whole = speaker._phonemes(text, "en", False)
    most = speaker.voice.settings["most_phones"]
    assert len(parts) > 1
    assert [" ".join(parts)] == whole
    assert all(len(speaker.voice.tokenizer.encode(p)) <= most for p in parts)
    assert len(speaker._phonemes("Seven birds.", "en", True)) == 1


def test_a_sentence_that_does_not_end_is_cut_with_a_warning(speaker, reference):
    request = Request("Yes.", reference, options={"temperature": 1.0, "length_penalty": -50.0})
    with pytest.warns(UserWarning, match="did not end by itself and was cut at"):
        speaker.speak(request)


def test_weights_without_a_codec_say_so(golden):
    with pytest.raises(WeightsError, match="hold no codec and name none"):
        Speaker(load_weights(golden / "tiny/fp32.sft"))
