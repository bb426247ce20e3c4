"""One language for choosing modules and parameters: dotted globs, types, a predicate."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from wrapkit._errors import PatternError

Predicate = Callable[[str, nn.Module], bool]


def matches(pattern: str, name: str) -> bool:
    """Whether a dotted glob covers a dotted name: the module it names, and everything below that.

    Segments are compared whole, so `layers.1` never covers `layers.10`. Within a segment `*`, `?` and `[…]`
    are wildcards; a leading `*` stands for any number of segments, so `*.k_proj` is every k_proj at any
    depth.

    >>> [matches("layers.*.mlp", n) for n in ("layers.3.mlp", "layers.3.mlp.up", "layers.3.attn", "mlp")]
    [True, True, False, False]
    >>> matches("layers.1", "layers.10"), matches("*.k_proj", "layers.0.attn.k_proj")
    (False, True)
    """
    wanted, found = pattern.split("."), name.split(".") if name else []  # the model itself has no segment
    if wanted[0] == "*" and len(wanted) > 1:
        wanted = wanted[1:]
        offsets = range(len(found) - len(wanted) + 1)
    else:
        offsets = range(1)
    return any(
        len(found) - offset >= len(wanted)
        and all(fnmatchcase(segment, glob) for segment, glob in zip(found[offset:], wanted, strict=False))
        for offset in offsets
    )


@dataclass(frozen=True)
class Policy:
    """Which modules or parameters something applies to.

    A name is chosen if a pattern of `include` covers it (without `include`: always) and none of `exclude`
    does, and if its module is of one of `types` (without: any) and satisfies `predicate`. Exclusion wins.

    Args:
        include, exclude: dotted globs, see `matches`. One that covers nothing in the model is an error.
        types: exact module types (subclasses are other types).
        predicate: called with (name, module).
    """

    include: Sequence[str] | None = None
    exclude: Sequence[str] = field(default=())
    types: tuple[type[nn.Module], ...] | None = None
    predicate: Predicate | None = None

    def __post_init__(self) -> None:
        for label, patterns in (("include", self.include), ("exclude", self.exclude)):
            if isinstance(patterns, str):
                raise TypeError(f"{label} is a list of patterns, got the single string {patterns!r}")
            if patterns is not None:
                object.__setattr__(self, label, tuple(patterns))
        if self.include == ():
            raise ValueError("include=[] would choose nothing; leave it out to choose everything")

    def covers(self, name: str) -> bool:
        """Whether the patterns alone choose this name."""
        included = self.include is None or any(matches(p, name) for p in self.include)
        return included and not self.excludes(name)

    def excludes(self, name: str) -> bool:
        """Whether a pattern of `exclude` covers this name."""
        return any(matches(p, name) for p in self.exclude)

    def chooses(self, name: str, module: nn.Module) -> bool:
        """Whether patterns, types and predicate all choose this module."""
        return (
            self.covers(name)
            and (self.types is None or type(module) in self.types)
            and (self.predicate is None or self.predicate(name, module))
        )

    def check(self, names: Iterable[str]) -> None:
        """Raise `PatternError` for a pattern that covers none of the names."""
        names = [name for name in names if name]
        for pattern in (*(self.include or ()), *self.exclude):
            if not any(matches(pattern, name) for name in names):
                close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
                raise PatternError(
                    f"pattern {pattern!r} matches nothing in the model; did you mean {', '.join(close)}?"
                )

    def modules(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """The chosen modules, each once under its first name, the model itself (named "") included.

        Raises:
            PatternError: a pattern covers nothing.
        """
        self.check(_all_names(model))
        return [(name, module) for name, module in model.named_modules() if self.chooses(name, module)]

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        """The outermost chosen modules that are called: of a `ModuleList` its entries, each by its first name.

        Raises:
            PatternError: a pattern covers nothing.
        """
        chosen: dict[str, nn.Module] = {}
        inside: set[nn.Module] = set()
        for name, module in self.modules(model):
            if module not in inside and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                chosen[name] = module
                inside.update(module.modules())
        return chosen

    def parameters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """The chosen parameters, each once under its first name; types and predicate see the owner."""
        self.check(_all_names(model))
        return [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if self.chooses(name, owner(model, name))
            or (self.covers(name) and self.types is None and self.predicate is None)
        ]


def owner(model: nn.Module, parameter_name: str) -> nn.Module:
    """The module that holds a parameter of this dotted name."""
    return model.get_submodule(parameter_name.rpartition(".")[0])


def _all_names(model: nn.Module) -> list[str]:
    modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
    return modules + [name for name, _ in model.named_parameters(remove_duplicate=False)]
