"""basecfg against pydantic-settings, OmegaConf, Hydra, jsonargparse, tyro, draccus, msgspec and plain pydantic.

    uv run --with pydantic-settings --with omegaconf --with hydra-core --with jsonargparse --with tyro --with draccus \\
        --with msgspec python benchmarks/basecfg.py [--quick] [--out FILE]

Loads one nested YAML file of 148 keys in 200 lines, validates it and sets five values on top where the peer can.
Contenders take turns in one process, after a warm-up; a figure is the median of ratios of CPU time to that of
`yaml.load` with the C loader in the same round. What a peer builds from the class at each start (a parser, a schema)
counts, since every program start pays it; what it keeps between calls (pydantic's models) does not. Imports are timed
in processes of their own, as CPU time beyond that of bare python.
"""

from __future__ import annotations

# ruff: noqa: E402 - this file has the name of the package, so its folder must be searched last
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path = [p for p in sys.path if Path(p).resolve() != HERE.resolve()] + [str(HERE)]

import dataclasses
import functools
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import yaml
from benchmark_report import Report, argument_parser

PACKAGES = (
    "basecfg",
    "pydantic",
    "pyyaml",
    "pydantic-settings",
    "omegaconf",
    "hydra-core",
    "jsonargparse",
    "tyro",
    "draccus",
    "msgspec",
)
PARTS = ("data", "model", "codec", "trainer", "sampler", "eval", "export", "text", "audio", "cache", "cluster", "log")
OVERRIDES = {
    "seed": "7",
    "trainer.steps": "5000",
    "trainer.optimizer.lr": "0.003",
    "model.schedule.kind": "linear",
    "log.enabled": "false",
}
LIMIT = "yaml.load, C loader"
Row = dict[str, Any]


def yaml_text() -> str:
    """148 keys in 200 lines."""
    lines = ["# An experiment.", "name: baseline", "seed: 3", "device: cuda:0", "notes: first try with the new data"]
    for i, part in enumerate(PARTS):
        lines += [
            f"# What {part} does.",
            f"{part}:",
            f"  title: the {part} part",
            f"  steps: {1000 * (i + 1)}",
            f"  rate: {(i + 1) / 8}",
            f"  enabled: {'true' if i % 2 else 'false'}",
            f"  tags: [{part}, fast, v{i}]",
            "  optimizer:",
            "    kind: adamw",
            f"    lr: {i + 1}.0e-4",
            "    betas: [0.9, 0.999]",
            "    eps: 1.0e-8",
            "  schedule:",
            "    kind: cosine",
            f"    warmup: {10 * i}",
            "    floor: 0.1",
        ]
    lines += ["# The end.", "", ""]
    return "\n".join(lines) + "\n"


# The same classes once for basecfg, once as dataclasses, once for pydantic and once for msgspec. They are made from one
# table, so that no contender has less to check than another.

OPTIMIZER = {"kind": (str, "adamw"), "lr": (float, 1e-3), "betas": (list[float], [0.9, 0.99]), "eps": (float, 1e-8)}
SCHEDULE = {"kind": (str, "cosine"), "warmup": (int, 0), "floor": (float, 0.0)}
PART = {
    "title": (str, ""),
    "steps": (int, 0),
    "rate": (float, 0.0),
    "enabled": (bool, True),
    "tags": (list[str], []),
}
ROOT = {"name": (str, ""), "seed": (int, 0), "device": (str, "cpu"), "notes": (str, "")}


def build(make: Callable[[str, dict[str, Any]], Any]) -> Any:
    """The root class out of one maker of classes: name and {field: (type, default)}, a class being its own default."""
    optimizer, schedule = make("Optimizer", OPTIMIZER), make("Schedule", SCHEDULE)
    part = make("Part", {**PART, "optimizer": (optimizer, optimizer), "schedule": (schedule, schedule)})
    return make("Root", {**ROOT, **{name: (part, part) for name in PARTS}})


def as_dataclass(name: str, fields: dict[str, Any]) -> Any:
    def default(value: Any) -> Any:
        factory = value if isinstance(value, type) else lambda: list(value)
        return dataclasses.field(default_factory=factory) if isinstance(value, type | list) else value

    made = dataclasses.make_dataclass(
        name, [(key, kind, default(value)) for key, (kind, value) in fields.items()], namespace={"__module__": __name__}
    )
    made.__module__ = __name__
    globals()[name] = made  # peers look names up in the module
    return made


