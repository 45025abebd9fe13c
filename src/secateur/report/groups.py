"""The groups of a network: as data for machines, as a table of at most 100 columns for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from secateur.costs import CostModel
from secateur.graph import Coupling, Graph, Place

WIDTH = 100
_INDENT = "    "
_LINES = 2  # that a list of tensors or couplings may fill; the data has all of it


def groups_data(graph: Graph) -> dict[str, Any]:
    """Everything that `secateur inspect --json` tells about a traced network; the keys are those of docs/inspect.md."""
    model = CostModel(graph)
    total = model()
    saved = {column: model.saved(column) for column in ("params", "macs")}
    groups = []
    for number, group in enumerate(graph.groups):
        removed = np.zeros(graph.units, dtype=bool)
        removed[list(group.units)] = True
        rest = model(removed)
        groups.append(
            {
                "name": group.name,
                "units": len(group),
                "prunable": bool(graph.prunable[group.units[0]]),
                "pinned": group.pinned,
                "pinned_by": None if group.place is None else _place(group.place),
                "params_share": 1 - rest.params / total.params if total.params else 0.0,
                "macs_share": 1 - rest.macs / total.macs if total.macs else 0.0,
                "unit_params": int(saved["params"][group.units[0]]),
                "unit_macs": int(saved["macs"][group.units[0]]),
                "members": [list(member) for member in group.members],
                "couplings": [
                    _coupling(graph, coupling, number) for coupling in graph.couplings if number in coupling.groups
                ],
            }
        )
    unknown = dict(item for flow in graph.flows for item in flow.unknown.items())
    return {
        "units": graph.units,
        "prunable": int(graph.prunable.sum()),
        "cost": total.as_dict(),
        "groups": groups,
        "no_rule": [str(where) for where in unknown.values()],
        "notes": list(graph.notes),
    }


def groups_table(graph: Graph, data: dict[str, Any]) -> str:
    """What `groups_data` found, as text: per group a line, what pins it, its tensors and what couples them."""
    names = [shortened(group["name"], WIDTH - 30) for group in data["groups"]]
    width = max(map(len, ["group", *names]))
    lines = [f"{'group':{width}}  {'units':>6}  params %  MACs %"]
    for name, row, group in zip(names, data["groups"], graph.groups, strict=True):
        lines.append(
            f"{name:{width}}  {row['units']:6}  {100 * row['params_share']:8.1f}  {100 * row['macs_share']:6.1f}"
        )
        if group.why:
            why = f"pinned: {group.why}"
            lines += textwrap.wrap(why, WIDTH, initial_indent=_INDENT, subsequent_indent=2 * _INDENT)
        elif not row["prunable"]:
            lines.append(f"{_INDENT}stays: it has one unit, and one must stay")
        lines += _listed("tensors  ", list(_tensors(group.members)))
        lines += _listed("coupled  ", list(_coupled(row["couplings"], type(graph.model).__name__)))
    lines.append(f"{data['units']} units in {len(names)} groups, {data['prunable']} prunable")
    lines += textwrap.wrap("  ".join(f"{key} {count:,}" for key, count in data["cost"].items()), WIDTH)
    for note in [*(f"no rule for {where}" for where in data["no_rule"]), *data["notes"]]:
        lines += textwrap.wrap(note, WIDTH, subsequent_indent=_INDENT)
    return "\n".join(lines)


def shortened(name: str, width: int) -> str:
    """A name cut in the middle: its ends tell the most."""
    if len(name) <= width:
        return name
    tail = (width - 3) * 2 // 3
    return f"{name[: width - 3 - tail]}...{name[len(name) - tail :]}"


def _place(place: Place) -> dict[str, str | None]:
    """None for what is not known; the module of the network itself is ""."""
    return {"operator": place.operator or None, "module": place.module, "source": place.source or None}


def _coupling(graph: Graph, coupling: Coupling, group: int) -> dict[str, Any]:
    return {
        "what": coupling.what,
        "role": "reads" if coupling.reads else "joins" if coupling.joins else "layer",
        **_place(coupling.place),
        "modules": list(coupling.modules),
        "beside": [graph.groups[other].name for other in coupling.groups if other != group],
    }


def _tensors(members: Sequence[tuple[str, int]]) -> Iterator[str]:
    """The words of "a.{conv.weight, bn.*}, b.conv.weight[1]".

    Dimension 0 goes unsaid; neighbours share what their names begin with.
    """
    named: dict[tuple[str, int], list[str]] = {}
    for tensor, dim in members:
        module, _, name = tensor.rpartition(".")
        named.setdefault((module or name, dim), []).append(name)  # the network's own tensors each for themselves
    families: list[tuple[str, list[str]]] = []
    for (module, dim), names in named.items():
        parent, _, last = module.rpartition(".")
        name = names[0] if len(names) == 1 else "*"
        text = (last if module == name else f"{last}.{name}") + (f"[{dim}]" if dim else "")
        if families and families[-1][0] == parent:
            families[-1][1].append(text)
        else:
            families.append((parent, [text]))
    for number, (parent, texts) in enumerate(families, start=1):
        if parent and len(texts) > 1:
            texts[0], texts[-1] = f"{{{texts[0]}", f"{texts[-1]}}}"
        if parent:
            texts[0] = f"{parent}.{texts[0]}"
        yield from (f"{text}," for text in texts[:-1])
        yield texts[-1] + "," * (number < len(families))


def _coupled(couplings: Iterable[dict[str, Any]], network: str) -> Iterator[str]:
    """The words of "residual sum in layer1.0, layer1.1; concat in decoder beside e.conv; read by layer2.0.conv1"."""
    places: dict[str, dict[str, None]] = {}
    beside: dict[str, dict[str, None]] = {}
    for coupling in sorted(couplings, key=lambda coupling: coupling["role"] == "reads"):
        reads = coupling["role"] == "reads"
        if coupling["role"] != "layer":
            what = "read by" if reads else f"{coupling['what']} in"
            places.setdefault(what, {})[coupling["module"] or network] = None
            beside.setdefault(what, {}).update(dict.fromkeys([] if reads else coupling["beside"]))
    for number, (what, modules) in enumerate(places.items(), start=1):
        first, *rest = modules
        told = [f"{what} {first}", *rest]
        if beside[what]:
            other, *others = beside[what]
            told[-1:] = [f"{told[-1]} beside {other}", *others]
        yield from (f"{text}," for text in told[:-1])
        yield told[-1] + ";" * (number < len(places))


def _listed(heading: str, items: Sequence[str]) -> list[str]:
    """Items side by side in at most `_LINES` lines; those that do not fit are counted."""
    room = WIDTH - len(_INDENT) - len(heading)
    lines = [""]
    for number, item in enumerate(items):
        last_line, more = len(lines) == _LINES, f"... and {len(items) - number} more"
        text = shortened(item, room - len(more) - 1)
        needed = len(lines[-1]) + len(text) + bool(lines[-1])
        # On the last line there must be room to say how many are left out.
        if needed + (len(more) + 1 if last_line and number + 1 < len(items) else 0) <= room:
            lines[-1] += " " * bool(lines[-1]) + text
        elif not last_line:
            lines.append(text)
        else:
            lines[-1] += f" {more}"
            break
    return [f"{_INDENT}{heading if not i else ' ' * len(heading)}{line}" for i, line in enumerate(lines) if line]
