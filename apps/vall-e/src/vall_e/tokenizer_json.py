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
        TokenizerError: it is none, it lacks `<s>`, `</s>` or its unknown token, or the `tokenizers` package is not
            installed.
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
        self._tokenizer.no_truncation()  # for batches of what the file was made for
        self._tokenizer.no_padding()
        self.json: str | None = text
        self._source = source
        self.vocabulary: dict[str, int] = dict(self._tokenizer.get_vocab(with_added_tokens=True))
        missing = [s for s in (_START, _END) if s not in self.vocabulary]
        if missing:
            raise TokenizerError(f"{source}: the vocabulary lacks {' and '.join(missing)}, which begin and end a text")
        model = json.loads(text)["model"]
        name = model.get("unk_token")
        if model.get("unk_id") is not None:  # a Unigram model counts it
            name = model["vocab"][model["unk_id"]][0]
        elif name is not None and name not in model["vocab"]:
            raise TokenizerError(
                f"{source}: its unk_token {name!r} is not in its vocabulary; add it there, or set unk_token to null"
            )
        self._unknown = self.vocabulary[name] if name is not None else None
        self._heard: dict[str, bool] = {}

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
        if self._unknown is None:
            lost = {c for c in phonemes if not (c.isspace() or self._hears(c))}
            for place, character in enumerate(phonemes):
                if character in lost and unknown == "error":
                    raise UnknownSymbol(character, place, phonemes)
            phonemes = "".join(c for c in phonemes if c not in lost)
        encoding = self._tokenizer.encode(phonemes)
        ids = encoding.ids
        if unknown == "error" and self._unknown in ids:
            first, last = encoding.offsets[ids.index(self._unknown)]
            raise UnknownSymbol(phonemes[first:last], first, phonemes)
        if unknown == "drop":
            ids = [i for i in ids if i != self._unknown]
        start, end = self.vocabulary[_START], self.vocabulary[_END]
        # Not every file's post-processor adds them.
        return [*([start] if ids[:1] != [start] else []), *ids, *([end] if ids[-1:] != [end] else [])]

    def decode(self, ids: Iterable[int]) -> str:
        """The string of phonemes with these ids; what begins and ends a text is left out."""
        around = (self.vocabulary[_START], self.vocabulary[_END])
        return self._tokenizer.decode([int(i) for i in ids if i not in around], skip_special_tokens=True)

    def _hears(self, character: str) -> bool:
        """Whether a model without an unknown token has ids for a character, which it else passes over or fails at."""
        if character not in self._heard:
            try:
                ids = self._tokenizer.encode(character, add_special_tokens=False).ids
            except Exception:  # of a Unigram model; the package raises nothing more exact
                ids = []
            self._heard[character] = bool(ids)
        return self._heard[character]

    def extended(self, phonemes: Iterable[str]) -> JsonTokenizer:
        """This tokenizer: what it knows is fixed, because its file says how symbols are made of characters."""
        return self
