"""What preparation starts from: a recording, what is said in it, and by whom."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recording:
    """One utterance before it is encoded.

    Attributes:
        id: unique within its speaker.
        group, speaker: where it stands in the dataset: `/{split}/{group}/{speaker}/{id}`.
        audio: the file.
        text: what is said; nothing in noise.
        language: a key of `espeak.VOICE_OF_LANGUAGE`.
        split: `training`, `validation` or `noise`.
        phonemes: IPA, or None to let espeak-ng make them.
    """

    id: str
    group: str
    speaker: str
    audio: Path
    text: str
    language: str = "en"
    split: str = "training"
    phonemes: str | None = None

    @property
    def key(self) -> str:
        return f"{self.split}/{self.group}/{self.speaker}/{self.id}"


def held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the validation split: by its hash, so that equal texts always go together."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    fraction = int.from_bytes(hashlib.sha256(folded.encode()).digest()[:8], "big") / 2**64
    return fraction < share
