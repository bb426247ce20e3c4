"""`metadata/{group}/{speaker}.json`: what is known of each utterance without its codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stateio

from vall_e.data.index import Sources
from vall_e.data.store import DatasetError


def known_of(folder: Path | None, group: str, speaker: str, sources: Sources) -> dict[str, dict[str, Any]]:
    """Id to text, phonemes, language, duration and similar utterances; empty where nothing is known.

    Raises:
        DatasetError: the file is damaged.
    """
    if folder is None:
        return {}
    path = sources.add(folder / group / f"{speaker}.json")
    if not path.is_file():
        return {}
    try:
        return dict(stateio.json_read(path))
    except ValueError as e:
        raise DatasetError(f"{path}: not readable as metadata: {e}; make it anew with `vall-e-data metadata`") from e
