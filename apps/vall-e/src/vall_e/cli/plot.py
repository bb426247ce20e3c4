"""`vall-e-plot`: loss curves of a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vall-e-plot",
        description="Draw the losses of training and validation per level, from logs/*/metrics.jsonl.",
    )
    parser.add_argument("folder", type=Path, help="a run's folder (with logs/ in it), or its logs/")
    parser.add_argument("--out", type=Path, help="the picture: .png, .svg or .html (default: loss.png in the folder)")
    args = parser.parse_args(argv)

    from vall_e.plot import plot_losses

    logs = args.folder / "logs" if (args.folder / "logs").is_dir() else args.folder
    out = args.out or args.folder / "loss.png"
    try:
        if not logs.is_dir() or not plot_losses(logs, out):
            raise ValueError(f"{logs}: no metrics.jsonl with losses below this folder")
    except (ValueError, OSError) as e:
        print(f"vall-e-plot: {e}", file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
