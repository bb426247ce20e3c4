"""``python -m stateio inspect|verify|convert|diff``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import StateFileError, diff, inspect, load, save, verify

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 for files that differ and for errors, which go to stderr."""
    parser = argparse.ArgumentParser(prog="python -m stateio", description="Look at state files, check them.")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("inspect", help="list tensors and metadata without reading a tensor")
    command.add_argument("file")
    command.set_defaults(run=_inspect)
    command = commands.add_parser("verify", help="read every tensor and compare it with its checksum")
    command.add_argument("file", nargs="+")
    command.set_defaults(run=_verify)
    command = commands.add_parser("convert", help="write a file in another form, the suffix says which")
    command.add_argument("source")
    command.add_argument("target")
    command.add_argument("--dtype", help="what floating-point tensors become, such as bfloat16")
    command.add_argument("--shard-bytes", type=int, help="write shards of at most this many bytes")
    command.set_defaults(run=_convert)
    command = commands.add_parser("diff", help="compare two files; the exit code is 1 if they differ")
    command.add_argument("first")
    command.add_argument("second")
    command.set_defaults(run=_diff)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except (OSError, StateFileError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _inspect(arguments: argparse.Namespace) -> int:
    info = inspect(arguments.file)
    by = "by others" if info.version is None else f"by stateio (format {info.version})"
    print(f"{info.path}: {info.format}, written {by}, {len(info.tensors)} tensors, {_size(info.nbytes)}")
    for stored in info.tensors.values():
        print(f"  {stored.name}  {stored.dtype} {list(stored.shape)}  {_size(stored.nbytes)}")
    for key, value in info.metadata.items():
        text = repr(value)
        print(f"  {key} = {text if len(text) <= 100 else text[:100] + '...'}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    for path in arguments.file:
        compared = verify(path)
        print(f"{path}: {compared} tensors intact" if compared else f"{path}: readable, holds no checksums")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    state = load(arguments.source)
    print(save(state, arguments.target, dtype=arguments.dtype, shard_bytes=arguments.shard_bytes))
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    found = diff(arguments.first, arguments.second)
    for path in found.only_first:
        print(f"- {path}")
    for path in found.only_second:
        print(f"+ {path}")
    for path, reason in found.changed.items():
        print(f"! {path}: {reason}")
    return int(bool(found))


def _size(nbytes: float) -> str:
    for unit in _UNITS[:-1]:
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} {_UNITS[-1]}"


if __name__ == "__main__":
    sys.exit(main())
