import numpy as np
import pytest
from vall_e import espeak


def test_punctuation_is_kept_and_language_flags_are_not():
    assert espeak.phonemize("Hello world. Is this, well, a test?") == "həlˈoʊ wˈɜːld. ɪz ðˈɪs, wˈɛl, ɐ tˈɛst?"
    assert "(" not in espeak.phonemize("Das Meeting war schön.", "de")


def test_the_voice_of_an_unknown_name_is_an_error_and_the_next_call_works():
    for name in ("xx-yy", "en-us+nobody"):
        with pytest.raises(espeak.UnknownVoice, match=name.replace("+", r"\+")):
            espeak.speak("hello", name)
    assert espeak.phonemize("yes") == "jˈɛs"


def test_speech_is_deterministic_and_not_silent():
    a, b = (espeak.speak("Good morning.", "de+f3") for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert len(a) > espeak.SAMPLE_RATE / 2
    assert np.abs(a).max() > 1000


def test_kanji_need_a_converter():
    with pytest.raises(ValueError, match="kana"):
        espeak.phonemize("日本", "ja")
