import subprocess
import sys
import time

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


def test_the_same_calls_in_new_processes_give_the_same_speech():
    program = (
        "import hashlib; from vall_e import espeak\n"
        "x = [espeak.speak('Good morning.', 'de+f3').tobytes() for _ in range(2)]\n"
        "print(len(x[0]), hashlib.sha256(b''.join(x)).hexdigest())"
    )
    first = subprocess.check_output([sys.executable, "-c", program], text=True)
    time.sleep(1.1)  # left alone, the library seeds its noise with the second
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == first
    assert int(first.split()[0]) > espeak.SAMPLE_RATE


def test_kanji_need_a_converter():
    with pytest.raises(ValueError, match="kana"):
        espeak.phonemize("日本", "ja")


@pytest.mark.parametrize("control", ["\0", "\x01", "\x1b", "\n", "\x85"])
def test_control_characters_cut_nothing_off(control):
    assert espeak.phonemize(f"Hello{control}world.") == espeak.phonemize("Hello world.")
    lengths = [len(espeak.speak(text, "en-us")) for text in (f"Hello{control}world.", "Hello world.")]
    assert abs(lengths[0] - lengths[1]) < 100


def test_a_language_without_a_voice_is_found_before_there_is_a_text():
    espeak.check_language("ja")
    with pytest.raises(espeak.UnknownVoice, match="xx"):
        espeak.check_language("xx")
