"""`vall-e-export`: weights in another form."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_SUFFIXES = (".sft", ".safetensors", ".pth", ".pt")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vall-e-export",
        description="Write weights in another form: .sft, .pth, another dtype, with an adapter merged, or as llama.",
        epilog=(
            "examples:\n"
            "  vall-e-export ckpt/ar+nar --out fp32.sft             the newest checkpoint, as weights\n"
            "  vall-e-export fp32.sft --out bf16.sft --dtype bfloat16\n"
            "  vall-e-export fp32.sft --lora ckpt/mine/lora.sft --out merged.sft\n"
            "  vall-e-export ckpt/mine/lora.sft --out lora.pth --dtype bfloat16   the adapter alone\n"
            "  vall-e-export fp32.sft --out llama/ --layout llama"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=Path, help="a file of weights or an adapter, or a checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="the file (.sft or .pth), or for llama the folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(%(default)s)")
    parser.add_argument("--lora", type=Path, help="an adapter to merge into the weights")
    parser.add_argument("--lora-strength", type=float, default=1.0, help="of the adapter (%(default)s)")
    parser.add_argument("--layout", choices=("vall-e", "llama"), default="vall-e", help="(%(default)s)")
    args = parser.parse_args(argv)
    try:
        print(_export(args))
    except (ValueError, OSError) as e:
        print(f"vall-e-export: {e}", file=sys.stderr)
        return 1
    return 0


def _export(args: argparse.Namespace) -> str:
    import stateio

    from vall_e import adapter
    from vall_e.weights import load_weights, weights_file

    if (args.out.suffix in _SUFFIXES) == (args.layout == "llama"):
        expected = "a folder" if args.layout == "llama" else "a name that ends in .sft or .pth"
        raise ValueError(f"--out: expected {expected}, found {args.out}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.weights.is_file() and adapter.is_adapter(args.weights):
        if args.layout == "llama" or args.lora:
            raise ValueError(f"{args.weights}: an adapter; give the weights that it was trained on, and it as --lora")
        count = adapter.export(args.weights, args.out, args.dtype)
        return f"{args.out}: an adapter of {count / 1e6:.2f} M numbers in {args.dtype}"
    voice = load_weights(args.weights, dtype=args.dtype, lora=args.lora, lora_strength=args.lora_strength)
    tensors = voice.model.state_dict()
    if args.layout == "llama":
        from vall_e.hf import export_llama

        folder = export_llama(voice.model, args.out)
        return (
            f"{folder}: a folder that transformers' LlamaForCausalLM loads. Llama has no place for the biases of the "
            "head: add classifiers.proj.0.bias of vall_e.safetensors to its last logits"
        )
    held = weights_file(
        tensors,
        voice.model.spec,
        tokenizer=voice.tokenizer,
        codec=voice.codec,
        settings=voice.settings,
        stats=voice.stats,
    )
    stateio.save(held, args.out)
    return f"{args.out}: {sum(t.numel() for t in tensors.values()) / 1e6:.1f} M numbers in {args.dtype}"


if __name__ == "__main__":
    sys.exit(main())
