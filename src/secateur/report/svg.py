"""The couplings of a network as an SVG: modules in rows, from the first called to the last, and a lane per group.

Nothing but the standard library draws it, and any browser shows it; a tooltip on everything tells the details.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from secateur.graph import Graph
from secateur.report.coupling import CARRIES, JOINS, MAKES, PINNED, READS, Stop, colours, stops
from secateur.report.groups import shortened

_MARGIN, _HEAD, _BOX, _LANE, _PORT, _GAP = 16, 76, 280, 18, 13, 5  # pixels
_LETTER = 6.1  # width of one at font size 10
_ORDER = (READS, JOINS, CARRIES, MAKES)  # channels enter a box at its top and leave at its bottom


def couplings_svg(graph: Graph, data: dict[str, Any]) -> str:
    """The picture.

    Args:
        graph: the traced network.
        data: what `groups_data` says about it.
    """
    rows = stops(graph)
    tops, ports = _rows(rows)
    lanes = _lanes(ports)
    labels = [_label(row, 40) for row in data["groups"]]
    right = _MARGIN + _BOX + (max(lanes.values(), default=0) + 2) * _LANE
    width = right + round(max([40, *map(len, labels)]) * _LETTER) + _MARGIN
    height = tops[-1] + _MARGIN
    svg = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "width": f"{width}",
            "height": f"{height}",
            "viewBox": f"0 0 {width} {height}",
            "font-family": "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace",
            "font-size": "10",
        },
    )
    network = type(graph.model).__name__
    _add(svg, "title", text=f"Couplings of {network}")
    _add(svg, "rect", width=width, height=height, fill="white")
    _head(svg, f"{network}: {data['units']} units in {len(labels)} groups, {data['prunable']} prunable")
    _sections(svg, rows, tops)
    for number, (label, colour) in enumerate(zip(labels, colours(graph, rows), strict=True)):
        part = _add(svg, "g", fill=colour, stroke=colour)
        full, why = _label(data["groups"][number]), graph.groups[number].why
        _add(part, "title", text=f"{full}: {why}" if why else full)
        _group(part, label, _MARGIN + _BOX + (lanes[number] + 1) * _LANE, right, ports[number])
    for row, top, below in zip(rows, tops, tops[1:], strict=False):
        _box(svg, row, top, below - top - _GAP)
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


# -- where everything is ----------------------------------------------------------------------------------------------


def _rows(rows: list[Stop]) -> tuple[list[int], dict[int, list[tuple[int, str]]]]:
    """The top of every row and of what is below the last; group number -> (y, mark) from the top down."""
    tops, ports = [_HEAD], dict[int, list[tuple[int, str]]]()
    for row in rows:
        marks = sorted(row.marks.items(), key=lambda item: (_ORDER.index(item[1]), item[0]))
        height = max(20, _PORT * len(marks) + 6)
        first = tops[-1] + (height - _PORT * (len(marks) - 1)) // 2
        for place, (group, mark) in enumerate(marks):
            ports.setdefault(group, []).append((first + place * _PORT, mark))
        tops.append(tops[-1] + height + _GAP)
    return tops, ports


def _lanes(ports: dict[int, list[tuple[int, str]]]) -> dict[int, int]:
    """A lane for every group; the short ones next to the boxes, the skips outside."""
    taken: list[list[tuple[int, int]]] = []
    lanes = {}
    for number in sorted(ports, key=lambda group: (ports[group][-1][0] - ports[group][0][0], ports[group][0][0])):
        first, last = ports[number][0][0] - _PORT, ports[number][-1][0] + _PORT
        free = (i for i, spans in enumerate(taken) if all(last < top or end < first for top, end in spans))
        lane = lanes[number] = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((first, last))
    return lanes


# -- how it is drawn --------------------------------------------------------------------------------------------------


def _add(parent: ElementTree.Element, tag: str, *, text: str = "", **attributes: Any) -> ElementTree.Element:
    """A new element; underscores in names of attributes stand for dashes."""
    named = {key.replace("_", "-"): str(value) for key, value in attributes.items()}
    element = ElementTree.SubElement(parent, tag, named)
    # Control characters are no XML, whatever they are escaped as; a line break is, and tooltips show it.
    element.text = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text) or None
    return element


def _head(svg: ElementTree.Element, title: str) -> None:
    """The title, and what the marks mean."""
    _add(svg, "text", text=title, x=_MARGIN, y=26, font_size=15, font_weight="bold", fill="#222")
    x = _MARGIN + 6
    words = {READS: "reads the channels", JOINS: "joins", CARRIES: "channel by channel", MAKES: "makes them"}
    for mark, word in words.items():
        _mark(_add(svg, "g", fill="#444", stroke="#444"), mark, x, 46)
        _add(svg, "text", text=word, x=x + 11, y=50, fill="#444")
        x += round(len(word) * _LETTER) + 36
    _add(svg, "line", x1=x - 4, y1=46, x2=x + 20, y2=46, stroke=PINNED, stroke_width=7, stroke_dasharray="5 3")
    _add(svg, "text", text="pinned: point at it for the reason", x=x + 28, y=50, fill="#444")


def _sections(svg: ElementTree.Element, rows: list[Stop], tops: list[int]) -> None:
    """A grey field behind neighbours that are inside the same module."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end].section != rows[start].section:
            if rows[start].section:
                y, height = tops[start] - 2, tops[end] - tops[start] - 1
                _add(svg, "rect", x=_MARGIN - 8, y=y, width=_BOX + 16, height=height, rx=5, fill="#eceef1")
            start = end


