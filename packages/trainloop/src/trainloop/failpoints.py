"""Named places where a test can make the process die."""

from __future__ import annotations

import os
import signal

VARIABLE = "TRAINLOOP_FAILPOINT"
NAMES = (
    "after_tmp_write",
    "before_manifest",
    "before_rename",
    "mid_prune",
    "mid_eval",
    "mid_async_save",
)
_hits: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Die here, as if by SIGKILL, when `TRAINLOOP_FAILPOINT` is `name` or, for the nth time, `name:n`."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    target, _, nth = wanted.partition(":")
    if target != name:
        return
    _hits[name] = _hits.get(name, 0) + 1
    if _hits[name] >= int(nth or 1):
        if hasattr(signal, "SIGKILL"):
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(137)