def as_section(name: str, fields: dict[str, Any]) -> Any:
    import basecfg

    base = basecfg.BaseConfig if name == "Root" else basecfg.Section
    body: dict[str, Any] = {"__annotations__": {key: kind for key, (kind, _) in fields.items()}, "__module__": __name__}
    body |= {key: value for key, (_, value) in fields.items() if not isinstance(value, type)}
    return type(base)(name, (base,), body)


def as_pydantic(name: str, fields: dict[str, Any], base: Any = None) -> Any:
    import pydantic

    def default(value: Any) -> Any:
        return pydantic.Field(default_factory=value) if isinstance(value, type) else value

    kinds = {key: (kind, default(value)) for key, (kind, value) in fields.items()}
    extra = {"__base__": base} if base and name == "Root" else {"__config__": {"extra": "forbid"}}
    return pydantic.create_model(name, **extra, **kinds)


def as_struct(name: str, fields: dict[str, Any]) -> Any:
    import msgspec

    def default(value: Any) -> Any:
        factory = value if isinstance(value, type) else lambda: list(value)
        return msgspec.field(default_factory=factory) if isinstance(value, type | list) else value

    kinds = [(key, kind, default(value)) for key, (kind, value) in fields.items()]
    return msgspec.defstruct(name, kinds, forbid_unknown_fields=True)


# Contenders: each makes a function of no arguments that loads the file once.


def c_loader(path: Path) -> Callable[[], Any]:
    def run() -> Any:
        with path.open("rb") as file:
            return yaml.load(file, yaml.CSafeLoader)

    return run


def python_loader(path: Path) -> Callable[[], Any]:
    return lambda: yaml.load(path.read_bytes(), yaml.SafeLoader)


def ours(path: Path) -> Callable[[], Any]:
    config, overrides = build(as_section), [f"{key}={value}" for key, value in OVERRIDES.items()]
    return lambda: config.from_yaml(path, overrides=overrides)


def ours_cli(path: Path) -> Callable[[], Any]:
    config, overrides = build(as_section), [f"{key}={value}" for key, value in OVERRIDES.items()]
    return lambda: config.from_cli(["--yaml", str(path), *overrides])


def plain_pydantic(path: Path) -> Callable[[], Any]:
    root, load = build(as_pydantic), c_loader(path)
    return lambda: root.model_validate(load())


def plain_msgspec(path: Path) -> Callable[[], Any]:
    import msgspec.yaml

    root = build(as_struct)
    return lambda: msgspec.yaml.decode(path.read_bytes(), type=root)


def pydantic_settings(path: Path, arguments: list[str] | None = None) -> Callable[[], Any]:
    from pydantic_settings import BaseSettings, SettingsConfigDict, YamlConfigSettingsSource

    class Base(BaseSettings):
        model_config = SettingsConfigDict(yaml_file=path, env_prefix="BENCH_", env_nested_delimiter="__")

        @classmethod
        def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, env_settings: Any, **_: Any) -> Any:
            return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)

    root = build(functools.partial(as_pydantic, base=Base))
    return lambda: root() if arguments is None else root(_cli_parse_args=arguments)


def pydantic_settings_cli(path: Path) -> Callable[[], Any]:
    return pydantic_settings(path, [f"--{key}={value}" for key, value in OVERRIDES.items()])


def omegaconf(path: Path) -> Callable[[], Any]:
    from omegaconf import OmegaConf

    root, dotlist = build(as_dataclass), [f"{key}={value}" for key, value in OVERRIDES.items()]
    return lambda: OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(root), OmegaConf.load(path), OmegaConf.from_dotlist(dotlist))
    )


def hydra(path: Path) -> Callable[[], Any]:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    root, dotlist = build(as_dataclass), [f"{key}={value}" for key, value in OVERRIDES.items()]

    def run() -> Any:
        with initialize_config_dir(config_dir=str(path.parent), version_base=None):
            return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(root), compose(path.stem, dotlist)))

    return run


def jsonargparse(path: Path) -> Callable[[], Any]:
    from jsonargparse import ArgumentParser

    root = build(as_dataclass)
    arguments = ["--config", str(path), *(f"--{key}={value}" for key, value in OVERRIDES.items())]

    def run() -> Any:
        parser = ArgumentParser()
        parser.add_argument("--config", action="config")
        parser.add_class_arguments(root)
        return parser.instantiate(parser.parse_args(arguments))

    return run


def tyro(path: Path) -> Callable[[], Any]:
    import tyro

    root, load = build(as_dataclass), c_loader(path)
    arguments = [f"--{key}={value}" for key, value in OVERRIDES.items() if key != "log.enabled"] + ["--log.no-enabled"]
    return lambda: tyro.cli(root, args=arguments, default=_from_dict(root, load()))


