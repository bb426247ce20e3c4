"""What stands before the response when a task speaks: the same forms as training has (`vall_e.data.tasks`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SPOKEN = {
    "tts": "speak the text in the voice of the recording",
    "tts-c": "go on from the recording; the text begins with what it says",
    "ns": "say the recording again without its noise; the text is what it says",
    "sr": "leave only the noise of the recording; the text is what it says",
    "tse": "take the voice of the recording out of --mixture; the text is what it says there",
    "cse": "say the recording again, with --edit START:END spoken anew; the text is all of it",
    "nse": "the same, with the noise of the recording going on behind it",
}
"""The tasks that speak, each with what it does with text and recording."""


def prompt_of(
    task: str, heard: np.ndarray | None, voice: np.ndarray | None = None, edit: tuple[int, int] | None = None
) -> np.ndarray | list[np.ndarray | str] | None:
    """The prompt of a task.

    Args:
        task: a name in `SPOKEN`.
        heard: codes [T, Q] of the recording that the task works on; for `tts` the voice, for `tse` the mixture.
        voice: codes [T, Q] of the speaker that `tse` takes out.
        edit: the frames of `heard` that `cse` and `nse` speak anew: from, and up to without.

    Raises:
        ValueError: the recording, the voice or the edit is missing, or lies outside.
    """
    if task == "tts":
        return heard
    if heard is None:
        raise ValueError(f"task {task} works on a recording, and none was given")
    if task == "tse":
        if voice is None:
            raise ValueError("task tse needs a recording of the voice beside the mixture")
        return [voice, task, heard]
    if task in ("cse", "nse"):
        if edit is None:
            raise ValueError(f"task {task} needs the stretch that is spoken anew (--edit START:END, in seconds)")
        start, end = edit
        if not 0 <= start < end <= len(heard):
            raise ValueError(
                f"the stretch that is spoken anew lies outside the recording: frames {start} to {end} of {len(heard)}"
            )
        return [heard[:start], "soe", heard[start:end], "eoe", heard[end:]]
    return [task, heard]
