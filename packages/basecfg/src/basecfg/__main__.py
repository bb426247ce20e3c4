"""``python -m basecfg schema|check|migrate module:Class``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from . import BaseConfig, ConfigError, migrate_file


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 for a file that is not valid; problems go to stderr."""
    parser = argparse.ArgumentParser(prog="python -m basecfg", description="Tools for configuration files.")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("schema", help="print the JSON Schema of a class, for editors")
    command.add_argument("target", metavar="module:Class", type=_load_class)
    command.set_defaults(run=_schema)
    command = commands.add_parser("check", help="check files against a class")
    command.add_argument("target", metavar="module:Class", type=_load_class)
    command.add_argument("file", nargs="+")
    command.set_defaults(run=_check)
    command = commands.add_parser("migrate", help="rewrite the old keys of files, keeping comments")
    command.add_argument("target", metavar="module:Class", type=_load_class)
    command.add_argument("file", nargs="+")
    command.set_defaults(run=_migrate)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


def _load_class(name: str) -> Any:
    module, colon, qualified = name.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"expected module:Class, found {name!r}")
    try:
        found: Any = importlib.import_module(module)
        for part in qualified.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not (isinstance(found, type) and issubclass(found, BaseConfig)):
        raise argparse.ArgumentTypeError(f"expected a subclass of BaseConfig, found {found!r}")
    return found


def _schema(arguments: argparse.Namespace) -> int:
    print(json.dumps(arguments.target.json_schema(), indent=2))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    failed = False
    for path in arguments.file:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                arguments.target.from_yaml(path)
            except ConfigError as error:
                failed = True
                print(error, file=sys.stderr)
        for warning in caught:
            for problem in getattr(warning.message, "problems", [warning.message]):
                print(f"{problem} (warning)", file=sys.stderr)
    return int(failed)


def _migrate(arguments: argparse.Namespace) -> int:
    for path in arguments.file:
        try:
            changes = migrate_file(arguments.target, path)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 1
        for change in changes:
            print(f"{path}: {change}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
