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
        print(f"vall-e-data: {e}", file=sys.stderr)
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
            sub.add_argument("--validation", type=float, default=0.05, help="share of texts held out (%(default)s)")
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
    prepare.add_argument("--shard", metavar="K/N", help="prepare the k-th of n parts, into a file of its own")
    command("fit", _fit, "fit the codec alone, for jobs that then share it", folder=True)
    command("index", _index, "make one dataset of the files of a divided preparation")
    similar = command("metadata", _metadata, "write metadata/ anew, with the utterances that sound most alike")
    similar.add_argument("--similar", type=int, default=8, help="of them for each utterance (%(default)s)")
    command("hdf5", _hdf5, "pack a folder of encoded utterances (data/) into data.h5")
    command("validate", _validate, "read every utterance and list those that cannot be used")
    command("list", _list, "the speakers of each split, with utterances and minutes")
    look = command("inspect", _inspect, "what is known of one utterance")
    look.add_argument("key", help="split/group/speaker/id")
    hear = command("sample", _sample, "decode some utterances to WAV files, to listen to")
    hear.add_argument("--count", type=int, default=8, help="of each split (%(default)s)")
    hear.add_argument("--out", type=Path, default=Path("samples"), help="the folder (%(default)s)")
    return parser


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

    found = _found(args)
    shard = parse_shard(args.shard) if args.shard else None
    report(prepare(cfg, found.recordings, found.skipped, shard=shard))
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
    from vall_e.data.shards import write_index

    path = cfg.hdf5_path
    shards = sorted(path.parent.glob(f"{path.stem}.*-of-*{path.suffix}"))
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
    tokenizer = cfg.chosen_tokenizer() or NaiveTokenizer()
    metadata = cfg.metadata_dir if cfg.dataset.use_metadata else None
    folder = FolderDataset(cfg.data_dir, metadata, info.frame_rate, tokenizer)
    entries = folder.entries("training", cfg.dataset.training) + folder.entries("validation", cfg.dataset.validation)
    utterances = Bar((folder.read(e.key) for e in entries), "packing", len(entries))
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
    print(f"{sum(map(len, data.splits.values())) - len(bad)} utterances can be used, {len(bad)} cannot")
    return 1 if bad else 0


def _list(cfg: Config, args: argparse.Namespace) -> int:
    from vall_e.data.open import DatasetOf

    for split, entries in DatasetOf(cfg).splits.items():
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
    for split, entries in data.splits.items():
        for e in entries[: args.count]:
            path = args.out / split / f"{e.key.replace('/', '_')}.wav"
            audio.write_wav(path, data.codec.decode(data.file.read(e.key).codes), data.codec.sample_rate)
            print(f"{path}: {data.file.read(e.key).text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
