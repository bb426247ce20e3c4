"""`vall-e`: speaks a text in the voice of a recording."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vall_e.cli.speaker import load_speaker, speaker_arguments
from vall_e.prompting import SPOKEN

if TYPE_CHECKING:
    import numpy as np

# name, type, what it does: options of the synthesis, as `evaluation.kwargs` has them with underscores.
OPTIONS = (
    ("temperature", float, "0 takes the most likely codes"),
    ("min-temperature", float, "lower bound of a temperature that follows the entropy"),
    ("nar-temperature", float, "of the levels above the first"),
    ("top-k", int, "draw among the k most likely; 0 for all"),
    ("top-p", float, "draw among the most likely that hold this share; 1 for all"),
    ("min-p", float, "leave out codes less likely than this share of the most likely"),
    ("top-n-sigma", float, "leave out codes so many standard deviations below the most likely"),
    ("repetition-penalty", float, "above 1 discourages recent codes"),
    ("length-penalty", float, "above 0 ends earlier"),
    ("dry-multiplier", float, "above 0 discourages going on with a repeat"),
    ("dry-base", float, "how the penalty of a repeat grows with its length"),
    ("dry-allowed-length", int, "repeats of this length are free"),
    ("mirostat-tau", float, "surprise in bits to aim at, instead of truncating"),
    ("mirostat-eta", float, "how fast it is approached"),
    ("beam-width", int, "above 1, search the most likely sequence instead of drawing one"),
    ("cfg-strength", float, "classifier-free guidance; 1 for none"),
    ("cfg-rescale", float, "how far guided logits are scaled back, 0 to 1"),
    ("steps", int, "demasking steps of nar-len"),
)


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    warnings.showwarning = lambda message, *_: print(f"vall-e: {message}", file=sys.stderr)
    from vall_e.codecs.codec import CodecUnavailable
    from vall_e.espeak import EspeakUnavailable

    try:
        return _speak(args)
    except (ValueError, OSError, EspeakUnavailable, CodecUnavailable) as e:
        print(f"vall-e: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vall-e: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vall-e",
        description="Speak a text in the voice of a recording, with exported weights alone.",
        epilog=(
            "examples:\n"
            '  vall-e "Good morning." REF.wav --model training/demo/ckpt/ar+nar/fp32.sft\n'
            "  vall-e --file story.txt REF.wav --model fp32.sft --split line\n"
            '  vall-e "Good morning." REF.wav --model fp32.sft --stream --out-path - | aplay'
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("text", nargs="?", help="what to say")
    parser.add_argument("reference", type=Path, nargs="?", help="a recording of the voice; none leaves it open")
    parser.add_argument("--file", type=Path, help="read the text from a file instead")
    speaker_arguments(parser)
    parser.add_argument(
        "--out-path", type=Path, default=Path("out.wav"), help="the WAV to write; - is stdout (%(default)s)"
    )
    parser.add_argument(
        "--language", default="en", help="of the text, a name that the model knows: en, de, … (%(default)s)"
    )
    parser.add_argument(
        "--task",
        choices=(*SPOKEN, "stt"),
        default="tts",
        metavar="TASK",
        help="what to do, if the model was trained for it (%(default)s): "
        + "; ".join(f"{name}: {what}" for name, what in SPOKEN.items())
        + "; stt: print the phonemes that the recording, the only argument, says",
    )
    parser.add_argument("--mixture", type=Path, help="with --task tse: the recording with several voices")
    parser.add_argument(
        "--edit", type=_stretch, metavar="START:END", help="with --task cse or nse: the seconds that are spoken anew"
    )
    parser.add_argument(
        "--unknown",
        choices=("error", "drop"),
        default="error",
        help="phonemes that the weights do not know (%(default)s)",
    )
    parser.add_argument("--modality", choices=("ar+nar", "nar-len", "delay"), help="(what the model is made for)")
    parser.add_argument(
        "--split", choices=("sentence", "line", "none"), default="sentence", help="spoken at a time (%(default)s)"
    )
    parser.add_argument("--no-rolling", action="store_true", help="do not prompt a sentence with the one before")
    parser.add_argument("--stream", action="store_true", help="write chunks as they are made")
    parser.add_argument("--chunk-seconds", type=float, default=0.5, help="of a chunk (%(default)s)")
    parser.add_argument("--seed", type=_seed, default=0, help="the same seed gives the same speech (%(default)s)")
    sampling = parser.add_argument_group("synthesis", "by default as the model was evaluated")
    for name, kind, what in OPTIONS:
        sampling.add_argument(f"--{name}", type=kind, help=what)
    return parser


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: expected UTF-8 text: {e}") from e


def _seed(text: str) -> int:
    """A number that torch takes as a seed."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2**63 - 1, found {text}")
    return int(text)


def _stretch(text: str) -> tuple[float, float]:
    """Two numbers with a colon between them."""
    start, _, end = text.partition(":")
    try:
        return float(start), float(end)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected START:END in seconds, as 1.2:2.5, found {text!r}") from None


def _speak(args: argparse.Namespace) -> int:
    if (args.file is not None or args.task == "stt") and args.text is not None and args.reference is None:
        args.reference, args.text = Path(args.text), None  # the only positional is the recording
    text = _read(args.file) if args.file is not None else args.text
    if args.task == "stt":
        if args.reference is None:
            raise ValueError("there is no recording to transcribe: give it as the only argument")
        print(load_speaker(args).transcribe(args.reference, args.language))
        return 0
    if text is None:
        raise ValueError("there is no text to speak: give it as the first argument, or --file")
    from vall_e import audio
    from vall_e.synthesis import Request

    started = time.perf_counter()
    speaker = load_speaker(args)
    options = {n.replace("-", "_"): v for n, _, _ in OPTIONS if (v := getattr(args, n.replace("-", "_"))) is not None}
    request = Request(
        text,
        args.reference,
        args.language,
        args.split,
        not args.no_rolling,
        args.modality,
        args.seed,
        options,
        args.task,
        args.mixture,
        args.edit,
        args.unknown,
    )
    rate = speaker.sample_rate
    if args.stream:
        first: list[float] = []

        def chunks() -> Iterator[np.ndarray]:
            for chunk in speaker.stream(request, args.chunk_seconds):
                first.append(time.perf_counter() - started)
                yield chunk

        samples = audio.stream_wav(args.out_path, chunks(), rate)
        took = f"{time.perf_counter() - started:.1f} s, the first chunk after {first[0]:.1f} s"
    else:
        whole = speaker.speak(request)
        samples = len(whole)
        audio.stream_wav(args.out_path, [whole], rate) if str(args.out_path) == "-" else audio.write_wav(
            args.out_path, whole, rate
        )
        took = f"{time.perf_counter() - started:.1f} s"
    print(
        f"{args.out_path}: {samples / rate:.1f} s of speech in {took}",
        file=sys.stderr if str(args.out_path) == "-" else sys.stdout,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
