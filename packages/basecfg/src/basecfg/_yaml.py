"""Read YAML into plain data and remember where each key and value stands.

The C parser composes nodes; one walk over them gives the data. The nodes stay: a position is looked up in
them only when an error or `source_of` asks for it, so that it costs nothing otherwise.

Plain scalars follow YAML 1.2 (``1e-4`` is a float, ``2020-01-01`` and ``1:30`` are strings) except that
``on``, ``off``, ``yes`` and ``no`` still are booleans, as in most files that exist.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ._errors import ConfigError, Problem

Key = str | int
_PLAIN = "plain"  # our tag of a scalar without quotes, whose text says what it is
_STANDARD = "tag:yaml.org,2002:"
_MERGE = "<<"
_MAX_ALIASED = 1_000_000  # nodes that a file may grow to when its aliases are written out

_WORDS: dict[str, Any] = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"]),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
    **dict.fromkeys([".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"], float("inf")),
    **dict.fromkeys(["-.inf", "-.Inf", "-.INF"], float("-inf")),
    **dict.fromkeys([".nan", ".NaN", ".NAN"], float("nan")),
}
AMBIGUOUS: dict[str, bool] = {
    **dict.fromkeys(["on", "On", "ON", "yes", "Yes", "YES"], True),
    **dict.fromkeys(["off", "Off", "OFF", "no", "No", "NO"], False),
}
_WORDS |= AMBIGUOUS
_INTEGER = re.compile(r"[-+]?[0-9](?:_?[0-9])*")
_PREFIXED = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9](?:_?[0-9])*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NUMERIC = frozenset("0123456789+-.")


class _Composer(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The C parser without PyYAML's per-node tag resolution, which takes half of its time."""

    def resolve(self, kind: type, value: str | None, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _STANDARD + "str"
        return _STANDARD + ("map" if kind is yaml.MappingNode else "seq")

    def descend_resolver(self, *_: Any) -> None:
        """Path resolvers are not used."""

    def ascend_resolver(self) -> None:
        """Path resolvers are not used."""


class Document:
    """One parsed file.

    Attributes:
        name: as messages show it.
        data: plain data; ``{}`` for an empty file.
        may_refer: whether the text holds ``${``.
        problems: duplicate keys, tags that are not data, and so on. What they concern is left out.
    """

    def __init__(self, raw: bytes | str, name: str) -> None:
        self.name = name
        self.problems: list[Problem] = []
        self.may_refer = (b"${" if isinstance(raw, bytes) else "${") in raw
        root = self._compose(raw)
        self._root = root
        if root is not None and (b"&" if isinstance(raw, bytes) else "&") in raw:
            self._check_aliases(root)
        self.data: Any = {} if root is None or self._root is None else self._construct(root)

    def _compose(self, raw: bytes | str) -> Any:
        try:
            loader = _Composer(raw)
            try:
                return loader.get_single_node()
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = ", ".join(part for part in (error.context, error.problem) if part)
            self._refuse(mark, f"not valid YAML: {message}")
        except yaml.reader.ReaderError as error:
            self._refuse(None, f"not valid YAML: {error.reason} at position {error.position}")
        except RecursionError:
            self._refuse(None, "not valid YAML: nested too deeply")

    def _refuse(self, mark: Any, message: str) -> None:
        location = self.name if mark is None else self._place(mark)
        raise ConfigError([Problem(location, "", message)])

    def _place(self, mark: Any) -> str:
        return f"{self.name}:{mark.line + 1}:{mark.column + 1}"

    def _check_aliases(self, root: Any) -> None:
        """Refuse a file whose aliases refer to themselves or multiply without measure."""
        sizes: dict[int, int | None] = {}

        def size(node: Any) -> int:
            known = sizes.get(id(node), 0)
            if known is None:
                self._refuse(node.start_mark, "an alias that contains itself")
            if known:
                return known
            sizes[id(node)] = None
            total = 1
            if isinstance(node, yaml.SequenceNode):
                total += sum(size(child) for child in node.value)
            elif isinstance(node, yaml.MappingNode):
                total += sum(size(key) + size(value) for key, value in node.value)
            sizes[id(node)] = total
            return total

        total = size(root)
        if total > _MAX_ALIASED and total > 10 * len(sizes):
            problem = f"its aliases stand for {total:.3g} values; the limit is {_MAX_ALIASED:.0e}"
            self._refuse(None, problem)

    def _construct(self, node: Any) -> Any:
        if type(node) is yaml.ScalarNode:
            return plain_scalar(node.value) if node.tag is _PLAIN else self._tagged_scalar(node)
        if node.tag[len(_STANDARD) :] not in ("map", "seq") or not node.tag.startswith(_STANDARD):
            self._report(node, f"the tag {node.tag!r} is not supported: only plain data is")
            return None
        if type(node) is yaml.SequenceNode:
            return [self._construct(item) for item in node.value]
        return self._construct_mapping(node)

    def _construct_mapping(self, node: Any) -> dict[Any, Any]:
        data: dict[Any, Any] = {}
        merged: list[dict[Any, Any]] = []
        for key_node, value_node in node.value:
            if type(key_node) is not yaml.ScalarNode:
                self._report(key_node, "expected a plain value as key, found a list or mapping")
                continue
            if key_node.value == _MERGE and key_node.tag is _PLAIN:
                merged += self._merge_sources(value_node)
                continue
            key = plain_scalar(key_node.value) if key_node.tag is _PLAIN else self._tagged_scalar(key_node)
            if key_node.value in AMBIGUOUS:
                key = key_node.value
            if key in data:
                first = next(k for k, _ in node.value if k.value == key_node.value)
                line = first.start_mark.line + 1
                self._report(key_node, f"duplicate key {key_node.value!r}; it is first set on line {line}")
                continue
            data[key] = self._construct(value_node)
        for source in merged:  # earlier ones win, the mapping itself wins over all
            data = {**source, **data}
        return data

    def _merge_sources(self, node: Any) -> list[dict[Any, Any]]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(item, yaml.MappingNode) for item in nodes):
            self._report(node, "expected a mapping or a list of mappings after '<<'")
            return []
        return [self._construct_mapping(item) for item in nodes]

    def _tagged_scalar(self, node: Any) -> Any:
        kind = node.tag.removeprefix(_STANDARD)
        if kind == "str":
            return node.value
        value = plain_scalar(node.value)
        if kind == "float" and type(value) is int:
            return float(value)
        if (kind, type(value)) in (("int", int), ("float", float), ("bool", bool), ("null", type(None))):
            return value
        self._report(node, f"the tag {node.tag!r} is not supported here: only plain data is")
        return None

    def _report(self, node: Any, message: str) -> None:
        self.problems.append(Problem(self._place(node.start_mark), "", message))

    def locate(self, path: tuple[Key, ...], *, value: bool = False) -> str:
        """``file:line:column`` of the key at ``path`` or of its value, else of the nearest parent."""
        key_node, value_node = self._find(path)
        node = value_node if value else key_node
        return self.name if node is None else self._place(node.start_mark)

    def text(self, path: tuple[Key, ...]) -> str | None:
        """The text of the unquoted scalar at ``path``."""
        _, node = self._find(path)
        return node.value if isinstance(node, yaml.ScalarNode) and node.tag is _PLAIN else None

    def _find(self, path: tuple[Key, ...]) -> tuple[Any, Any]:
        key_node = value_node = self._root
        for step in path:
            found = _child(value_node, step)
            if found is None:
                break
            key_node, value_node = found
        return key_node, value_node


