"""Phonemes to ids by a `tokenizer.json`, as Hugging Face's `tokenizers` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vall_e.tokenizer import Unknown, UnknownSymbol

_START, _END = "<s>", "</s>"


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message says which file, why, and what to do."""


class JsonTokenizer:
    """What a `tokenizer.json` describes.

    Args:
        text: the content of the file.
        source: what messages name.

    Raises:
        TokenizerError: it is none, it lacks `<s>` or `</s>`, or the `tokenizers` package is not installed.
    """

    def __init__(self, text: str, source: str | Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as e:
            raise TokenizerError(
                f"{source}: a tokenizer.json needs the tokenizers package: install vall-e[tokenizers] ({e})"
            ) from e
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as e:  # the package raises nothing more exact
            raise TokenizerError(f"{source}: not a tokenizer.json that the tokenizers package reads: {e}") from e
        self.json: str | None = text
        self._source = source
        self.vocabulary: dict[str, int] = dict(self._tokenizer.get_vocab(with_added_tokens=True))
        missing = [s for s in (_START, _END) if s not in self.vocabulary]
        if missing:
            raise TokenizerError(f"{source}: the vocabulary lacks {' and '.join(missing)}, which begin and end a text")
        model = json.loads(text)["model"]
        names = [model.get("unk_token")]
        if model.get("unk_id") is not None:  # a Unigram model counts it
            names = [model["vocab"][model["unk_id"]][0]]
        self._unknown = self.vocabulary.get(names[0]) if names[0] is not None else None

    @classmethod
    def load(cls, path: Path) -> JsonTokenizer:
        """From a file.

        Raises:
            TokenizerError: it is missing or cannot be used.
        """
        try:
            return cls(path.read_text(encoding="utf-8"), path)
        except FileNotFoundError as e:
            raise TokenizerError(
                f"{path}: no such file; put the tokenizer.json there, or leave tokenizer_path out for the naive one"
            ) from e
        except UnicodeDecodeError as e:
            raise TokenizerError(f"{path}: not a text file: {e}") from e

    def __reduce__(self) -> tuple[type[JsonTokenizer], tuple[str, str]]:
        return JsonTokenizer, (str(self.json), str(self._source))

    def encode(self, phonemes: str, *, unknown: Unknown = "error") -> list[int]:
        """The ids of a string of phonemes, between those of `<s>` and `</s>`.

        Args:
            phonemes: as espeak-ng gives them.
            unknown: `"error"`, `"drop"` to leave unknown symbols out, or `"replace"` for the file's unknown token.

        Raises:
            UnknownSymbol: naming the symbol and where it stands.
        """
        encoding = self._tokenizer.encode(phonemes)
        ids, spans = encoding.ids, encoding.offsets
        if unknown == "error":
            for place, symbol in self._strange(phonemes, ids, spans):
                raise UnknownSymbol(symbol, place, phonemes)
        if unknown == "drop":
            ids = [i for i in ids if i != self._unknown]
        start, end = self.vocabulary[_START], self.vocabulary[_END]
        # Not every file's post-processor adds them.
        return [*([start] if ids[:1] != [start] else []), *ids, *([end] if ids[-1:] != [end] else [])]

    def decode(self, ids: Iterable[int]) -> str:
        """The string of phonemes with these ids; what begins and ends a text is left out."""
        around = (self.vocabulary[_START], self.vocabulary[_END])
        return self._tokenizer.decode([int(i) for i in ids if i not in around], skip_special_tokens=True)

    def _strange(self, phonemes: str, ids: list[int], spans: list[tuple[int, int]]) -> Iterable[tuple[int, str]]:
        """The symbols without an id of their own: where each stands, and it."""
        if self._unknown is not None:
            yield from ((a, phonemes[a:b]) for i, (a, b) in zip(ids, spans, strict=True) if i == self._unknown)
            return
        # A model without an unknown token leaves such a symbol out, and says nothing.
        heard = {place for a, b in spans for place in range(a, b)}
        yield from ((i, c) for i, c in enumerate(phonemes) if i not in heard and not c.isspace())

    def extended(self, phonemes: Iterable[str]) -> JsonTokenizer:
        """This tokenizer: what it knows is fixed, because its file says how symbols are made of characters."""
        return self
