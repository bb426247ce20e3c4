"""Which weights speak: the arguments that `vall-e` and `vall-e-webui` have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vall_e.synthesis import Speaker
    from vall_e.tokenizer import Tokenizer


def speaker_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="exported weights (fp32.sft), or a checkpoint folder")
    parser.add_argument("--yaml", type=Path, help="a run's configuration: speak with the weights it exported")
    parser.add_argument("--codec-path", type=Path, help="weights of encodec, vocos or dac, when the model needs them")
    parser.add_argument("--lora", type=Path, help="an adapter for the weights")
    parser.add_argument("--lora-strength", type=float, default=1.0, help="of the adapter (%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(float32, or as --yaml says)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the steps of level 0: up to twice as fast, and worth the time it takes for long texts or many",
    )


def load_speaker(args: argparse.Namespace) -> Speaker:
    """The speaker that the arguments name.

    Raises:
        ValueError: neither or both of `--model` and `--yaml`, or weights that cannot be used.
        OSError: they cannot be read.
    """
    if (args.model is None) == (args.yaml is None):
        raise ValueError("give the weights with --model, or a run's configuration with --yaml")

    from vall_e.synthesis import Speaker
    from vall_e.weights import load_weights

    model, dtype, tokenizer = (args.model, "float32", None) if args.model is not None else _weights_of(args.yaml)
    voice = load_weights(
        model,
        args.device,
        dtype=args.dtype or dtype,
        lora=args.lora,
        lora_strength=args.lora_strength,
        tokenizer=tokenizer,
    )
    if args.compile:
        voice.model.compile_steps()
    return Speaker(voice, args.codec_path)


def _weights_of(yaml: Path) -> tuple[Path, str, Tokenizer | None]:
    """The weights that a run exported, the dtype to speak with, and the tokenizer, where the configuration has one."""
    from vall_e.config import Config

    cfg = Config.from_yaml(yaml)
    weights = cfg.ckpt_dir / cfg.model.name / f"{cfg.weights_name}.{cfg.weights_format}"
    return weights, cfg.inference.weight_dtype, cfg.chosen_tokenizer()