def _child(node: Any, step: Key) -> tuple[Any, Any] | None:
    if isinstance(node, yaml.SequenceNode):
        if isinstance(step, int) and 0 <= step < len(node.value):
            return node.value[step], node.value[step]
        return None
    if not isinstance(node, yaml.MappingNode):
        return None
    sources = []
    for key_node, value_node in node.value:
        if key_node.value == str(step):
            return key_node, value_node
        if key_node.value == _MERGE:
            sources += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
    return next((found for source in sources if (found := _child(source, step))), None)


def plain_scalar(text: str) -> Any:
    """What an unquoted YAML scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] in _NUMERIC:
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _PREFIXED.fullmatch(text):
            return int(text, 0)
    return text


def read_document(path: str | Path) -> Document:
    """Parse a file.

    Raises:
        ConfigError: missing, not readable, not UTF-8 or not YAML.
    """
    name = str(path)
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([Problem(name, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        message = f"expected UTF-8 text, found the byte 0x{raw[error.start]:02x}"
        raise ConfigError([Problem(f"{name}:{line}:{column}", "", message)]) from None
    document = Document(text, name)
    if not isinstance(document.data, dict):
        kind = type(document.data).__name__
        raise ConfigError([Problem(f"{name}:1:1", "", f"expected a mapping of keys, found a {kind}")])
    return document
