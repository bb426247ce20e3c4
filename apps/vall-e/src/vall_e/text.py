"""A text in the pieces that are spoken one at a time."""

from __future__ import annotations

import re
from typing import Literal

Split = Literal["sentence", "line", "none"]

# A sentence ends at . ! ? … (and their wide forms), behind which closing marks may stand, not after an abbreviation,
# an initial or a number's point.
_END = re.compile(
    r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bNo)(?<!\bMrs)(?<!\b[A-Z])[.!?…]+[\"')\]»”’]*\s+(?=\S)"
    r"|[。！？]+[」』”’]*\s*(?=\S)"
)


def pieces(text: str, split: Split) -> list[str]:
    """A text's sentences or lines, or the whole of it; empty ones are left out."""
    if split == "none":
        return [text.strip()] if text.strip() else []
    found = []
    for line in text.splitlines():
        ends = [m.end() for m in _END.finditer(line)] if split == "sentence" else []
        starts = [0, *ends]
        found += [line[a:b].strip() for a, b in zip(starts, [*ends, len(line)], strict=True)]
    return [piece for piece in found if any(c.isalnum() for c in piece)]
