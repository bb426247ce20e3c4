"""The command line: which files to read, and values by dotted path."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._errors import ConfigError, Problem

_FILES = ("--yaml", "--model", "--lora")
_BOOLEANS = {"true", "false", "yes", "no", "on", "off", "1", "0"}


@dataclass
class Arguments:
    """What a command line says.

    Attributes:
        yaml, model, lora: the files named.
        overrides: ``key=value`` strings, in order.
        help: whether it is asked for.
        problems: arguments that mean nothing.
    """

    yaml: list[str] = field(default_factory=list)
    model: str | None = None
    lora: str | None = None
    overrides: list[str] = field(default_factory=list)
    help: bool = False
    problems: list[Problem] = field(default_factory=list)


def parse(cls: type, argv: Sequence[str]) -> Arguments:
    """Take a command line apart: ``--yaml FILE``, ``key=value``, ``--key value``, ``--key=value``."""
    found = Arguments()
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name, equals, value = token.partition("=")
        if token in ("-h", "--help"):
            found.help = True
        elif name in _FILES:
            if not equals:
                if not rest or rest[0].startswith("--"):
                    found.problems.append(Problem("cli", "", f"{name} expects a file"))
                    continue
                value = rest.pop(0)
            if name == "--yaml":
                found.yaml.append(value)
            else:
                setattr(found, name[2:], value)
        elif name.startswith("--") and len(name) > 2:
            if not equals:
                value = _value_after(cls, name[2:], rest, found.problems)
            if value is not None:
                found.overrides.append(f"{name[2:]}={value}")
        elif equals and not name.startswith("-"):
            found.overrides.append(token)
        else:
            message = f"expected key=value, --key value or a file option, found {token!r}"
            found.problems.append(Problem("cli", "", message))
    return found


def _value_after(cls: type, key: str, rest: list[str], problems: list[Problem]) -> str | None:
    """The value of ``--key`` without ``=``: the next argument, or true for a switch."""
    from ._describe import annotation_at, members
    from ._layers import parse_path

    annotation = annotation_at(cls, parse_path(key))
    if annotation is not None and bool in members(annotation):
        return rest.pop(0) if rest and rest[0].lower() in _BOOLEANS else "true"
    if annotation is None:  # let the check of the values say so, with a suggestion
        return rest.pop(0) if rest and not rest[0].startswith("--") and "=" not in rest[0] else ""
    if rest and not rest[0].startswith("--"):
        return rest.pop(0)
    problems.append(Problem("cli", key, "expected a value after it"))
    return None


def run(
    cls: type,
    argv: Sequence[str] | None,
    *,
    prog: str | None,
    description: str | None,
    epilog: str | None,
    env_prefix: str | None,
    default_yaml: str | os.PathLike[str] | None,
    base: Mapping[str, Any] | None,
    load: Any,
) -> Any:
    """See `BaseConfig.from_cli`."""
    program = prog or os.path.basename(sys.argv[0])
    arguments = parse(cls, sys.argv[1:] if argv is None else argv)
    if arguments.help:
        from ._help import format_help

        print(format_help(cls, program, description, epilog, env_prefix), end="")
        raise SystemExit(0)
    files: list[Any] = arguments.yaml or ([] if default_yaml is None else [default_yaml])
    try:
        from ._read import read

        return read(
            cls,
            files=files,
            model=arguments.model,
            lora=arguments.lora,
            overrides=arguments.overrides,
            overrides_label="cli",
            env_prefix=env_prefix,
            base=base,
            load=load,
            problems=arguments.problems,
        )
    except ConfigError as error:
        count = len(error.problems)
        print(
            f"{program}: {count} problem{'s' if count > 1 else ''} (--help lists all keys)", file=sys.stderr
        )
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
