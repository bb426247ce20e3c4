"""Phonemes to ids; the naive way, one id a character with stress and length marks attached to the one before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Literal, Protocol

_ATTACHED = "\u02c8\u02cc\u02d0"  # primary stress, secondary stress, length
_START, _END, _SPACE = "<s>", "</s>", " "


Unknown = Literal["error", "drop", "replace"]
"""What becomes of a symbol that a vocabulary does not hold; `replace` is by its unknown token, where it has one."""


class UnknownSymbol(ValueError):
    """A phoneme that the vocabulary does not hold; the message gives it and its position."""

    def __init__(self, symbol: str, position: int, phonemes: str) -> None:
        points = " ".join(f"U+{ord(c):04X}" for c in symbol)
        super().__init__(
            f"phoneme {symbol!r} ({points}) at position {position} of {phonemes!r} is not in the vocabulary, which has "
            "those of the languages that it was made for: use weights trained on this language, another text, or leave "
            "such phonemes out (`--unknown drop`)"
        )


class Tokenizer(Protocol):
    """A `NaiveTokenizer` or a `JsonTokenizer`.

    Attributes:
        vocabulary: symbol to id.
        json: the file that it was made of, for one that a vocabulary alone does not make.
    """

    vocabulary: dict[str, int]
    json: str | None

    def encode(self, phonemes: str, *, unknown: Unknown = "error") -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def extended(self, phonemes: Iterable[str]) -> Tokenizer: ...


def conflict(one: Tokenizer, other: Tokenizer) -> str | None:
    """Why ids of one are not ids of the other; None where they are, as far as both know a symbol."""
    if (one.json is None) != (other.json is None):
        return f"one is {'naive' if one.json is None else 'a tokenizer.json'}, the other is not"
    for symbol, number in one.vocabulary.items():
        if other.vocabulary.get(symbol, number) != number:
            return f"the id of {symbol!r} is {number} in one and {other.vocabulary[symbol]} in the other"
    return None


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

    json = None

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

    def encode(self, phonemes: str, *, unknown: Unknown = "error") -> list[int]:
        """The ids of a string of phonemes, between those of `<s>` and `</s>`.

        Args:
            phonemes: as espeak-ng gives them.
            unknown: `"error"`; any other leaves out symbols that the vocabulary does not hold.

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
                raise UnknownSymbol(symbol, position, phonemes)
            if known is not None:
                ids += [known, known] if symbol == _SPACE else [known]
            position += len(symbol)
        ids.append(self.vocabulary[_END])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The string of phonemes with these ids; what begins and ends a text is left out."""
        symbols = {number: symbol for symbol, number in self.vocabulary.items() if symbol not in (_START, _END)}
        phonemes = "".join(symbols.get(int(i), "") for i in ids)
        return phonemes.replace(2 * _SPACE, _SPACE)

    def extended(self, phonemes: Iterable[str]) -> NaiveTokenizer:
        """This tokenizer with every symbol of these strings that it does not know yet, at new ids."""
        vocabulary = dict(self.vocabulary)
        following = max(vocabulary.values()) + 1
        for symbol in sorted({s for text in phonemes for s in self.split(text)} - vocabulary.keys()):
            vocabulary[symbol] = following
            following += 1
        return NaiveTokenizer(vocabulary)
