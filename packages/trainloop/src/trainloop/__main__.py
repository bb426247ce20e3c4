"""`python -m trainloop verify-resume package.module:build --steps 5`"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand. 0: it resumes exactly; 1: it does not; 2: it could not be told."""
    parser = argparse.ArgumentParser(prog="python -m trainloop", description="Tools around a training.")
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser(
        "verify-resume",
        help="train in one go and interrupted, and name the first component that differs",
    )
    verify.add_argument("build", help="module:function; function(dir, until) returns a Trainer")
    verify.add_argument("--steps", type=int, default=5, help="before and after the interruption (5)")
    options = parser.parse_args(arguments)

    from trainloop.verify import locate, verify_resume

    sys.path.insert(0, os.getcwd())
    try:
        difference = verify_resume(locate(options.build), options.steps)
    except ValueError as e:
        print(f"verify-resume: {e}", file=sys.stderr)
        return 2
    if difference is None:
        n = options.steps
        print(f"resumes exactly: {n} + {n} steps equal {2 * n} steps, bit for bit")
        return 0
    print(f"does not resume exactly: {difference}")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
