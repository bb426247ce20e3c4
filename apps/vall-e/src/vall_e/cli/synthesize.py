"""`vall-e`: speaks a text in the voice of a recording."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vall-e",
        description="Speak a text in the voice of a recording, with exported weights alone.",
        epilog='example:\n  vall-e "Good morning." REF.wav --model training/demo/ckpt/ar+nar/fp32.sft',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("text", help="what to say")
    parser.add_argument("reference", type=Path, nargs="?", help="a recording of the voice; none leaves it open")
    parser.add_argument("--model", type=Path, required=True, help="exported weights (fp32.sft)")
    parser.add_argument("--out-path", type=Path, default=Path("out.wav"), help="the WAV to write (%(default)s)")
    parser.add_argument("--language", default="en", help="of the text: en, de, … (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same speech (%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    for name, kind, what in (
        ("temperature", float, "0 takes the most likely codes"),
        ("top-k", int, "draw among the k most likely; 0 for all"),
        ("top-p", float, "draw among the most likely that hold this share; 1 for all"),
        ("min-p", float, "leave out codes less likely than this share of the most likely"),
        ("repetition-penalty", float, "above 1 discourages recent codes"),
        ("cfg-strength", float, "classifier-free guidance; 1 for none"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=f"{what} (default: as the model was evaluated)")
    args = parser.parse_args(argv)

    from vall_e import audio
    from vall_e.espeak import EspeakUnavailable
    from vall_e.synthesis import speak
    from vall_e.weights import load_weights

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "cfg_strength")
    sampling = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    started = time.perf_counter()
    try:
        voice = load_weights(args.model, args.device)
        samples = speak(voice, args.text, args.reference, language=args.language, seed=args.seed, **sampling)
    except (ValueError, EspeakUnavailable) as e:
        print(f"vall-e: {e}", file=sys.stderr)
        return 1
    assert voice.codec is not None
    audio.write_wav(args.out_path, samples, voice.codec.sample_rate)
    seconds = len(samples) / voice.codec.sample_rate
    print(f"{args.out_path}: {seconds:.1f} s of speech in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
