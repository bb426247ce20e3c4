"""All problems of a configuration in one error, each with its place."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        location: ``"exp.yaml:12:3"``, ``"env VALLE_X"``, ``"cli"``, ``"model.sft#config"`` or ``"default"``.
        path: the dotted path of the key, empty for the file as a whole.
        message: what was expected and what was found, or what to do.
    """

    location: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


class ConfigError(ValueError):
    """A configuration is not valid. The message has one line per problem.

    Attributes:
        problems: every one of them.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class ConfigWarning(UserWarning):
    """Something in a configuration works but should be changed; the message names the lines.

    Attributes:
        problems: every one of them.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        super().__init__(lines[0] if len(lines) == 1 else "\n  ".join(["what to change:", *lines]))

    def __reduce__(self) -> tuple[type[ConfigWarning], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


def warn(problems: Sequence[Problem]) -> None:
    """One warning for all of them, if there are any; line 0 of the file, so that no source line is shown."""
    if problems:
        place = problems[0].location.partition(":")[0]
        warnings.warn_explicit(ConfigWarning(problems), ConfigWarning, place, 0)
