"""The confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_NUMBERED = 32  # classes, up to which every cell has its number and every class its name
_CELL = 0.34, 0.1  # inches of a cell, with and without a number


def confusion_picture(path: str | Path, record: Mapping[str, Any]) -> None:
    """Writes a PNG: a row for every class in the labels, a column for every predicted one, shares of the row in %.

    Args:
        path: the file to write.
        record: the content of a run's `confusion.json`: names of the classes, and pixels, a list for every row.
    """
    names, counts = record["classes"], np.array(record["pixels"], np.float64)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    numbered = len(names) <= _NUMBERED
    side = len(names) * _CELL[0 if numbered else 1]
    figure = Figure(figsize=(side + 2.2, side + 1.8), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    places = range(0, len(names), 1 if numbered else -(-len(names) // (2 * _NUMBERED)))
    shown = [names[place] for place in places]
    axes.set_xticks(places, shown, rotation=90, fontsize=7)
    axes.set_yticks(places, shown, fontsize=7)
    axes.set(xlabel="predicted", ylabel="label")
    axes.set_title("pixels of each label, %", fontsize=9)
    for (row, column), share in np.ndenumerate(shares if numbered else np.zeros((0, 0))):
        if share >= 0.5:
            colour = "white" if share > 60 else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=6, color=colour)
    canvas.print_png(str(path))
