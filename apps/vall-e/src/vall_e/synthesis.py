"""Speech from text: phonemes, a prompt from a recording, codes, samples."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from vall_e import audio, espeak
from vall_e.model.sequence import Sample
from vall_e.weights import Voice, WeightsError

_LIMIT = 2.0
"""Times the usual length of as many phonemes, after which a sentence that does not end is cut."""


def speak(
    voice: Voice,
    text: str,
    reference: Path | None,
    *,
    language: str = "en",
    seed: int = 0,
    **sampling: Any,
) -> np.ndarray:
    """Speak a text in the voice of a recording.

    Args:
        voice: loaded weights.
        text: a sentence.
        reference: a recording to sound like; its first seconds are taken, as many as the model was trained with.
        language: of the text.
        seed: the same one gives the same speech.
        sampling: options of `generate`; by default those that the weights were evaluated with.

    Returns:
        Samples [T] at the codec's rate.

    Raises:
        WeightsError: the weights hold no codec.
        AudioError, ValueError: the reference or the text cannot be used.
    """
    if voice.codec is None:
        raise WeightsError("these weights hold no codec, so their codes cannot be turned into speech")
    phonemes = espeak.phonemize(text, language)
    if not phonemes:
        raise ValueError(f"there is nothing to say in {text!r}")
    ids = np.array(voice.tokenizer.encode(phonemes))
    prompt = None
    if reference is not None:
        samples = audio.read_audio(reference, voice.codec.sample_rate)
        length = round(voice.settings.get("prompt_seconds", 3.0) * voice.codec.frame_rate)
        prompt = voice.codec.encode(_without_silence(samples))[:length]
    usual = len(ids) * voice.settings.get("frames_per_phone", voice.codec.frame_rate / 12)
    limit = math.ceil(_LIMIT * usual) + 8
    options = {**voice.settings.get("sampling", {}), **sampling}
    (codes,) = voice.model.generate(
        [Sample(ids, prompt, None, language)], "ar+nar", max_frames=limit, seed=seed, **options
    )
    if len(codes) >= limit:
        warnings.warn(
            f"the sentence did not end by itself and was cut at {limit / voice.codec.frame_rate:.1f} s; "
            "try another seed or a lower temperature",
            stacklevel=2,
        )
    if not len(codes):
        raise ValueError("the model spoke nothing; try another seed or a longer text")
    return voice.codec.decode(codes)


def _without_silence(samples: np.ndarray) -> np.ndarray:
    """Samples from where they first reach a twentieth of their peak: a prompt of silence tells no voice."""
    loud = np.abs(samples) > np.abs(samples).max() / 20
    return samples[int(loud.argmax()) :]
