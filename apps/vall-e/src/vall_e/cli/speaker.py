"""Which weights speak: the arguments that `vall-e` and `vall-e-webui` have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vall_e.synthesis import Speaker

PUBLISHED = ("encodec", "vocos", "dac")


def speaker_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="exported weights (fp32.sft), or a checkpoint folder")
    parser.add_argument("--yaml", type=Path, help="a run's configuration: speak with the weights it exported")
    parser.add_argument(
        "--codec", choices=PUBLISHED, help="that the codes belong to, for weights that name none (as --yaml says)"
    )
    parser.add_argument("--codec-path", type=Path, help="weights of encodec, vocos or dac, when the model needs them")
    parser.add_argument("--lora", type=Path, help="an adapter for the weights")
    parser.add_argument("--lora-strength", type=float, default=1.0, help="of the adapter (%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(float32, or as --yaml says)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the steps of level 0, for processes that speak for minutes: it takes half a minute, and gains "
        "half as much again with a small model on a CPU, nothing with a large one",
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

    given = {} if args.yaml is None else _configured(args.yaml)
    voice = load_weights(
        args.model or given["model"],
        args.device,
        dtype=args.dtype or given.get("dtype", "float32"),
        lora=args.lora or given.get("lora"),
        lora_strength=args.lora_strength,
        tokenizer=given.get("tokenizer"),
    )
    if args.compile:
        voice.model.compile_steps()
    return Speaker(voice, args.codec_path, args.codec or given.get("codec"))


def _configured(yaml: Path) -> dict[str, Any]:
    """What a run's configuration says of the weights that it exported: model, lora, dtype, tokenizer and codec."""
    from vall_e.config import Config

    cfg = Config.from_yaml(yaml)
    file = f"{cfg.weights_name}.{cfg.weights_format}"
    folder, name = cfg.ckpt_dir, cfg.model.name
    if cfg.lora is not None:
        model, lora = cfg.model.path, folder / cfg.lora.name / "lora.sft"
    else:
        model, lora = folder / name / file, None
        if not model.parent.is_dir():  # the name with size, architecture and levels behind it, as others call it
            others = sorted(folder.glob(f"{name}-*/{file}"))
            if len(others) > 1:
                raise ValueError(
                    f"{yaml}: several weights are called {name}: {', '.join(map(str, others))}; use --model"
                )
            model = others[0] if others else model
    codec = cfg.audio_backend if cfg.audio_backend in PUBLISHED else None
    return {
        "model": model,
        "lora": lora,
        "dtype": cfg.inference.weight_dtype,
        "tokenizer": cfg.chosen_tokenizer(),
        "codec": codec,
    }
