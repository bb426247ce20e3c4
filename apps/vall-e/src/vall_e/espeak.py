"""Speech and phonemes from espeak-ng, through the library and voices inside the `espeakng-loader` wheel.

espeak-ng keeps its state (voice, rate, pitch) in the process, so one lock guards every call. It is GPL-3 and
therefore an optional extra: without it, datasets that already hold phonemes and codes still train.
"""

from __future__ import annotations

import ctypes
import re
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vall_e.text import printable

if TYPE_CHECKING:
    import numpy as np

SAMPLE_RATE = 22050
"""Samples a second of what `speak` returns (espeak-ng's own rate)."""

VOICE_OF_LANGUAGE = {"en": "en-us", "de": "de", "fr": "fr", "ja": "ja", "zh": "cmn", "ko": "ko"}
"""The espeak-ng voice that phonemises each language the model knows."""

# Synchronous: in the retrieval mode a thread of its own speaks, and changing the voice under it crashes.
_SYNCHRONOUS, _DONT_EXIT = 2, 0x8000
_UTF8, _IPA = 1, 0x02
_RATE, _PITCH = 1, 3
# The library seeds the noise of breath and fricatives with the time; a corpus has to come out the same again.
_NOISE_SEED = 1
_SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_LANGUAGE_FLAG = re.compile(r"\([a-z]{2,3}(?:-[a-z0-9-]+)?\)")
_KANJI = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
# espeak-ng reads a character past the end of a clause, and takes "Mr." for the end of one.
_CLAUSE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)([.,!?;:…—。、！？，；：])[\"')\]»”’]*(?:\s*\S)?$")
_ASCII_OF = {"。": ".", "、": ",", "！": "!", "？": "?", "，": ",", "；": ";", "：": ":"}
_lock = threading.RLock()


class EspeakUnavailable(RuntimeError):
    """The `espeak` extra is not installed, or its library does not load on this machine."""


class UnknownVoice(ValueError):
    """espeak-ng has no voice of the requested name."""


class _Espeak:
    """The loaded library; made once a process by `_library`."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as e:
            raise EspeakUnavailable(
                "speaking and phonemising need espeak-ng: install it with `pip install 'vall-e[espeak]'`"
            ) from e
        try:
            self.lib = ctypes.CDLL(espeakng_loader.get_library_path())
        except OSError as e:
            raise EspeakUnavailable(f"espeak-ng's library does not load on this machine: {e}") from e
        self.lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.lib.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        data = espeakng_loader.get_data_path()
        self.variants = {p.name for p in (Path(data) / "voices" / "!v").iterdir()}
        rate = self.lib.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DONT_EXIT)
        if rate != SAMPLE_RATE:
            raise EspeakUnavailable(f"espeak-ng started with code or sample rate {rate}, expected {SAMPLE_RATE}")
        self.chunks: list[bytes] = []
        self.callback = _SYNTH_CALLBACK(self._receive)  # kept: the library holds only a bare pointer
        self.lib.espeak_SetSynthCallback(self.callback)

    def _receive(self, wave: ctypes._Pointer, count: int, _events: int) -> int:
        if wave and count:
            self.chunks.append(ctypes.string_at(wave, 2 * count))
        return 0

    def set_voice(self, voice: str) -> None:
        # On an unknown name the library keeps the previous voice, and crashes the process at the first
        # phonemes when there was none, so the return code is checked; an unknown variant it takes silently.
        _, _, variant = voice.partition("+")
        if (variant and variant not in self.variants) or self.lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UnknownVoice(f"espeak-ng has no voice {voice!r}; names look like 'en-us', 'de' or 'en-us+f3'")


@cache
def _library() -> _Espeak:
    return _Espeak()


def check_language(language: str) -> None:
    """Raise what `phonemize` raises before it sees a text.

    Raises:
        UnknownVoice: there is no voice for the language.
        EspeakUnavailable: the `espeak` extra is missing.
    """
    with _lock:
        _library().set_voice(VOICE_OF_LANGUAGE.get(language, language))


def speak(text: str, voice: str, *, rate: int = 175, pitch: int = 50) -> np.ndarray:
    """Speak `text` into int16 samples [T] at `SAMPLE_RATE`.

    Echo goes on from one call to the next, so the first samples depend a little on what the process spoke before;
    the same calls in a new process give the same samples.

    Args:
        text: what to say.
        voice: an espeak-ng voice, with a variant after a plus sign: `en-us+f3`.
        rate: words a minute, 80 to 450.
        pitch: 0 to 100.

    Raises:
        UnknownVoice: the voice does not exist.
        EspeakUnavailable: the `espeak` extra is missing.
    """
    import numpy as np

    with _lock:
        library = _library()
        library.set_voice(voice)
        text = printable(text)
        library.lib.espeak_SetParameter(_RATE, rate, 0)
        library.lib.espeak_SetParameter(_PITCH, pitch, 0)
        library.lib.espeak_ng_SetRandSeed(_NOISE_SEED)
        library.chunks.clear()
        data = text.encode()
        code = library.lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        if code != 0:
            raise RuntimeError(f"espeak-ng could not speak {text!r} (code {code})")
        return np.frombuffer(b"".join(library.chunks), dtype=np.int16).copy()


def phonemize(text: str, language: str = "en") -> str:
    """The IPA phonemes of `text`, punctuation kept, as existing VALL-E datasets hold them.

    espeak-ng phonemises one clause a call and drops its punctuation; it is put back here. Language flags
    that espeak-ng inserts at foreign words, such as `(en)`, are removed. Control characters count as spaces.

    Args:
        text: a sentence or more.
        language: a key of `VOICE_OF_LANGUAGE`, or any espeak-ng voice.

    Raises:
        ValueError: Japanese text with kanji, which espeak-ng would read as Chinese: convert it to kana first.
    """
    if language == "ja" and _KANJI.search(text):
        raise ValueError(f"espeak-ng reads kanji as Chinese: convert this text to kana first: {text!r}")
    text = printable(text)
    with _lock:
        library = _library()
        library.set_voice(VOICE_OF_LANGUAGE.get(language, language))
        buffer = ctypes.create_string_buffer(text.encode())
        start = ctypes.addressof(buffer)
        cursor = ctypes.c_void_p(start)
        clauses = []
        while cursor.value:
            begin = cursor.value
            ipa = library.lib.espeak_TextToPhonemes(ctypes.byref(cursor), _UTF8, _IPA)
            end = cursor.value or start + len(buffer.value)
            consumed = buffer.raw[begin - start : end - start].decode(errors="replace").rstrip()
            phones = _LANGUAGE_FLAG.sub("", (ipa or b"").decode()).strip()
            mark = _CLAUSE_END.search(consumed)
            clause = phones + (_ASCII_OF.get(mark[1], mark[1]) if mark and phones else "")
            if clause:
                clauses.append(clause)
    return " ".join(clauses)
