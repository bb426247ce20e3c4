"""`vall-e-data`: datasets made, checked and looked into."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vall_e.config import Config


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("vall-e-data: interrupted; the same command does it again, and what was encoded is kept", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    from basecfg import ConfigError

    from vall_e.config import Config
    from vall_e.espeak import EspeakUnavailable

    try:
        if args.run in (_prepare, _fit) and not args.yaml.exists():
            _write_starter(args.yaml)
        return args.run(Config.from_yaml(args.yaml), args)
    except ConfigError as e:
        print(e, file=sys.stderr)
        return 2
    except (ValueError, OSError, EspeakUnavailable) as e:
        known = isinstance(e, OSError) and e.filename and e.strerror
        print(f"vall-e-data: {f'{e.filename}: {e.strerror}' if known else e}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vall-e-data", description="Make, check and look into datasets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, what: str, more: str = "", *, folder: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=more or f"{what[0].upper()}{what[1:]}.")
        if folder:
            sub.add_argument("folder", type=Path, help="where the recordings are")
            sub.add_argument("--language", default="en", help="of the transcripts (%(default)s)")
            sub.add_argument("--speaker", help="of all recordings; by default the folder each lies in")
            sub.add_argument("--validation", type=_share, default=0.05, help="share of texts held out (%(default)s)")
        sub.add_argument("--yaml", type=Path, required=True, help="the configuration; data.h5 lies beside it")
        sub.set_defaults(run=run)
        return sub

    prepare = command(
        "prepare",
        _prepare,
        "turn a folder of audio and transcripts into a dataset",
        "Turn a folder of audio (wav, flac, mp3, ogg, opus, m4a, g722) and transcripts (sidecar .txt, metadata.csv in "
        "the LJSpeech form, or `name: text` lists) into data.h5 beside the YAML file. Run again after an interruption, "
        "it goes on where it was. Divided over jobs, fit the codec first, then index.",
        folder=True,
    )
    prepare.add_argument("--noise", type=Path, metavar="FOLDER", help="recordings of background noise, for ns, sr, nse")
    prepare.add_argument("--shard", metavar="K/N", help="prepare the k-th of n parts, into a file of its own")
    command("fit", _fit, "fit the codec alone, for jobs that then share it", folder=True)
    command("index", _index, "make one dataset of the files of a divided preparation")
    similar = command("metadata", _metadata, "write metadata/ anew, with the utterances that sound most alike")
    similar.add_argument("--similar", type=_count, default=8, help="of them for each utterance (%(default)s)")
    pack = command("hdf5", _hdf5, "pack a folder of encoded utterances (data/) into data.h5")
    pack.add_argument("--force", action="store_true", help="replace a data.h5 that is there")
    command("validate", _validate, "read every utterance and list those that cannot be used")
    command("list", _list, "the speakers of each split, with utterances and minutes")
    look = command("inspect", _inspect, "what is known of one utterance")
    look.add_argument("key", help="split/group/speaker/id")
    hear = command("sample", _sample, "decode some utterances to WAV files, to listen to")
    hear.add_argument("--count", type=_count, default=8, help="of each split (%(default)s)")
    hear.add_argument("--out", type=Path, default=Path("samples"), help="the folder (%(default)s)")
    return parser


def _count(text: str) -> int:
    """An argument that counts.

    Raises:
        argparse.ArgumentTypeError: it is no whole number of 0 or more.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, found {text!r}")
    return int(text)


