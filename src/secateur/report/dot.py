"""The couplings of a network as Graphviz text, for `dot -Tpdf` and whatever else reads it."""

from __future__ import annotations

from typing import Any

from secateur.graph import Graph
from secateur.report.coupling import CARRIES, JOINS, MAKES, colours, stops


def couplings_dot(graph: Graph, data: dict[str, Any]) -> str:
    """Boxes are modules, ellipses operators that join channels, rounded fields groups; arrows lead as the channels do.

    Args:
        graph: the traced network.
        data: what `groups_data` says about it.
    """
    rows = stops(graph)
    hues = colours(graph, rows)
    lines = [f"digraph {_quoted(type(graph.model).__name__)} {{"]
    lines.append('  node [fontname="Helvetica", fontsize=10, shape=box];')
    for number, (group, row) in enumerate(zip(graph.groups, data["groups"], strict=True)):
        state = "pinned" if group.why else f"{100 * row['params_share']:.1f} % params"
        label = f"{group.name}\n{len(group)} units\n{state}"
        told = _attributes(label=label, tooltip=group.why or group.name, color=hues[number], style="rounded,bold")
        lines.append(f"  g{number} {told};")
    for place, stop in enumerate(rows):
        shape = {} if stop.module else {"shape": "ellipse", "style": "filled", "fillcolor": "#fff4d6"}
        lines.append(f"  s{place} {_attributes(label=stop.name, tooltip=stop.title, **shape)};")
        for number, mark in stop.marks.items():
            ends = f"s{place} -> g{number}" if mark == MAKES else f"g{number} -> s{place}"
            style = {JOINS: {"dir": "none", "style": "bold"}, CARRIES: {"dir": "none", "style": "dotted"}}.get(mark, {})
            lines.append(f"  {ends} {_attributes(color=hues[number], **style)};")
    return "\n".join([*lines, "}"]) + "\n"


def _attributes(**values: str) -> str:
    return f"[{', '.join(f'{key}={_quoted(value)}' for key, value in values.items())}]"


def _quoted(text: str) -> str:
    """A string as DOT writes it; only quotes, backslashes and line breaks mean something in one."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
