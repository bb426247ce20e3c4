"""From layers to a validated object, or to all that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_origin

import pydantic

from . import _layers
from ._describe import annotation_at, descend, is_section, members, type_name
from ._errors import ConfigError, Problem, warn
from ._field import MISSING
from ._layers import FileLayer, Layer, dotted
from ._section import Section, fields_of, model_of
from ._suggest import nearest_choice, nearest_key
from ._yaml import AMBIGUOUS

Unknown = Literal["error", "warn", "drop"]
_SHOWN = 60  # characters of a found value in a message
_ROUNDS = 8  # of repair and validation; each one finds what the one before hid


def construct(cls: type[Section], values: Mapping[str, Any]) -> Any:
    """An instance of ``cls`` from keyword arguments."""
    return resolve(cls, [Layer(values, "argument")])


def resolve(
    cls: type[Section],
    layers: Sequence[Layer],
    *,
    unknown: Mapping[str, Unknown] | Unknown = "error",
    problems: Sequence[Problem] = (),
) -> Any:
    """Lay the layers over each other and validate the result.

    Args:
        cls: the section or configuration class.
        layers: in rising precedence.
        unknown: what to do with unknown keys, for all layers or by layer label (``""`` for the others).
        problems: found before; they are reported with what is found here.

    Raises:
        ConfigError: listing every problem.
    """
    found = list(problems)
    data: Any = custom_defaults(cls)
    for layer in layers:
        data = layer.apply(data, found)
    if any(layer.may_refer for layer in layers):
        from ._interpolate import interpolate

        data = interpolate(cls, data, layers, found)
    model = model_of(cls)
    for _ in range(_ROUNDS):
        try:
            instance = model.model_validate(data)
        except pydantic.ValidationError as error:
            repair = _Repair(cls, data, layers, unknown)
            rest = repair.digest(error)
            warn(repair.remarks)
            if repair.data is data:
                raise ConfigError([*found, *rest]) from None
            found += repair.problems
            data = repair.data
        else:
            break
    if found:
        raise ConfigError(found)
    return instance


def custom_defaults(cls: type[Section]) -> dict[str, Any]:
    """What default instances of sections set differently from the section's own defaults.

    Given ``trainer: Trainer = Trainer(lr=1)``, a file that sets only ``trainer.steps`` keeps ``lr``.
    """
    known = vars(cls).get("__custom_defaults__")
    if known is None:
        known = {}
        for name, spec in fields_of(cls).items():
            default = spec.info.default
            if spec.info.default_factory is not None and is_section(spec.annotation):
                default = spec.info.default_factory()
            if isinstance(default, Section):
                inner = default.model_dump(exclude_unset=True)
            else:
                inner = custom_defaults(spec.annotation) if is_section(spec.annotation) else {}
            if inner:
                known[name] = inner
        cls.__custom_defaults__ = known
    return known


def layer_of(layers: Sequence[Layer], path: _layers.Path) -> Layer | None:
    """The layer that decides the value at ``path``."""
    return next((layer for layer in reversed(layers) if layer.setter(path) is not None), None)


def locate(layers: Sequence[Layer], path: _layers.Path, *, value: bool = False) -> str:
    """Where the value at ``path`` is set, or the nearest parent that is."""
    for end in range(len(path), 0, -1):
        layer = layer_of(layers, path[:end])
        if layer is not None:
            return layer.locate(path[:end], value=value and end == len(path))
    files = [layer.label for layer in layers if isinstance(layer, FileLayer)]
    if files:
        return files[-1]
    return layers[-1].label if layers else "default"


class _Repair:
    """One round over pydantic's errors: what can be repaired is, the rest become problems."""

    def __init__(
        self,
        cls: type[Section],
        data: Any,
        layers: Sequence[Layer],
        unknown: Mapping[str, Unknown] | Unknown,
    ) -> None:
        self.cls = cls
        self.data = data
        self.problems: list[Problem] = []  # of keys that were taken out of the data
        self.remarks: list[Problem] = []  # on what works, but should be changed
        self._layers = layers
        self._unknown = unknown

    def digest(self, error: pydantic.ValidationError) -> list[Problem]:
        """Repair ``self.data`` where possible; return problems of what could not be."""
        grouped: dict[_layers.Path, list[Any]] = {}
        for item in error.errors(include_url=False):
            grouped.setdefault(self._real_path(item), []).append(item)
        rest = []
        for path, items in grouped.items():
            if any(item["type"] == "extra_forbidden" for item in items):
                self._take_out(path)
            elif not self._use_text(path, items) and not self._use_default(path):
                rest.append(self._describe(path, items))
        return rest

    def _real_path(self, item: Any) -> _layers.Path:
        """Where an error is in the data: pydantic's location without the names of union members."""
        path: _layers.Path = ()
        node, annotation = self.data, self.cls
        for step in item["loc"]:
            child = _layers.child(node, step)
            inner = None if annotation is None else descend(annotation, step)
            section = any(is_section(member) for member in members(annotation))
            if child is _layers.ABSENT and (inner is None or not section) and item["type"] != "missing":
                continue
            path += (step,)
            node, annotation = child, inner
        return path

    def _take_out(self, path: _layers.Path) -> None:
        layer = layer_of(self._layers, path)
        policy = self._unknown
        if isinstance(policy, Mapping):
            policy = policy.get(layer.label if layer else "", policy.get("", "error"))
        self.data = _layers.without(self.data, path)
        if policy == "drop":
            return
        nearest = nearest_key(self.cls, path)
        message = "unknown key" + (f"; did you mean {nearest}?" if nearest else "")
        problem = Problem(locate(self._layers, path), dotted(path), message)
        if policy == "warn":
            self.remarks.append(problem._replace(message=f"{message} (ignored)"))
        else:
            self.problems.append(problem)

    def _use_text(self, path: _layers.Path, items: list[Any]) -> bool:
        """For a text field that got another scalar: use the characters it was read from, if that is safe."""
        layer = layer_of(self._layers, path)
        value = _layers.child_at(self.data, path)
        if layer is None or not isinstance(value, bool | int | float | None):
            return False
        if not any(item["type"] in ("string_type", "literal_error", "path_type", "enum") for item in items):
            return False
        text = layer.raw_text(path)
        if text is None:
            return False
        if isinstance(layer, FileLayer):
            if text not in AMBIGUOUS:
                return False
            place = layer.locate(path, value=True)
            message = f"read as the text {text!r}; quote it, since YAML 1.1 readers take it for a boolean"
            self.remarks.append(Problem(place, dotted(path), message))
        self.data = _layers.assign(self.data, path, text)
        return True

    def _use_default(self, path: _layers.Path) -> bool:
        """For a section, list or dict with nothing in it, as ``trainer:`` alone in a line: as if it were not there."""
        annotation = annotation_at(self.cls, path) if path and isinstance(path[-1], str) else None
        kinds = [get_origin(member) or member for member in members(annotation)]
        if _layers.child_at(self.data, path) is not None or not any(
            is_section(kind) or kind in (list, tuple, set, dict) for kind in kinds
        ):
            return False
        self.data = _layers.without(self.data, path)
        return True

    def _describe(self, path: _layers.Path, items: list[Any]) -> Problem:
        annotation = annotation_at(self.cls, path)
        item = items[0]
        if item["type"] == "missing":
            wanted = type_name(annotation) if annotation is not None else "a value"
            return Problem(
                locate(self._layers, path), dotted(path), f"required: expected {wanted}, found nothing"
            )
        expected = " or ".join(dict.fromkeys(_expected(item) for item in items))
        message = f"{expected}, found {_shown(item['input'])}"
        nearest = nearest_choice(annotation, item["input"]) if annotation is not None else None
        if nearest is not None and isinstance(item["input"], str):
            message += f"; did you mean {nearest!r}?"
        layer = layer_of(self._layers, path)
        location = locate(self._layers, path, value=True) if layer is not None else "default"
        return Problem(location, dotted(path), message)


