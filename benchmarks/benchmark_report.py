"""What every benchmark prints and keeps: tables, as text while it runs and as JSON with what they were made by."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Rows = dict[str, dict[str, Any]]  # the name of a contender to its figures, or to {"missing": why}

_HERE = Path(__file__).parent


def argument_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """With the two arguments that all of them have: `--quick` and `--out`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short: a check that all of it runs")
    parser.add_argument("--out", type=Path, help=f"default: benchmarks/results/{name}-DATE.json")
    return parser


class Report:
    """Tables of one run, written to `out` after each, so that an interrupted run keeps what it has.

    Args:
        name: of the benchmark.
        packages: whose versions are recorded; one that is not installed is recorded as missing.
        out: the JSON, by default `results/NAME-DATE.json` beside this file.
        facts: more that was the same for all tables.
    """

    def __init__(self, name: str, packages: Iterable[str], out: Path | None = None, **facts: Any) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self.out = out or _HERE / "results" / f"{name}-{now:%Y-%m-%d}.json"
        self._results: dict[str, Any] = {
            "date": now.isoformat(timespec="seconds"),
            "commit": _commit(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "load_before": _load(),
            **facts,
            "versions": {package: _version(package) for package in packages},
            "tables": {},
        }

    def table(self, title: str, rows: Rows) -> None:
        """Print a table and keep it."""
        columns = list(dict.fromkeys(key for row in rows.values() for key in row if key != "missing"))
        print(f"\n{title}\n\n| |", " | ".join(columns), "|\n|---|", "---|" * len(columns), sep="")
        for name, row in rows.items():
            cells = [row["missing"]] if "missing" in row else [_cell(row.get(column)) for column in columns]
            print(f"| {name} |", " | ".join(cells), "|")
        sys.stdout.flush()
        self._results["tables"][title] = rows
        self._results["load_after"] = _load()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self._results, indent=2) + "\n")

    def close(self) -> None:
        """Say where it all is."""
        print(f"\n{self.out}")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _load() -> tuple[float, float, float] | None:
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _commit() -> str:
    command = ["git", "-C", str(_HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
