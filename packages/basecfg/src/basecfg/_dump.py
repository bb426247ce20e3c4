"""Write a configuration down: plain JSON types, secrets masked, nothing but declared fields."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._section import Section, fields_of

_MASK = "**********"
# JSON may hold these as they are, YAML must not, or reads them as line breaks.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def to_plain(section: Section, *, for_cache: bool = False) -> dict[str, Any]:
    """A section as plain JSON types.

    Args:
        section: any section instance.
        for_cache: leave out fields with ``affects_cache=False``.
    """
    plain = section.model_dump(mode="json")
    return _mark(section, plain, for_cache)


def _mark(value: Any, plain: Any, for_cache: bool) -> Any:
    """``plain`` with secrets masked and, for a cache key, fields without effect left out."""
    if isinstance(value, Section):
        marked = {}
        for name, spec in fields_of(type(value)).items():
            if for_cache and not spec.info.affects_cache:
                continue
            inner = getattr(value, name)
            secret = spec.info.secret and not for_cache and inner not in (None, "")
            marked[name] = _MASK if secret else _mark(inner, plain[name], for_cache)
        return marked
    if isinstance(value, Mapping):
        pairs = zip(value.values(), plain.items(), strict=True)
        return {key: _mark(inner, item, for_cache) for inner, (key, item) in pairs}
    if isinstance(value, list | tuple):
        return [_mark(inner, item, for_cache) for inner, item in zip(value, plain, strict=True)]
    return plain


def as_json(data: Any) -> str:
    """JSON for people: indented, in the order of declaration."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def as_yaml(data: Any) -> str:
    """YAML for people: block style, in the order of declaration."""
    import yaml

    from ._yaml import plain_scalar

    class Dumper(yaml.SafeDumper):
        """Quotes what YAML 1.2 readers, ours among them, would not take for text: ``1e3``."""

    def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = None if isinstance(plain_scalar(text), str) else "'"
        if not text.isprintable():
            style = '"'  # the one style that escapes
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent_text)
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def write_text(text: str, path: Path) -> None:
    """Replace a file in one step: whoever reads it finds the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def hash_of(data: Any) -> str:
    """16 hexadecimal digits that depend on plain data alone, not on the process or platform."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
