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