def _from_dict(cls: Any, data: dict[str, Any]) -> Any:
    """tyro reads no files: what a user writes beside it."""
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    return cls(
        **{key: _from_dict(kinds[key], v) if dataclasses.is_dataclass(kinds[key]) else v for key, v in data.items()}
    )


def draccus(path: Path) -> Callable[[], Any]:
    import draccus

    root, arguments = build(as_dataclass), [f"--{key}={value}" for key, value in OVERRIDES.items()]
    return lambda: draccus.parse(root, path, args=arguments)


CONTENDERS: dict[str, Callable[[Path], Callable[[], Any]]] = {
    LIMIT: c_loader,
    "basecfg, 5 overrides": ours,
    "basecfg from_cli, 5 overrides": ours_cli,
    "pydantic over the C loader": plain_pydantic,
    "msgspec": plain_msgspec,
    "pydantic-settings": pydantic_settings,
    "pydantic-settings, 5 arguments": pydantic_settings_cli,
    "yaml.load, Python loader": python_loader,
    "draccus, 5 arguments": draccus,
    "hydra, 5 overrides": hydra,
    "jsonargparse, 5 arguments": jsonargparse,
    "omegaconf, 5 overrides": omegaconf,
    "tyro, 5 arguments": tyro,
}

IMPORTS = {
    "basecfg": "from basecfg import BaseConfig, Section",
    "basecfg, one class read": "from basecfg import BaseConfig\nclass C(BaseConfig):\n    a: int = 0\nC()",
    "pydantic": "from pydantic import BaseModel",
    "pydantic-settings": "from pydantic_settings import BaseSettings",
    "msgspec": "import msgspec.yaml",
    "omegaconf": "from omegaconf import OmegaConf",
    "hydra": "import hydra",
    "jsonargparse": "from jsonargparse import ArgumentParser",
    "tyro": "import tyro",
    "draccus": "import draccus",
}


def loads(path: Path, rounds: int) -> dict[str, Row]:
    runs: dict[str, Callable[[], Any]] = {}
    rows: dict[str, Row] = {}
    for name, make in CONTENDERS.items():
        try:
            runs[name] = make(path)
        except ImportError as error:
            rows[name] = {"missing": f"missing: {error}"}
    for name, run in runs.items():  # warm, and each does what is measured
        found = run()
        if " 5 " in name:
            assert (found.seed, found.trainer.optimizer.lr, found.model.schedule.kind) == (7, 0.003, "linear"), name
            assert not found.log.enabled, name
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in random.sample(list(runs), len(runs)):
            began = time.process_time()  # one thread that waits for nothing: what others do with the cores is left out
            runs[name]()
            seconds[name].append(time.process_time() - began)
    for name in runs:
        ratios = [mine / limit for mine, limit in zip(seconds[name], seconds[LIMIT], strict=True)]
        rows[name] = {"cpu_ms": 1000 * statistics.median(seconds[name]), "of_c_loader": statistics.median(ratios)}
    return {name: rows[name] for name in CONTENDERS}


def imports(rounds: int) -> dict[str, Row]:
    """CPU milliseconds of an import beyond those of bare python."""
    code = "import time\nbegan = time.process_time()\n{}\nprint(time.process_time() - began)"
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    rows: dict[str, Row] = {}
    for _ in range(rounds):
        for name in random.sample(list(IMPORTS), len(IMPORTS)):
            if name in rows:
                continue
            command = [sys.executable, "-c", code.format(IMPORTS[name])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                rows[name] = {"missing": f"missing: {done.stderr.strip().splitlines()[-1]}"}
            else:
                seconds[name].append(float(done.stdout))
    rows |= {
        name: {"cpu_ms": 1000 * statistics.median(times), "least_cpu_ms": 1000 * min(times)}
        for name, times in seconds.items()
        if name not in rows
    }
    return {name: rows[name] for name in IMPORTS}


def main() -> None:
    options = argument_parser(__doc__, "basecfg").parse_args()
    report = Report("basecfg", PACKAGES, options.out)
    text = yaml_text()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experiment.yaml"
        path.write_text(text)
        name = f"load, validate and override: {_keys(yaml.safe_load(text))} keys in {text.count(chr(10))} lines"
        report.table(name, loads(path, 5 if options.quick else 40))
    report.table("import, beyond bare python", imports(2 if options.quick else 15))
    report.close()


def _keys(data: Any) -> int:
    return sum(map(_keys, data.values())) if isinstance(data, dict) else 1


if __name__ == "__main__":
    main()
