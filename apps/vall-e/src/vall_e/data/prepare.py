"""From recordings to a dataset: fit the codec, phonemise, encode, write `data.h5` and `metadata/`.

What is encoded is kept under `.cache/` in pieces, so an interrupted preparation goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import stateio

from vall_e import audio, espeak
from vall_e.codecs import melvq
from vall_e.codecs.codec import Codec, CodecUnavailable
from vall_e.codecs.load import load_codec
from vall_e.codecs.melvq import MelVQ
from vall_e.config import Config
from vall_e.data.recording import Recording
from vall_e.data.shards import shard_of, shard_path
from vall_e.data.store import CodecInfo, DatasetError, Utterance, write_dataset
from vall_e.progress import Bar
from vall_e.tokenizer import NaiveTokenizer, UnknownSymbol

_PIECE = 64
"""Recordings encoded between two writes to the cache."""

_SILENCE = 1e-3
"""The amplitude below which nothing is heard."""


@dataclass
class Prepared:
    """What `prepare` did.

    Attributes:
        path: the dataset.
        counts: utterances of each split.
        seconds: of audio in each split.
        skipped: (file, reason) for each recording left out.
        new_symbols: phonemes that the vocabulary was extended with.
        codec: what the codes mean.
    """

    path: Path
    codec: CodecInfo
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    new_symbols: list[str] = field(default_factory=list)


def prepare(
    cfg: Config,
    recordings: Sequence[Recording],
    skipped: Sequence[tuple[Path, str]] = (),
    *,
    shard: tuple[int, int] | None = None,
) -> Prepared:
    """Make the dataset that `cfg` trains on.

    Args:
        cfg: names the files, the codec's sizes and the durations kept.
        recordings: what to encode; of those of background noise nothing is phonemised.
        skipped: what was left out before, to be listed with the rest.
        shard: (k, n): encode the k-th of n parts, into a file of its own, with the codec that there is.

    Raises:
        DatasetError: nothing can be used; the first reasons are named.
        UnknownVoice: a language cannot be phonemised.
    """
    for language in sorted({r.language for r in recordings if r.phonemes is None and r.split != "noise"}):
        espeak.check_language(language)
    if not any(r.split == "training" for r in recordings):
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in list(skipped)[:5])
        raise DatasetError(f"{cfg.rel_path}: no recording to train on{reasons or ': the folder is empty'}")
    if shard is not None and cfg.audio_backend == "melvq" and not cfg.codec_path.is_file():
        raise DatasetError(
            f"{cfg.codec_path}: the jobs of a divided preparation share one codec; fit it first, once, with "
            f"`vall-e-data fit FOLDER --yaml {cfg.yaml_path}`"
        )
    codec = fit_codec(cfg, recordings)
    path = cfg.hdf5_path
    if shard is not None:
        path, recordings = shard_path(path, *shard), shard_of(recordings, *shard)
    info = CodecInfo(codec.name, codec.identity, codec.levels, codec.entries, codec.frame_rate)
    result = Prepared(path, info, skipped=list(skipped))
    heard: list[tuple[Recording, dict]] = []
    for recording, outcome in _encoded(cfg, recordings, codec):
        if isinstance(outcome, str):
            result.skipped.append((recording.audio, outcome))
        else:
            heard.append((recording, outcome))
    heard = _plausible(heard, result.skipped)
    known = cfg.chosen_tokenizer() or NaiveTokenizer()
    tokenizer = known.extended(o["phonemes"] for _, o in heard)
    result.new_symbols = sorted(tokenizer.vocabulary.keys() - known.vocabulary.keys())
    encoded: list[tuple[Recording, dict]] = []
    for recording, outcome in heard:
        try:
            encoded.append((recording, {**outcome, "ids": np.array(tokenizer.encode(outcome["phonemes"]))}))
        except UnknownSymbol as e:  # of a tokenizer that cannot be extended
            result.skipped.append((recording.audio, str(e)))
    for split in ("training", "validation", "noise"):
        durations = [o["duration"] for r, o in encoded if r.split == split]
        if split == "noise" and not durations:
            continue
        result.counts[split], result.seconds[split] = len(durations), sum(durations)
    if not result.counts["training"] and shard is None:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in result.skipped[:5])
        raise DatasetError(f"{cfg.rel_path}: every training recording was left out:{reasons}")
    utterances = (
        Utterance(
            key=r.key,
            codes=o["codes"],
            phone_ids=o["ids"],
            text=r.text,
            phonemes=o["phonemes"],
            language=r.language,
            duration=o["duration"],
        )
        for r, o in encoded
    )
    write_dataset(path, Bar(utterances, "writing", len(encoded)), tokenizer, info)
    _write_metadata(cfg, encoded, merge=shard is not None)
    return result


def fit_codec(cfg: Config, recordings: Sequence[Recording]) -> Codec:
    """The codec of this dataset: a published one, the one beside it, or a new one fitted on the training split.

    Raises:
        DatasetError: it cannot be had.
    """
    if cfg.audio_backend != "melvq":
        try:
            return load_codec(cfg, cfg.audio_backend)
        except CodecUnavailable as e:
            raise DatasetError(str(e)) from e
    if cfg.codec_path.is_file():
        return _fitted_before(cfg)
    training = [r for r in recordings if r.split == "training"]
    random.Random(0).shuffle(training)
    heard: list[np.ndarray] = []
    seconds = 0.0
    with Bar(None, "reading audio", round(cfg.codec.minutes * 60), unit="s") as bar:
        for samples in _read_ahead(training, MelVQ.sample_rate):
            if isinstance(samples, str):
                continue
            heard.append(samples)
            seconds += len(samples) / MelVQ.sample_rate
            bar.to(min(round(seconds), bar.total))
            if seconds > cfg.codec.minutes * 60:
                break
    with Bar(None, "fitting codec", cfg.codec.levels, unit="level") as bar:
        try:
            codec = melvq.fit(
                heard,
                levels=cfg.codec.levels,
                entries=cfg.codec.entries,
                stack=cfg.codec.stack,
                iterations=cfg.codec.iterations,
                progress=lambda done, _: bar.to(done),
            )
        except (ValueError, RuntimeError) as e:
            raise DatasetError(f"the codec cannot be fitted on {seconds:.0f} s of audio: {e}") from e
    codec.save(cfg.codec_path)
    return codec


def _fitted_before(cfg: Config) -> MelVQ:
    codec = MelVQ.load(cfg.codec_path)
    sizes = [(name, getattr(codec, name), getattr(cfg.codec, name)) for name in ("levels", "entries", "stack")]
    if changed := [f"codec.{name} {found}, not {asked}" for name, found, asked in sizes if found != asked]:
        raise DatasetError(
            f"{cfg.codec_path} was fitted with {'; '.join(changed)}: restore the setting, or delete the file to fit "
            "another one, whose codes weights trained so far do not know"
        )
    return codec


def _plausible(heard: list[tuple[Recording, dict]], skipped: list[tuple[Path, str]]) -> list[tuple[Recording, dict]]:
    """Without the recordings that cannot be of their texts: far shorter or longer than speech of so many phonemes."""
    phones = [max(1, sum(c.isalpha() for c in o["phonemes"])) for _, o in heard]
    rates = [o["duration"] / n for (r, o), n in zip(heard, phones, strict=True) if r.split != "noise"]
    usual = float(np.clip(np.median(rates), 0.04, 0.15)) if rates else 0.0  # seconds a phoneme
    kept = []
    for (recording, outcome), n in zip(heard, phones, strict=True):
        # Generous: the fastest speakers take half the usual time, and words alone stand in a second of silence.
        shortest, longest = 0.4 * usual * n, 5 * usual * n + 2
        if recording.split == "noise" or shortest <= outcome["duration"] <= longest:
            kept.append((recording, outcome))
        else:
            skipped.append(
                (
                    recording.audio,
                    f"lasts {outcome['duration']:.2f} s, which is not the text: {n} phonemes take {shortest:.1f} to "
                    f"{longest:.1f} s",
                )
            )
    return kept


def _encoded(cfg: Config, recordings: Sequence[Recording], codec: Codec) -> Iterator[tuple[Recording, dict | str]]:
    """Each recording with its codes, phonemes and duration, or with the reason why it is left out."""
    cache = cfg.cache_dir / "prepare" / codec.identity
    cache.mkdir(parents=True, exist_ok=True)
    pieces = [recordings[i : i + _PIECE] for i in range(0, len(recordings), _PIECE)]
    with Bar(None, "encoding", len(recordings)) as bar:
        done = 0
        for piece in pieces:
            path = cache / f"{_fingerprint(cfg, piece)}.sft"
            outcomes = _cached(path)
            if outcomes is None:
                outcomes = [
                    _encode(cfg, r, s, codec) for r, s in zip(piece, _read_ahead(piece, codec.sample_rate), strict=True)
                ]
                stateio.save({"outcomes": outcomes}, path)
            yield from zip(piece, outcomes, strict=True)
            done += len(piece)
            bar.to(done)


def _cached(path: Path) -> list[dict | str] | None:
    """The outcomes of a piece encoded before; None when there are none, or a damaged file has to be remade."""
    if not path.is_file():
        return None
    try:
        return stateio.load(path)["outcomes"]
    except stateio.StateFileError:
        path.unlink()
        return None


def _fingerprint(cfg: Config, piece: Sequence[Recording]) -> str:
    """Changes with anything that the outcomes of a piece depend on."""
    digest = hashlib.sha256(repr(cfg.dataset.duration_range).encode())
    for r in piece:
        status = r.audio.stat() if r.audio.is_file() else None
        stamp = (status.st_size, status.st_mtime_ns) if status else None
        digest.update(repr((r, stamp)).encode())
    return digest.hexdigest()[:24]


def _encode(cfg: Config, recording: Recording, samples: np.ndarray | str, codec: Codec) -> dict | str:
    if isinstance(samples, str):
        return samples
    duration = len(samples) / codec.sample_rate
    shortest, longest = cfg.dataset.duration_range
    if recording.split == "noise":
        longest = float("inf")
    if not shortest <= duration <= longest:
        return f"lasts {duration:.2f} s, outside dataset.duration_range {shortest} to {longest} s"
    if np.abs(samples).max() < _SILENCE:
        return "silent: never louder than 60 dB below full scale"
    if recording.split == "noise":
        return {"codes": codec.encode(samples).astype(np.int16), "phonemes": "", "duration": duration}
    try:
        phonemes = recording.phonemes or espeak.phonemize(recording.text, recording.language)
    except ValueError as e:
        return str(e)
    if not phonemes:
        return f"espeak-ng finds nothing to say in {recording.text!r}"
    return {"codes": codec.encode(samples).astype(np.int16), "phonemes": phonemes, "duration": duration}


def _read_ahead(recordings: Sequence[Recording], sample_rate: int) -> Iterator[np.ndarray | str]:
    """The samples of each recording, or why it cannot be read; a few are decoded ahead on other threads."""
    threads = os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = []
        for recording in recordings:
            waiting.append(pool.submit(_read, recording.audio, sample_rate))
            if len(waiting) > 4 * threads:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(path: Path, sample_rate: int) -> np.ndarray | str:
    try:
        return audio.read_audio(path, sample_rate)
    except audio.AudioError as e:
        return str(e).removeprefix(f"{path}: ")


def _write_metadata(cfg: Config, encoded: Sequence[tuple[Recording, dict]], *, merge: bool) -> None:
    """`metadata/{group}/{speaker}.json`: what is known of each utterance, without its codes.

    With `merge`, other jobs have written, or will write, more of the same speakers.
    """
    speakers: dict[tuple[str, str], dict] = {}
    for r, o in encoded:
        if r.split == "noise":
            continue
        speakers.setdefault((r.group, r.speaker), {})[r.id] = {
            "text": r.text,
            "phonemes": o["phonemes"],
            "language": r.language,
            "duration": o["duration"],
        }
    for (group, speaker), utterances in speakers.items():
        path = cfg.metadata_dir / group / f"{speaker}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        known = dict(stateio.json_read(path, default={})) if merge else {}
        stateio.json_write(known | utterances, path)


def report(result: Prepared, say: Callable[[str], None] = print) -> None:
    """Say what a dataset holds, and every file that was left out."""
    for split, count in result.counts.items():
        say(f"{split}: {count} utterances, {result.seconds[split] / 60:.1f} minutes")
    if result.new_symbols:
        say(f"vocabulary extended with {len(result.new_symbols)} phonemes: {' '.join(result.new_symbols)}")
    if result.skipped:
        say(f"left out: {len(result.skipped)} files")
        for path, reason in result.skipped:
            say(f"  {path}: {reason}")
    say(f"dataset: {result.path}")
