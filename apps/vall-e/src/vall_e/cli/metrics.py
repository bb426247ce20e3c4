"""`vall-e-metrics`: scores of synthesised speech."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vall-e-metrics",
        description=(
            "Score speech: every NAME.out.wav below a folder against NAME.target.wav (mel-STFT, STOI after alignment), "
            "NAME.prompt.wav (similarity of the voices) and NAME.txt (word, character and phoneme errors of what a "
            "transcriber hears). `vall-e-train` leaves such files in logs/."
        ),
        epilog="example:\n  vall-e-metrics training/demo/logs --transcriber my_whisper:transcribe --out scores.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where the files are")
    parser.add_argument("--transcriber", help="module:function, from the path of a WAV to its text")
    parser.add_argument("--embedder", help="module:function, from the path of a WAV to a speaker embedding")
    parser.add_argument("--language", default="en", help="of the texts (%(default)s)")
    parser.add_argument("--out", type=Path, help="write all scores to a JSON file")
    args = parser.parse_args(argv)
    try:
        return _score(args)
    except (ValueError, OSError) as e:
        print(f"vall-e-metrics: {e}", file=sys.stderr)
        return 1


def _score(args: argparse.Namespace) -> int:
    import stateio

    from vall_e.progress import Bar
    from vall_e.scoring import load_function, mean_of, score

    files = sorted(args.folder.rglob("*.out.wav"))
    if not files:
        raise ValueError(f"{args.folder}: no *.out.wav below this folder")
    transcriber = _checked(args.transcriber, load_function(args.transcriber), str) if args.transcriber else None
    embedder = _checked(args.embedder, load_function(args.embedder)) if args.embedder else None
    scores = []
    for out in Bar(files, "scoring", len(files)):
        stem = out.name.removesuffix(".out.wav")
        beside = {name: out.with_name(f"{stem}.{name}.wav") for name in ("target", "prompt")}
        text = out.with_name(f"{stem}.txt")
        scores.append(
            score(
                out,
                target=beside["target"] if beside["target"].is_file() else None,
                prompt=beside["prompt"] if beside["prompt"].is_file() else None,
                text=text.read_text(encoding="utf-8").strip() if text.is_file() else None,
                language=args.language,
                transcriber=transcriber,
                embedder=embedder,
            )
        )
    for name, value in mean_of(scores).items():
        print(f"{name:12} {value:.3f}")
    print(f"{len(scores)} files")
    if args.out is not None:
        held = {"mean": mean_of(scores), "files": [asdict(s) for s in scores]}
        stateio.json_write(held, args.out, pretty=True)
    return 0


def _checked(name: str, function: Callable[[Path], Any], kind: type = object) -> Callable[[Path], Any]:
    """A function of the user's, whose errors say that it is theirs."""

    def call(path: Path) -> Any:
        try:
            found = function(path)
        except Exception as e:
            raise ValueError(f"{name}: failed on {path}: {type(e).__name__}: {e}") from e
        if found is None or not isinstance(found, kind):
            expected = "a text" if kind is str else "an embedding"
            raise ValueError(f"{name}: expected {expected} of {path}, found {found!r}")
        return found

    return call


if __name__ == "__main__":
    sys.exit(main())
