"""`vall-e-data`: datasets from recordings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vall-e-data", description="Make and look at datasets.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser(
        "prepare",
        help="turn a folder of audio and transcripts into a dataset",
        description=(
            "Turn a folder of audio (wav, flac, mp3, ogg, opus, m4a, g722) and transcripts (sidecar .txt, "
            "metadata.csv in the LJSpeech form, or `name: text` lists) into data.h5 beside the YAML file. "
            "Run again after an interruption, it goes on where it was."
        ),
    )
    prepare.add_argument("folder", type=Path, help="where the recordings are")
    prepare.add_argument("--yaml", type=Path, required=True, help="the configuration; data.h5 is made beside it")
    prepare.add_argument("--language", default="en", help="of the transcripts (%(default)s)")
    prepare.add_argument("--speaker", help="of all recordings; by default the folder each lies in")
    prepare.add_argument(
        "--validation", type=float, default=0.05, help="share of the texts that is held out (%(default)s)"
    )
    args = parser.parse_args(argv)

    from basecfg import ConfigError

    from vall_e.config import Config
    from vall_e.data.prepare import prepare as run
    from vall_e.data.prepare import report
    from vall_e.data.transcripts import find_recordings
    from vall_e.espeak import EspeakUnavailable

    try:
        cfg = Config.from_yaml(args.yaml)
        found = find_recordings(args.folder, language=args.language, speaker=args.speaker, validation=args.validation)
        report(run(cfg, found.recordings, found.skipped))
    except ConfigError as e:
        print(e, file=sys.stderr)
        return 2
    except (ValueError, FileNotFoundError, EspeakUnavailable) as e:
        print(f"vall-e-data: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
