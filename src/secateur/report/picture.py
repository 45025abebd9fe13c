"""The picture of a run: for every sample the image, the truth and what the networks made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

_DPI = 100
_CELL_WIDTH = 240  # pixels, at least
_GAP, _TITLE, _LEGEND_ROW, _LEGEND_COLUMN = 6, 24, 20, 120  # pixels


def picture(
    path: str | Path,
    images: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.integer]],
    rows: Mapping[str, Sequence[NDArray[np.integer]]],
    palette: Sequence[tuple[int, int, int]],
    names: Sequence[str],
) -> None:
    """Writes a PNG: one line per sample with image, truth and every network's prediction, and a legend of the classes.

    Args:
        path: the file to write.
        images: uint8 HxWx3, RGB.
        labels: HxW class indices; whatever is no class (void, 255) is black.
        rows: predictions by the name that stands above them, HxW class indices per sample.
        palette: RGB of every class, 0 to 255.
        names: name of every class.

    Raises:
        ValueError: there is no image, or labels or predictions are not one per image and of its size.
    """
    if not images:
        raise ValueError("picture: there is no image to draw")
    columns = {"truth": labels, **rows}
    for title, maps in columns.items():
        if [np.shape(each) for each in maps] != [image.shape[:2] for image in images]:
            raise ValueError(f"picture: {title!r} must hold one map per image, of the image's height and width")

    height, width = images[0].shape[:2]
    zoom = max(1.0, _CELL_WIDTH / width)
    cell_h, cell_w = round(height * zoom), round(width * zoom)
    total_w = (cell_w + _GAP) * (1 + len(columns)) + _GAP
    per_row = max(1, (total_w - 2 * _GAP) // _LEGEND_COLUMN)
    legend_h = -(-(len(names) + 1) // per_row) * _LEGEND_ROW + _GAP
    total_h = _TITLE + (cell_h + _GAP) * len(images) + legend_h

    figure = Figure(figsize=(total_w / _DPI, total_h / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for column, (title, cells) in enumerate({"image": images, **columns}.items()):
        left = _GAP + column * (cell_w + _GAP)
        figure.text(
            (left + cell_w / 2) / total_w, 1 - _TITLE / 2 / total_h, title, ha="center", va="center", fontsize=10
        )
        for row, cell in enumerate(cells):
            top = _TITLE + row * (cell_h + _GAP)
            axes = figure.add_axes((left / total_w, 1 - (top + cell_h) / total_h, cell_w / total_w, cell_h / total_h))
            axes.imshow(cell if column == 0 else coloured(cell, palette), interpolation="nearest", aspect="auto")
            axes.set_axis_off()
    for index, (name, colour) in enumerate([*zip(names, palette, strict=True), ("void", (0, 0, 0))]):
        left = _GAP + index % per_row * _LEGEND_COLUMN
        middle = legend_h - _GAP / 2 - (index // per_row + 0.5) * _LEGEND_ROW
        box = figure.add_axes((left / total_w, (middle - 6) / total_h, 12 / total_w, 12 / total_h))
        box.set(xticks=[], yticks=[], facecolor=tuple(channel / 255 for channel in colour))
        figure.text((left + 18) / total_w, middle / total_h, name, ha="left", va="center", fontsize=9)
    canvas.print_png(str(path))


def coloured(label: NDArray[np.integer], palette: Sequence[tuple[int, int, int]]) -> NDArray[np.uint8]:
    """HxW class indices -> HxWx3 RGB; black where there is no such class."""
    table = np.zeros((len(palette) + 1, 3), np.uint8)
    table[:-1] = palette
    known = (label >= 0) & (label < len(palette))
    return table[np.where(known, label, len(palette))]
