"""Audio files in and out: PyAV reads and resamples; WAV is written here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".g722")
"""The audio files that preparation looks for (FFmpeg reads more)."""


class AudioError(ValueError):
    """A file that holds no readable audio; the message names it."""


def read_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Read any audio file as mono float32 samples [T] in -1 to 1, resampled to `sample_rate` (Hz).

    Raises:
        AudioError: the file is missing, empty, truncated before any sample, or not audio.
    """
    import av

    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such audio file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    try:
        with av.open(str(path), mode="r") as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: holds no audio stream")
            samples = _resampled(container.decode(audio=0), sample_rate)
    except av.FFmpegError as e:
        raise AudioError(f"{path}: not readable as audio: {e.strerror or e}") from e
    if samples.size == 0:
        raise AudioError(f"{path}: holds an audio stream of zero length")
    return samples


def resample(samples: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample mono samples [T], int16 or float32, to float32 [T * target_rate / source_rate] in -1 to 1."""
    import av
    import numpy as np

    if samples.dtype == np.int16 and source_rate == target_rate:
        return samples.astype(np.float32) / 32768
    layout = "s16" if samples.dtype == np.int16 else "flt"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format=layout, layout="mono")
    frame.sample_rate = source_rate
    return _resampled([frame], target_rate)


def _resampled(frames, sample_rate: int) -> np.ndarray:
    import av
    import numpy as np

    resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
    parts = [out.to_ndarray()[0] for frame in frames for out in resampler.resample(frame)]
    if not parts:
        return np.zeros(0, np.float32)
    parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
    return np.concatenate(parts)


def write_wav(path: str | Path, samples: np.ndarray, sample_rate: int) -> None:
    """Write mono float samples [T] in -1 to 1 (clipped) as a 16-bit WAV; the name appears when it is complete.

    A link is followed, and a device or a named pipe is written to as it is.
    """
    path = Path(path)
    data = to_int16(samples).tobytes()
    whole = _header(len(data), sample_rate) + data
    if path.exists() and not path.is_file():
        with path.open("wb") as f:
            f.write(whole)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(whole)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def stream_wav(path: str | Path, chunks: Iterable[np.ndarray], sample_rate: int) -> int:
    """Write chunks of mono float samples [t] as they come, into a 16-bit WAV or (`-`) to stdout.

    The header of a stream gives the largest length; a file's is put right at the end, also when the chunks end in
    an error.

    Returns:
        The number of samples.
    """
    import sys

    if str(path) == "-":
        return _stream(sys.stdout.buffer, chunks, sample_rate)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        return _stream(out, chunks, sample_rate)


def _stream(out: BinaryIO, chunks: Iterable[np.ndarray], sample_rate: int) -> int:
    start = out.tell() if out.seekable() else None
    total = 0
    out.write(_header(0x7FFFF000, sample_rate))
    try:
        for chunk in chunks:
            out.write(to_int16(chunk).tobytes())
            out.flush()
            total += len(chunk)
    finally:
        if start is not None:
            out.seek(start)
            out.write(_header(2 * total, sample_rate))
            out.seek(0, os.SEEK_END)
    return total


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Float samples in -1 to 1 (clipped) as the little-endian numbers of a WAV."""
    import numpy as np

    return (np.clip(samples, -1, 1) * 32767).astype("<i2")


def _header(size: int, sample_rate: int) -> bytes:
    """The header of a WAV file with so many bytes of mono 16-bit samples."""
    import struct

    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", size + 36, b"WAVE") + form + struct.pack("<4sI", b"data", size)