def _group(part: ElementTree.Element, label: str, x: int, right: int, ports: list[tuple[int, str]]) -> None:
    """A band down its lane, a line from every box to it, and the label beside its first mark."""
    first, last = ports[0][0], ports[-1][0]
    dashes = {"stroke_dasharray": "5 3"} if part.get("fill") == PINNED else {}
    _add(part, "line", x1=x, y1=first, x2=right - 4, y2=first, stroke_width=0.6, stroke_dasharray="1 3")
    _add(part, "line", x1=x, y1=first - 2, x2=x, y2=last + 2, stroke_width=7, stroke_opacity=0.45, **dashes)
    for y, mark in ports:
        _add(part, "line", x1=_MARGIN + _BOX, y1=y, x2=x, y2=y, stroke_width=1.2)
        _mark(part, mark, x, y)
    _add(part, "text", text=label, x=right, y=first + 3.5, stroke="none", fill="#333")


def _mark(part: ElementTree.Element, mark: str, x: int, y: int) -> None:
    if mark == JOINS:
        _add(part, "path", d=f"M{x - 6} {y}L{x} {y - 6}L{x + 6} {y}L{x} {y + 6}Z", stroke="white")
    elif mark == READS:
        _add(part, "circle", cx=x, cy=y, r=4, fill="white", stroke_width=2)
    else:
        _add(part, "circle", cx=x, cy=y, r=5 if mark == MAKES else 2.5, stroke="white", stroke_width=1)


def _box(svg: ElementTree.Element, row: Stop, top: int, height: int) -> None:
    part = _add(svg, "g")
    _add(part, "title", text=row.title)
    left = _MARGIN if row.module else _MARGIN + 16  # operators stand back
    right, middle = _MARGIN + _BOX, top + height / 2 + 3.5
    rounded, fill, stroke = (3, "white", "#555") if row.module else (10, "#fff4d6", "#b8860b")
    _add(part, "rect", x=left, y=top, width=right - left, height=height, rx=rounded, fill=fill, stroke=stroke)
    room = int((right - left - 16) / _LETTER)
    _add(part, "text", text=shortened(row.name, room), x=left + 8, y=middle, fill="#222")
    note = ", ".join(row.notes)
    if note and len(row.name) + len(note) + 2 <= room:
        _add(part, "text", text=note, x=right - 8, y=middle, fill="#8a6508", text_anchor="end")


def _label(group: dict[str, Any], width: int | None = None) -> str:
    """ "conv1: 64 units, 0.3 % params, 8.2 % MACs", the name cut to a width."""
    name = group["name"] if width is None else shortened(group["name"], width)
    shares = f"{100 * group['params_share']:.1f} % params, {100 * group['macs_share']:.1f} % MACs"
    return f"{name}: {group['units']} units, {shares}" + (", pinned" if group["pinned"] else "")
