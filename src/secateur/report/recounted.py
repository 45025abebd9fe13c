"""The published tables beside our own counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from secateur.allocate import select
from secateur.costs import COLUMNS, Cost, CostModel
from secateur.graph import Graph, trace
from secateur.models import create_model
from secateur.plan import units_of
from secateur.report.published import CAP_TABLE, USES, Setting, Use

_UNITS = {"params": 1e6, "paper_flops": 1e9}


def count(use: Use) -> Cost:
    """What an untouched network costs for one image; its weights need no memory."""
    return CostModel(_traced(use.network, use.classes, use.size, use.options))()


def count_pruned(setting: Setting) -> tuple[Cost, Cost]:
    """What the setting's network costs unpruned, and when FPGM has removed its share of the setting's layers.

    How many filters of a layer go decides what is left, not which: equal scores do, and no weights are needed.
    """
    graph = _traced(setting.network, setting.classes, setting.size, {})
    plan = select(graph, np.zeros(graph.units), ratios=dict.fromkeys(setting.layers, setting.share))
    counted = CostModel(graph)
    return counted(), counted(units_of(graph, plan))


def recounted_table() -> list[dict[str, Any]]:
    """The CAP paper's Table 1: of unpruned and FPGM rows the cells counted here, and by how much they differ.

    What the other methods leave depends on a training; their rows are as printed.

    Returns:
        One dict per row: `network`, `data`, `size`, `classes`, `method`, `miou` in per cent, `note`, and for `params`
        and `paper_flops` the `published` number (in millions, and thousand millions), `recomputed`, `difference` (in
        the same units) and `agrees` (it rounds to what was printed); the last three are None where nothing is counted.
    """
    rows = []
    for setting in CAP_TABLE:
        counts = dict(zip(("Unpruned", "FPGM"), count_pruned(setting), strict=True))
        for row in setting.rows:
            counted, printed = counts.get(row.method), {"params": row.params, "paper_flops": row.flops}
            rows.append(
                {
                    "network": setting.title,
                    "data": setting.data,
                    "size": list(setting.size),
                    "classes": setting.classes,
                    "method": row.method,
                    "miou": row.miou,
                    **{what: _cell(what, value, counted) for what, value in printed.items()},
                    "note": row.note,
                }
            )
    return rows


def _cell(what: str, published: float, counted: Cost | None) -> dict[str, Any]:
    if counted is None:
        return {"published": published, "recomputed": None, "difference": None, "agrees": None}
    recomputed = getattr(counted, what)
    difference = recomputed / _UNITS[what] - published
    return {
        "published": published,
        "recomputed": recomputed,
        "difference": difference,
        "agrees": abs(difference) <= 0.005 + 1e-9,  # two decimals are printed
    }


def recounted_uses() -> list[dict[str, Any]]:
    """What every network costs as the papers used it, in all conventions."""
    return [
        {
            "network": use.network,
            "options": dict(use.options),
            "paper": use.paper,
            "size": list(use.size),
            "classes": use.classes,
            **count(use).as_dict(),
        }
        for use in USES
    ]


def recounted_text(table: Sequence[Mapping[str, Any]], uses: Iterable[Mapping[str, Any]]) -> str:
    """Both for people: what `recounted_table` and `recounted_uses` return."""
    lines = [
        "Published beside recomputed: He et al., CAP: Context-Aware Pruning, WACV 2021, Table 1",
        "",
        f"{'':14}{'mIoU %':>8}{'params, M':>12}{'recomputed':>12}{'difference':>12}{'FLOPs, G':>12}{'recomputed':>12}"
        f"{'difference':>12}",
    ]
    before = None
    for row in table:
        heading = f"{row['network']}, {row['data']}, {_size(row['size'])}, {row['classes']} classes"
        lines += [heading] if heading != before else []
        before = heading
        cells = "".join(f"{row[what]['published']:12.2f}{_recomputed(what, row[what])}" for what in _UNITS)
        lines.append(f"  {row['method']:12}{row['miou']:8.2f}{cells}".rstrip())
    agree = [row[what]["agrees"] for row in table for what in _UNITS if row[what]["agrees"] is not None]
    lines += ["", f"{sum(agree)} of {len(agree)} recomputed cells round to the published number."]
    lines += [f"{row['network']}, {row['data']}, {row['method']}: {row['note']}." for row in table if row["note"]]
    lines += ["", "Networks as the papers use them, one image", ""]
    widths = dict(zip(COLUMNS, (12, 17, 17, 19), strict=True))
    lines.append(f"{'':32}{'input':>10}{'classes':>8}" + "".join(f"{name:>{width}}" for name, width in widths.items()))
    for use in uses:
        options = "".join(f" {key}={str(value).lower()}" for key, value in use["options"].items())
        counts = "".join(f"{use[name]:{width},}" for name, width in widths.items())
        lines.append(f"{use['network'] + options:32}{_size(use['size']):>10}{use['classes']:8}{counts}")
    return "\n".join(lines)


def _recomputed(what: str, cell: Mapping[str, Any]) -> str:
    if cell["recomputed"] is None:
        return " " * 24
    return f"{cell['recomputed'] / _UNITS[what]:12.6f}{cell['difference']:+12.6f}"


def _size(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _traced(network: str, classes: int, size: tuple[int, int], options: Mapping[str, Any]) -> Graph:
    with torch.device("meta"):
        return trace(create_model(network, classes=classes, **options), torch.empty(1, 3, *size))
