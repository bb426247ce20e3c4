"""Phonemes to ids: one id a character, with stress and length marks attached to the character before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib import resources

_ATTACHED = "\u02c8\u02cc\u02d0"  # primary stress, secondary stress, length
_START, _END, _SPACE = "<s>", "</s>", " "


class UnknownSymbol(ValueError):
    """A phoneme that the vocabulary does not hold; the message gives it and its position."""


@cache
def default_vocabulary() -> dict[str, int]:
    """The vocabulary of existing weights, symbol to id."""
    return json.loads(resources.files("vall_e").joinpath("vocabulary.json").read_text(encoding="utf-8"))


class NaiveTokenizer:
    """Splits IPA phonemes into characters and looks them up.

    Args:
        vocabulary: symbol to id; by default that of existing weights.

    A space gives its id twice and an empty string gives it once, as existing weights were trained.
    """

    def __init__(self, vocabulary: dict[str, int] | None = None) -> None:
        self.vocabulary = default_vocabulary() if vocabulary is None else vocabulary

    def split(self, phonemes: str) -> list[str]:
        symbols: list[str] = []
        for character in phonemes:
            # A mark that opens a word stands alone: there is no symbol " ˈ" in the vocabulary.
            if character in _ATTACHED and symbols and symbols[-1] != _SPACE:
                symbols[-1] += character
            else:
                symbols.append(character)
        return symbols

    def encode(self, phonemes: str, *, unknown: str = "error") -> list[int]:
        """The ids of a string of phonemes, between those of `<s>` and `</s>`.

        Args:
            phonemes: as espeak-ng gives them.
            unknown: `"error"`, or `"drop"` to leave out symbols that the vocabulary does not hold.

        Raises:
            UnknownSymbol: naming the symbol and where it stands.
        """
        ids = [self.vocabulary[_START]]
        if not phonemes:
            ids.append(self.vocabulary[_SPACE])
        position = 0
        for symbol in self.split(phonemes):
            known = self.vocabulary.get(symbol)
            if known is None and unknown == "error":
                points = " ".join(f"U+{ord(c):04X}" for c in symbol)
                raise UnknownSymbol(
                    f"phoneme {symbol!r} ({points}) at position {position} of {phonemes!r} is not in the "
                    "vocabulary; drop unknown phonemes, or extend the vocabulary with it"
                )
            if known is not None:
                ids += [known, known] if symbol == _SPACE else [known]
            position += len(symbol)
        ids.append(self.vocabulary[_END])
        return ids

    def extended(self, phonemes: Iterable[str]) -> NaiveTokenizer:
        """This tokenizer with every symbol of these strings that it does not know yet, at new ids."""
        vocabulary = dict(self.vocabulary)
        following = max(vocabulary.values()) + 1
        for symbol in sorted({s for text in phonemes for s in self.split(text)} - vocabulary.keys()):
            vocabulary[symbol] = following
            following += 1
        return NaiveTokenizer(vocabulary)
