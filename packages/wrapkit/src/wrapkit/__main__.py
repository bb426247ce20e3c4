"""`python -m wrapkit plan module:build …`: the memory that training a model takes, before it is built for real."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 1 when the plan cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m wrapkit", description=__doc__)
    plan = parser.add_subparsers(required=True).add_parser("plan", help="print the memory table of a model")
    plan.add_argument("build", help="module:function that returns the model, or the model and a sample input")
    plan.add_argument("--optimizer", help="its name, such as adamw, apollo-mini, adamw8bit")
    plan.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the optimizer")
    plan.add_argument("--replace", action="append", default=[], metavar="BACKEND", help="such as bnb.int8")
    plan.add_argument("--lora", type=int, metavar="RANK", help="adapters of this rank, the rest frozen")
    plan.add_argument("--freeze", action="append", default=[], metavar="PATTERN")
    plan.add_argument("--checkpoint", action="append", default=[], metavar="PATTERN", help="blocks computed again")
    plan.add_argument("--offload-inputs", action="store_true", help="of those blocks, to the host")
    plan.add_argument("--include", action="append", metavar="PATTERN", help="what --replace and --lora apply to")
    plan.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="what they leave out")
    plan.add_argument("--device", default="cpu", help="where it is to be trained (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        print(_report(given))
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        print(f"python -m wrapkit plan: {error}", file=sys.stderr)
        return 1
    return 0


def _report(given: argparse.Namespace) -> str:
    import torch

    import wrapkit
    build = _find(given.build)
    with torch.device("meta"):
        built = build()
    model, sample = built if isinstance(built, tuple) else (built, None)
    policy = wrapkit.Policy(given.include, given.exclude)
    changes: list[Any] = [wrapkit.Replace(backend, policy) for backend in given.replace]
    if given.lora:
        changes.append(wrapkit.LoRA(given.lora, policy=policy))
    if given.freeze:
        changes.append(wrapkit.Freeze(wrapkit.Policy(given.freeze)))
    if given.checkpoint:
        changes.append(wrapkit.Checkpoint(wrapkit.Policy(given.checkpoint), offload=given.offload_inputs))
    optimizer = wrapkit.Optim(given.optimizer, _options(given.option)) if given.optimizer else None
    return wrapkit.plan(model, *changes, optimizer=optimizer, sample=sample, device=given.device).report()


def _find(path: str) -> Any:
    module, colon, name = path.partition(":")
    if not colon or not name:
        raise ValueError(f"give the model as module:function, got {path!r}")
    sys.path.insert(0, "")
    found = getattr(importlib.import_module(module), name)
    if not callable(found):
        raise TypeError(f"{path} is a {type(found).__name__}, not a function that builds a model")
    return found


def _options(given: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"an option is NAME=VALUE, got {text!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[name] = value
    return options


if __name__ == "__main__":
    sys.exit(main())
