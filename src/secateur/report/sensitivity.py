"""Sensitivity curves: a table for the terminal, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

_COLUMNS, _CELL = 4, (2.6, 1.9)  # panels in a row; inches of one


def sensitivity_table(record: Mapping[str, Any]) -> Table:
    """One row per group: the points of mIoU that it loses at each share, and the class that loses most.

    Args:
        record: the content of `sensitivity.json`.
    """
    table = Table(title="Points of mIoU lost", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("group", overflow="fold")
    table.add_column("units", justify="right")
    for ratio in record["ratios"]:
        table.add_column(f"-{ratio:.0%}", justify="right", no_wrap=True)
    table.add_column("hurts most", no_wrap=True)
    for curve in record["curves"]:
        base, *points = curve["points"]
        cells = (f"{100 * (base['mIoU'] - point['mIoU']):.1f}" for point in points)
        table.add_row(Text(curve["group"]), str(curve["units"]), *cells, Text(_worst(curve)))
    return table


def sensitivity_picture(path: str | Path, record: Mapping[str, Any]) -> None:
    """Writes a PNG with a panel for every group: mIoU (black) and every class (grey) over the share removed.

    Args:
        path: the file to write.
        record: the content of `sensitivity.json`.
    """
    curves = record["curves"]
    rows = -(-len(curves) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _CELL[0], rows * _CELL[1]), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for number, curve in enumerate(curves):
        axes = figure.add_subplot(rows, _COLUMNS, number + 1)
        shares = [100 * point["removed"] for point in curve["points"]]
        for name in curve["points"][0]:
            values = [point[name] for point in curve["points"]]
            if name == "removed" or None in values:
                continue
            colour, width, above = ("black", 1.8, 3) if name == "mIoU" else ("0.7", 0.7, 2)
            axes.plot(shares, [100 * value for value in values], color=colour, linewidth=width, zorder=above)
        axes.set_title(f"{curve['group']} ({curve['units']})", fontsize=7)
        axes.set_ylim(0, 100)
        axes.set_xlim(0, 100)
        axes.tick_params(labelsize=6)
        axes.grid(alpha=0.25, linewidth=0.5)
    figure.supxlabel("channels of the group removed, %", fontsize=8)
    figure.supylabel("IoU, %: mean black, classes grey", fontsize=8)
    figure.savefig(path)


def _worst(curve: Mapping[str, Any]) -> str:
    """The class that falls most anywhere on the curve, and by how much."""
    base, *points = curve["points"]
    falls = {
        name: 100 * (value - min(point[name] for point in points))
        for name, value in base.items()
        if name not in ("removed", "mIoU") and value is not None and all(point[name] is not None for point in points)
    }
    if not falls or max(falls.values()) <= 0:
        return "-"
    name = max(falls, key=lambda each: falls[each])
    return f"{name} {falls[name]:.1f}"
