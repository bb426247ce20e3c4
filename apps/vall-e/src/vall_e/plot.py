"""Loss curves as a picture."""

from __future__ import annotations

import io
import re
from pathlib import Path

import stateio

_PREDICTED = re.compile(r"level\d+|stt|len|nar-len")
SUFFIXES = (".png", ".svg", ".html")


def plot_losses(logs: Path, out: Path) -> bool:
    """Draw train and validation loss of each level and task, over every run below `logs`, into a .png, .svg or .html.

    Returns:
        Whether there was anything to draw.

    Raises:
        ValueError: `out` is of another kind.
        OSError: it cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{out}: a picture is written as {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from trainloop import read_metrics

    train: dict[str, dict[int, float]] = {}
    val: dict[str, dict[int, float]] = {}
    for path in sorted(logs.glob("*/metrics.jsonl")):
        for row in read_metrics(path):
            for key, value in row.items():
                split, _, what = key.rpartition(".")
                if not _PREDICTED.fullmatch(what) or not isinstance(value, float):
                    continue
                if row["kind"] == "step":
                    train.setdefault(what, {})[row["step"]] = value
                elif row["kind"] == "eval" and split == "val":
                    val.setdefault(what, {})[row["step"]] = value
    if not train and not val:
        return False
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for i, what in enumerate(sorted(train.keys() | val.keys())):
        color, name = f"C{i}", what.replace("level", "level ")
        points = sorted(train.get(what, {}).items())
        if points:
            axes.plot(*zip(*points, strict=True), color=color, alpha=0.2, linewidth=0.8)
            axes.plot(*zip(*_smooth(points), strict=True), color=color, label=f"train, {name}")
        points = sorted(val.get(what, {}).items())
        if points:
            axes.plot(*zip(*points, strict=True), "o--", color=color, label=f"validation, {name}")
    axes.set(xlabel="optimizer step", ylabel="cross-entropy (nats)", title="Loss of each codebook level and task")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, fontsize=8)
    html = out.suffix == ".html"
    drawn = io.BytesIO(f"<!doctype html><title>{logs}</title>".encode() if html else b"")
    drawn.seek(0, io.SEEK_END)
    figure.savefig(drawn, dpi=120, format="svg" if html else out.suffix[1:])
    plt.close(figure)
    out.parent.mkdir(parents=True, exist_ok=True)
    with stateio.atomic_writer(out) as f:
        buffered = io.BufferedWriter(f)
        buffered.write(drawn.getbuffer())
        buffered.detach()
    return True


def _smooth(points: list[tuple[int, float]], share: float = 0.05) -> list[tuple[int, float]]:
    """A running mean over a share of the points."""
    width = max(1, int(len(points) * share))
    values = [v for _, v in points]
    return [
        (
            points[i][0],
            sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1]),
        )
        for i in range(len(points))
    ]
