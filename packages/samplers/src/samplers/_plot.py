"""A picture of the padding in a sampler's batches. Needs matplotlib (`samplers[plot]`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SHOWN = 200  # batches drawn; of more, every k-th


def plot_padding(
    path: str | Path,
    costs: NDArray[np.float64],
    order: NDArray[np.int64],
    ends: NDArray[np.int64],
    max_cost: float | None,
    title: str,
) -> None:
    """Draw each batch as a bar of real cost with its padding on top, and the range of costs within it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install 'samplers[plot]'") from error
    ordered, starts, sizes = costs[order], ends[:-1], np.diff(ends)
    longest, shortest = np.maximum.reduceat(ordered, starts), np.minimum.reduceat(ordered, starts)
    real = np.add.reduceat(ordered, starts)
    shown = np.arange(0, sizes.size, max(1, -(-sizes.size // _SHOWN)))
    x = np.arange(shown.size)

    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=False)
    top.bar(x, real[shown], width=1.0, label="items")
    top.bar(
        x, (longest * sizes - real)[shown], bottom=real[shown], width=1.0, color="tab:red", label="padding"
    )
    if max_cost is not None:
        top.axhline(max_cost, color="black", linewidth=0.8, linestyle="--", label="budget")
    top.set_title(title, fontsize="small")
    top.set(xlabel="batch, in the order of the epoch", ylabel="padded cost")
    top.legend(loc="lower right")
    by_length = shown[np.argsort(longest[shown], kind="stable")]
    bottom.bar(x, (longest - shortest)[by_length], bottom=shortest[by_length], width=1.0, color="tab:green")
    bottom.set(xlabel="batch, sorted by its longest item", ylabel="shortest to longest item")
    figure.savefig(path, dpi=120)
