"""`python -m samplers report LENGTHS.txt`: choose the limits of a `BucketSampler` by their effect."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from samplers._bounds import optimal_bounds
from samplers._bucket import BucketSampler
from samplers._costs import COSTS
from samplers._plot import plot_padding

COLUMNS = ("max_cost", "max_size", "window", "batches", "waste", "used", "over", "co-pair", "lag1")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _report(options)
    except (OSError, ValueError, ImportError) as error:
        print(f"samplers report: {error}", file=sys.stderr)
        return 2


def read_lengths(path: str) -> list[float]:
    """One number per line, the first field of it; empty lines and lines that begin with # are skipped."""
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    lengths = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.replace(",", " ").split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            lengths.append(float(fields[0]))
        except ValueError:
            raise ValueError(f"{path}, line {number}: expected a number, found {fields[0]!r}") from None
    return lengths


def _report(options: argparse.Namespace) -> int:
    lengths = read_lengths(options.lengths)
    print(_row(COLUMNS))
    last: BucketSampler | None = None
    for max_cost, max_size, window in itertools.product(options.max_cost, options.max_size, options.window):
        bounds = None if options.buckets is None else optimal_bounds(lengths, options.buckets)
        last = BucketSampler(
            lengths,
            max_cost=max_cost,
            max_size=max_size,
            window=window,
            bounds=bounds,
            seed=options.seed,
            cost=options.cost,
            overlong=options.overlong,
        )
        report = last.report()
        cells = (
            "-" if max_cost is None else f"{max_cost:g}",
            "-" if max_size is None else f"{max_size}",
            f"{last.window}" if bounds is None else f"{options.buckets} fixed",
            f"{report.batches}",
            f"{report.waste:.2%}",
            "-" if report.budget_used is None else f"{report.budget_used:.1%}",
            f"{report.over_budget:.1%}",
            f"{report.co_pair:.2%}",
            f"{report.lag1:+.3f}",
        )
        print(_row(cells))
    if options.plot and last is not None:
        plot_padding(options.plot, *last.picture(), str(last.report()))
        print(f"the padding of the last row: {options.plot}")
    return 0


def _row(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>8}" for cell in cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m samplers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser(
        "report", help="waste, batches, co-pair and lag1 for given limits (each combination is a row)"
    )
    report.add_argument("lengths", help="a text file with one length per line, or - for standard input")
    report.add_argument("--max-cost", type=float, nargs="+", default=[None], help="budget of a batch")
    report.add_argument("--max-size", type=int, nargs="+", default=[None], help="most items in a batch")
    report.add_argument("--window", type=int, nargs="+", default=[None], help="items sorted together")
    report.add_argument("--buckets", type=int, help="so many fixed buckets (optimal bounds), not windows")
    report.add_argument("--cost", choices=COSTS, default="padded", help="of a batch (default: padded)")
    report.add_argument("--overlong", choices=("error", "skip", "singleton"), default="error")
    report.add_argument("--seed", type=int, default=0)
    report.add_argument("--plot", metavar="OUT.png", help="draw the padding of the last row")
    return parser


if __name__ == "__main__":
    sys.exit(main())
