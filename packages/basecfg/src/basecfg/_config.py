"""`BaseConfig`: the root of a configuration, with where it was read from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ._section import Section

if TYPE_CHECKING:
    from ._checkpoint import Loader
    from ._diff import Change

StrPath = str | os.PathLike[str]
Unknown = Literal["error", "warn", "drop"]


class BaseConfig(Section):
    """The root of a configuration. Subclass it with sections, then read it with a ``from_`` method.

    Precedence, lowest first: defaults, ``base``, included files, files in order, checkpoint, environment,
    command line or overrides. Mappings merge, everything else replaces.
    """

    migrations: ClassVar[
        Mapping[str, str | Callable[[Any], Mapping[str, Any] | tuple[Mapping[str, Any], str]]]
    ] = {}
    """Old dotted key to its new one, or to a function from the old value to new keys and values.

    A function may return its own key (with the value as it is, if that is still good), add the remark that the
    warning makes (``""`` for no warning), and raises ``ValueError`` for a value that cannot be had any more. A ``*``
    stands for each entry of a list or dict, and in a new key for the same one.
    """

    _origin: ClassVar[Any] = None

    @classmethod
    def from_yaml(
        cls,
        path: StrPath,
        *more: StrPath,
        overrides: Iterable[str] | Mapping[str, Any] = (),
        env_prefix: str | None = None,
        unknown: Unknown = "error",
        base: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read YAML (or JSON) files, later ones over earlier ones.

        Args:
            path: the file whose folder `rel_path` is.
            more: files laid over it.
            overrides: ``["trainer.iterations=10"]`` or ``{"trainer.iterations": 10}``.
            env_prefix: also read environment variables that begin with this.
            unknown: what to do with unknown keys.
            base: values between the defaults and the files.

        Raises:
            ConfigError: listing all that is wrong, each with its place.
        """
        from ._read import read

        return read(
            cls, files=(path, *more), overrides=overrides, env_prefix=env_prefix, unknown=unknown, base=base
        )

    @classmethod
    def from_model(
        cls,
        path: StrPath,
        lora: StrPath | None = None,
        *,
        overrides: Iterable[str] | Mapping[str, Any] = (),
        env_prefix: str | None = None,
        unknown: Unknown = "warn",
        base: Mapping[str, Any] | None = None,
        load: Loader | None = None,
    ) -> Self:
        """Read the configuration stored in a checkpoint, without a YAML file.

        Args:
            path: a SafeTensors file whose metadata has ``config`` as a JSON string.
            lora: another checkpoint laid over it.
            overrides: as in `from_yaml`.
            env_prefix: as in `from_yaml`.
            unknown: what to do with keys of the checkpoint that this class no longer has.
            base: values between the defaults and the checkpoint.
            load: reads a checkpoint of another format into its top-level mapping.

        Raises:
            ConfigError: listing all that is wrong.
        """
        from ._read import read

        return read(
            cls,
            model=path,
            lora=lora,
            overrides=overrides,
            env_prefix=env_prefix,
            unknown_in_model=unknown,
            base=base,
            load=load,
        )

    @classmethod
    def from_cli(
        cls,
        argv: Sequence[str] | None = None,
        *,
        prog: str | None = None,
        description: str | None = None,
        epilog: str | None = None,
        env_prefix: str | None = None,
        default_yaml: StrPath | None = None,
        base: Mapping[str, Any] | None = None,
        load: Loader | None = None,
    ) -> Self:
        """Read a configuration as the command line says: ``--yaml``, ``--model``, ``--lora``, ``key=value``.

        ``--help`` prints every key and exits with 0. Anything wrong is printed to stderr, all of it, and the
        process exits with 2.

        Args:
            argv: the arguments, by default those of the process, which are not changed.
            prog: the program's name in the help.
            description: printed above the keys.
            epilog: printed below them.
            env_prefix: as in `from_yaml`.
            default_yaml: read when there is no ``--yaml``.
            base: values between the defaults and the files.
            load: as in `from_model`.
        """
        from ._cli import run

        return run(
            cls,
            argv,
            prog=prog,
            description=description,
            epilog=epilog,
            env_prefix=env_prefix,
            default_yaml=default_yaml,
            base=base,
            load=load,
        )

    @classmethod
    def model_values(cls, config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
        """Where the ``config`` of a checkpoint goes. Override it if that is not the whole configuration.

        For example ``return {"models": [{**config, "path": str(path)}]}``.
        """
        return config

    @classmethod
    def lora_values(cls, config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
        """As `model_values`, for ``lora``."""
        return config

    @classmethod
    def _construct(cls, values: dict[str, Any]) -> Self:
        from ._layers import Layer
        from ._read import build

        return build(cls, [Layer(values, "argument")])

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = super().__deepcopy__(memo)
        object.__setattr__(copied, "_origin", self._origin)
        return copied

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        from ._origin import restore

        rebuild, (cls, values) = super().__reduce__()
        return restore, (rebuild, cls, values, self._origin.settled(self))

    def source_of(self, path: str) -> str:
        """What set the value at a dotted path.

        Returns:
            ``"exp.yaml:12:5"``, ``"env VALLE_X"``, ``"cli"``, ``"override"``, ``"model.sft#config"``,
            ``"base"``, ``"argument"``, ``"replace"`` or ``"default"``.

        Raises:
            KeyError: no such key; the message suggests the nearest.
        """
        return self._origin.source_of(self, path)

    def replace(self, **values: Any) -> Self:
        """A new configuration with other values: ``cfg.replace(**{"trainer.iterations": 5})``.

        Raises:
            ConfigError: listing all that is wrong.
        """
        return self._origin.replaced(self, values)

    def diff(self, other: BaseConfig | Mapping[str, Any] | None = None) -> list[Change]:
        """What differs from another configuration, from a checkpoint's state, or (None) from the defaults."""
        return self._origin.diff(self, other)

    def hash_key(self, *paths: str) -> str:
        """16 hexadecimal digits of the values at dotted paths (of all, without any), for cache names.

        Equal over processes and platforms. Fields with ``affects_cache=False`` do not count.

        Raises:
            KeyError: no such key.
        """
        from ._dump import hash_of, to_plain
        from ._layers import lookup, parse_path

        data = to_plain(self, for_cache=True)
        return hash_of([lookup(data, parse_path(path)) for path in paths] if paths else data)

    def to_state(self) -> dict[str, Any]:
        """The declared fields as plain JSON types, secrets masked: for checkpoints."""
        from ._dump import to_plain

        return to_plain(self)

    def dumps(self) -> str:
        """The configuration as JSON, secrets masked. `from_yaml` reads it back."""
        from ._dump import as_json

        return as_json(self.to_state())

    def dump(self, path: StrPath | None = None) -> Path:
        """Write the configuration, by default to ``log_dir/cfg.json``; as YAML where the suffix says so.

        Returns:
            the file written.
        """
        from ._dump import as_yaml, write_text

        target = self.log_dir / "cfg.json" if path is None else Path(path)
        yaml = target.suffix in (".yaml", ".yml")
        write_text(as_yaml(self.to_state()) if yaml else self.dumps(), target)
        return target

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of a file for this class, for editors."""
        from ._schema import json_schema

        return json_schema(cls)

    @property
    def yaml_path(self) -> Path | None:
        """The first YAML file that this was read from."""
        return self._origin.yaml_path

    @property
    def cfg_path(self) -> Path:
        """The folder of that file, absolute; the working folder if there is none."""
        return self._origin.folder

    @property
    def rel_path(self) -> Path:
        """`cfg_path`, relative to the working folder if it lies in it. Data and results have folders here."""
        here = Path.cwd()
        return self.cfg_path.relative_to(here) if self.cfg_path.is_relative_to(here) else self.cfg_path

    @property
    def cache_dir(self) -> Path:
        """Folder of what can be computed again."""
        return self.rel_path / ".cache"

    @property
    def data_dir(self) -> Path:
        """Folder of data sets."""
        return self.rel_path / "data"

    @property
    def metadata_dir(self) -> Path:
        """Folder of what is known about data sets."""
        return self.rel_path / "metadata"

    @property
    def ckpt_dir(self) -> Path:
        """Folder of checkpoints."""
        return self.rel_path / "ckpt"

    @property
    def log_dir(self) -> Path:
        """Folder of this run's logs: ``logs/<start_time>``."""
        return self.rel_path / "logs" / self.start_time

    @property
    def start_time(self) -> str:
        """When this run started; equal on all ranks, never shared by two runs. See `_run.start_time`."""
        from ._run import start_time

        return start_time()

    @property
    def git_commit(self) -> str:
        """The commit checked out in the working folder; git runs only when this is read."""
        from ._run import git

        return git(Path.cwd(), "rev-parse", "HEAD")

    @property
    def git_status(self) -> str:
        """``git status --short`` of the working folder; git runs only when this is read."""
        from ._run import git

        return git(Path.cwd(), "status", "--short")
