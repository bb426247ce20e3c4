"""The text of ``--help``: every key with its type, default and description."""

from __future__ import annotations

import shutil
import textwrap

from ._describe import default_text, descriptions_of, leaves, type_name

_OPTIONS = """\
options:
  -h, --help    show this text
  --yaml FILE   read a YAML file; several are laid over each other in order
  --model FILE  read the configuration stored in a checkpoint
  --lora FILE   read the one stored in another checkpoint over it
  key=value     set a key of the list below; --key value and --key=value do the same
"""


def format_help(
    cls: type, prog: str, description: str | None, epilog: str | None, env_prefix: str | None
) -> str:
    """The whole text, wrapped to the terminal's width."""
    width = max(60, min(shutil.get_terminal_size().columns, 110))
    parts = [f"usage: {prog} [--yaml FILE] [--model FILE] [--lora FILE] [key=value ...]\n"]
    if description:
        parts.append(textwrap.fill(description, width) + "\n")
    parts.append(_OPTIONS)
    if env_prefix:
        parts.append(f"Environment: {env_prefix}A__B=value sets the key a.b.\n")
    parts.append("keys:\n" + "".join(_entries(cls, width)))
    if epilog:
        parts.append(textwrap.fill(epilog, width) + "\n")
    return "\n".join(parts)


def _entries(cls: type, width: int) -> list[str]:
    texts: dict[type, dict[str, str]] = {}
    lines = []
    for path, spec in leaves(cls):
        if spec.owner not in texts:
            texts[spec.owner] = descriptions_of(spec.owner)
        default = default_text(spec)
        lines.append(f"  {'.'.join(path)}  {type_name(spec.annotation)} = {default}\n")
        description = texts[spec.owner].get(spec.name)
        if description:
            wrapped = textwrap.fill(description, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
            lines.append(wrapped + "\n")
    return lines