def _share(text: str) -> float:
    """An argument from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")


def _write_starter(path: Path) -> None:
    """A configuration to begin with, for someone who has none."""
    from importlib import resources

    path.parent.mkdir(parents=True, exist_ok=True)
    text = resources.files("vall_e").joinpath("recordings.yaml").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    print(f"{path}: written, with sizes that train on a CPU; it is yours to edit")


def _prepare(cfg: Config, args: argparse.Namespace) -> int:
    from vall_e.data.prepare import prepare, report
    from vall_e.data.shards import parse_shard
    from vall_e.data.transcripts import find_noise

    found = _found(args)
    if args.noise is not None:
        found.add(find_noise(args.noise))
    shard = parse_shard(args.shard) if args.shard else None
    result = prepare(cfg, found.recordings, found.skipped, shard=shard)
    report(result)
    if shard is None and not result.counts["validation"]:
        print("no text was held out, and training needs some: give a larger --validation", file=sys.stderr)
    return 0


def _found(args: argparse.Namespace):
    from vall_e.data.transcripts import find_recordings

    return find_recordings(args.folder, language=args.language, speaker=args.speaker, validation=args.validation)


def _fit(cfg: Config, args: argparse.Namespace) -> int:
    from vall_e.data.prepare import fit_codec

    codec = fit_codec(cfg, _found(args).recordings)
    print(f"{cfg.codec_path}: {codec.identity}, {codec.frame_rate:.1f} codes a second")
    return 0


def _index(cfg: Config, args: argparse.Namespace) -> int:
    from vall_e.data.shards import find_shards, write_index

    path = cfg.hdf5_path
    shards = find_shards(path)
    print(f"{path}: {write_index(path, shards)} utterances in {len(shards)} files")
    return 0


def _metadata(cfg: Config, args: argparse.Namespace) -> int:
    import stateio

    from vall_e.data.open import DatasetOf
    from vall_e.data.similar import most_similar
    from vall_e.progress import Bar

    data = DatasetOf(cfg)
    speakers: dict[str, list] = {}
    for entry in [*data.splits["subtrain"], *data.splits["val"]]:
        speakers.setdefault(entry.key.split("/", 1)[1].rpartition("/")[0], []).append(entry)
    for name, entries in Bar(speakers.items(), "metadata", len(speakers)):
        utterances = [data.file.read(e.key) for e in entries]
        near = most_similar([u.codes for u in utterances], data.info.entries if data.info else 1024, args.similar)
        ids = [e.key.rpartition("/")[2] for e in entries]
        rows = {
            i: {
                "text": u.text,
                "phonemes": u.phonemes,
                "language": u.language,
                "duration": u.duration,
                "similar": [ids[j] for j in row],
            }
            for i, u, row in zip(ids, utterances, near, strict=True)
        }
        path = cfg.metadata_dir / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        stateio.json_write(rows, path)
    print(f"{cfg.metadata_dir}: {len(speakers)} speakers")
    return 0


def _hdf5(cfg: Config, args: argparse.Namespace) -> int:
    from vall_e.codecs.load import published
    from vall_e.data.folder import FolderDataset
    from vall_e.data.store import DatasetError, write_dataset
    from vall_e.progress import Bar
    from vall_e.tokenizer import NaiveTokenizer

    info = published(cfg.audio_backend)
    if info is None:
        raise DatasetError(f"audio_backend: data/ holds codes of encodec, vocos or dac; found {cfg.audio_backend}")
    if cfg.hdf5_path.exists() and not args.force:
        raise DatasetError(f"{cfg.hdf5_path} exists; move it away, or have it replaced with --force")
    tokenizer = cfg.chosen_tokenizer() or NaiveTokenizer()
    metadata = cfg.metadata_dir if cfg.dataset.use_metadata else None
    folder = FolderDataset(cfg.data_dir, metadata, info, tokenizer)
    patterns = {"training": cfg.dataset.training, "validation": cfg.dataset.validation, "noise": cfg.dataset.noise}
    keys: dict[str, str] = {}  # group/speaker/id to the split's key
    for split in (s for s in patterns if patterns[s]):
        for entry in folder.entries(split, patterns[split]):
            name = entry.key.partition("/")[2]
            if other := keys.get(name):
                raise DatasetError(
                    f"{folder.path}: {name} matches dataset.{split} {patterns[split]} and dataset."
                    f"{other.partition('/')[0]} too; an utterance belongs to one split, so change the patterns"
                )
            keys[name] = entry.key
    utterances = Bar((folder.read(key) for key in keys.values()), "packing", len(keys))
    count = write_dataset(cfg.hdf5_path, utterances, tokenizer, info)
    print(f"{cfg.hdf5_path}: {count} utterances")
    return 0


def _validate(cfg: Config, args: argparse.Namespace) -> int:
    from vall_e.data.open import DatasetOf

    data = DatasetOf(cfg)
    bad = data.unreadable()
    for key, reason in bad:
        print(f"{key}: {reason}")
    for reason, count in data.left_out.items():
        if count:
            print(f"left out: {count} utterances {reason}")
    print(f"{sum(map(len, [*data.splits.values(), data.noise])) - len(bad)} utterances can be used, {len(bad)} cannot")
    return 1 if bad else 0


def _list(cfg: Config, args: argparse.Namespace) -> int:
    from vall_e.data.open import DatasetOf

    data = DatasetOf(cfg)
    for split, entries in [*data.splits.items(), ("noise", data.noise)]:
        speakers: dict[str, list[float]] = {}
        for e in entries:
            speakers.setdefault(e.speaker, []).append(e.duration)
        for speaker, durations in sorted(speakers.items()):
            print(f"{split:9} {speaker:24} {len(durations):6} utterances {sum(durations) / 60:8.1f} minutes")
    return 0


def _inspect(cfg: Config, args: argparse.Namespace) -> int:
    from vall_e.data.open import DatasetOf

    u = DatasetOf(cfg).file.read(args.key)
    low, high = (u.codes.min(), u.codes.max()) if u.codes.size else ("none", "none")
    print(f"text      {u.text}\nphonemes  {u.phonemes}\nlanguage  {u.language}\nduration  {u.duration:.2f} s")
    print(f"codes     {list(u.codes.shape)}, {low} to {high}\nphone ids {u.phone_ids.tolist()}")
    return 0


def _sample(cfg: Config, args: argparse.Namespace) -> int:
    from vall_e import audio
    from vall_e.data.open import DatasetOf
    from vall_e.data.store import DatasetError

    data = DatasetOf(cfg)
    if data.codec is None:
        raise DatasetError(data.without_codec)
    for split, entries in [*data.splits.items(), ("noise", data.noise)]:
        for e in entries[: args.count]:
            path = args.out / split / f"{e.key.replace('/', '_')}.wav"
            audio.write_wav(path, data.codec.decode(data.file.read(e.key).codes), data.codec.sample_rate)
            print(f"{path}: {data.file.read(e.key).text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
