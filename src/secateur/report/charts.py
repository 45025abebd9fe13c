"""Charts as SVG text that takes its ink from the page around it, so that they suit a dark page and a light one."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["COLOURS", "curves", "histograms", "scatter", "widths"]

# Okabe and Ito: told apart by the colour-blind, and readable on black as on white (but for their yellow and black).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c6bb1")
_MARKS = "osD^vP*X"
_INK = "#010203"  # stands for the page's own colour of text
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.3,
    "legend.frameon": False,
}

Points = Sequence[tuple[float, float]]


def scatter(
    title: str,
    points: Mapping[str, Points],
    x: str,
    y: str,
    *,
    joined: bool = False,
    front: bool = False,
) -> str:
    """Points in a plane, a colour and a mark for every name.

    Args:
        title: what the chart shows, for those who can't see it.
        points: name -> (x, y) of each of its points.
        x, y: what the axes mean.
        joined: a line from point to point of a name, in the order of x.
        front: a stepped line along those that no other beats in both: less of x, more of y.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure, axes = _figure(5.2, 3.6 + 0.1 * len(points))
        if front:
            best = _front([point for some in points.values() for point in some])
            axes.step(*zip(*best, strict=True), where="post", color="#808080", linewidth=1, linestyle="--", zorder=1)
        for number, (name, some) in enumerate(points.items()):
            order = sorted(some) if joined else some
            axes.plot(
                [point[0] for point in order],
                [point[1] for point in order],
                linestyle="-" if joined else "none",
                marker=_MARKS[number // len(COLOURS) % len(_MARKS)],
                color=COLOURS[number % len(COLOURS)],
                markersize=6,
                label=name,
            )
        axes.set(xlabel=x, ylabel=y)
        _legend(figure)
        return _svg(figure, title)


def curves(title: str, lines: Mapping[str, Points], x: str, y: str, breaks: Mapping[str, float]) -> str:
    """Curves over time.

    Args:
        title: what the chart shows.
        lines: name -> (x, y) in time.
        x, y: what the axes mean.
        breaks: name -> where a stage begins: a vertical line with the name beside it.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure, axes = _figure(5.2, 3.0 + 0.1 * len(lines))
        for number, (name, some) in enumerate(lines.items()):
            axes.plot(*zip(*some, strict=True), color=COLOURS[number % len(COLOURS)], linewidth=1.3, label=name,
                      linestyle=("-", "--", ":")[number // len(COLOURS) % 3])  # fmt: skip
        for name, at in breaks.items():
            axes.axvline(at, color="#808080", linewidth=0.8, linestyle=":")
            axes.annotate(name, (at, 1), (2, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                          va="top", fontsize=7)  # fmt: skip
        axes.set(xlabel=x, ylabel=y)
        if len(lines) > 1:
            _legend(figure)
        return _svg(figure, title)


def histograms(title: str, edges: Sequence[float], counts: Mapping[str, Sequence[int]], x: str) -> str:
    """Several histograms of the same bins on top of each other, as outlines."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure, axes = _figure(5.2, 2.8)
        for number, (name, each) in enumerate(counts.items()):
            axes.stairs(each, edges, color=COLOURS[number], label=name, fill=False, linewidth=1.4)
        axes.set(xlabel=x, ylabel="channels")
        axes.set_yscale("symlog")
        _legend(figure)
        return _svg(figure, title)


def widths(title: str, layers: Mapping[str, Sequence[int]]) -> str:
    """A bar for every layer, as long as it was wide, filled as far as it still is.

    Args:
        title: what the chart shows.
        layers: layer -> channels before and after.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title, "axes.grid": False}):
        figure, axes = _figure(5.2, 0.6 + 0.17 * len(layers))
        places = np.arange(len(layers))
        before, after = np.array(list(layers.values())).T
        axes.barh(places, before, color="none", edgecolor="#808080", linewidth=0.8, height=0.8)
        axes.barh(places, after, color=COLOURS[0], height=0.8)
        axes.set_yticks(places, list(layers), fontsize=7)
        axes.set(ylim=(len(layers) - 0.4, -0.6), xlabel="channels: outlined before, filled after")
        for place, (whole, left) in enumerate(zip(before, after, strict=True)):
            axes.annotate(f"{left} of {whole}", (whole, place), (3, 0), textcoords="offset points", va="center",
                          fontsize=6)  # fmt: skip
        return _svg(figure, title)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)


def _front(points: Points) -> Points:
    """The points that no other beats, from the cheapest on."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda each: (each[0], -each[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def _svg(figure: Figure, title: str) -> str:
    """The figure as an element of a page: named, of the page's ink, with identifiers of its own."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL).replace(_INK, "currentColor")
    own = "c" + re.sub(r"\W+", "-", title)
    text = re.sub(r'\bid="', f'id="{own}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{own}-", text)
    head = f'<svg role="img" aria-label={quoteattr(title)}'
    return text.replace("<svg", head, 1).replace(">", f"><title>{escape(title)}</title>", 1).strip()