def _expected(item: Any) -> str:
    message = item["msg"]
    for start, replacement in (
        ("Input should be ", "expected "),
        ("Value error, ", ""),
        ("Assertion failed, ", ""),
    ):
        if message.startswith(start):
            return replacement + message.removeprefix(start)
    return message[:1].lower() + message[1:]


def _shown(value: Any) -> str:
    text = repr(value)
    if len(text) > _SHOWN:
        text = text[:_SHOWN] + "..."
    return text if isinstance(value, type(None)) else f"{text} ({type(value).__name__})"


def default_at(cls: type[Section], path: _layers.Path) -> Any:
    """The default at a dotted path, as plain data.

    Raises:
        KeyError: no such key, or a required one.
    """
    node: Any = cls
    for i, step in enumerate(path):
        spec = fields_of(node).get(str(step)) if is_section(node) else None
        if spec is None:
            raise KeyError(dotted(path))
        if is_section(spec.annotation) and spec.info.default is MISSING and spec.info.default_factory is None:
            node = spec.annotation
            continue
        if spec.info.default is MISSING and spec.info.default_factory is None:
            raise KeyError(dotted(path))
        default = spec.info.default if spec.info.default_factory is None else spec.info.default_factory()
        return _layers.lookup(_plain(default), path[i + 1 :])
    return {}


def default_values(cls: type[Section]) -> dict[str, Any]:
    """All defaults as plain data; a required key is absent."""
    found: dict[str, Any] = {}
    for name, spec in fields_of(cls).items():
        if is_section(spec.annotation) and spec.info.default is MISSING and spec.info.default_factory is None:
            found[name] = default_values(spec.annotation)
        elif spec.info.default is not MISSING or spec.info.default_factory is not None:
            found[name] = default_at(cls, (name,))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
