"""A text in the pieces that are spoken one at a time."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Split = Literal["sentence", "line", "none"]

# Where a sentence may end: at . ! ? … (and their wide forms), behind which closing marks may stand.
_END = re.compile(r"[.!?…]+[\"')\]»”’]*\s+(?=\S)|[。！？]+[」』”’]*\s*(?=\S)")
_WORD = re.compile(r"[^\s\"'(\[«„“‘]*$")
# Behind these a point ends no sentence ...
_INSIDE = re.compile(r"Mr|Mrs|Ms|Dr|Prof|St|Hr|Fr|Mme|e\.g|i\.e|vs|cf|z\.B|d\.h|u\.a|bzw|ca|vgl|\w")
# ... and behind these none where a number or a small letter follows.
_OPEN = re.compile(
    r"Nos?|Nr|Vol|Fig|Bd|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Okt|Nov|Dec|Dez|etc|usw|approx|dept|Jr|Sr|Inc"
)


def pieces(text: str, split: Split, language: str = "en") -> list[str]:
    """A text's sentences or lines, or the whole of it; empty ones are left out."""
    if split == "none":
        return [text.strip()] if text.strip() else []
    found = []
    for line in text.splitlines():
        ends = [m.end() for m in _END.finditer(line) if _ends(line, m, language)] if split == "sentence" else []
        starts = [0, *ends]
        found += [line[a:b].strip() for a, b in zip(starts, [*ends, len(line)], strict=True)]
    return [piece for piece in found if any(c.isalnum() for c in piece)]


def _ends(line: str, mark: re.Match[str], language: str) -> bool:
    """Whether a sentence ends at a mark: a single point may be that of an abbreviation, an initial or an ordinal."""
    if not re.fullmatch(r"\.\s+", mark[0]):
        return True
    word, following = _WORD.search(line[: mark.start()])[0], line[mark.end()]  # type: ignore[index]
    if language == "de" and re.fullmatch(r"\d\d?", word):
        return False
    if _OPEN.fullmatch(word):
        return not (following.isdigit() or following.islower())
    return word.isdigit() or not _INSIDE.fullmatch(word)


def printable(text: str) -> str:
    """A text with spaces for its control characters, which cut it short where C reads it."""
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
