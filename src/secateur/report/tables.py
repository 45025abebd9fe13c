"""The accuracy ladder and the IoU of every class, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

_NONE = "-"


def ladder_table(result: Mapping[str, Any]) -> Table:
    """One row per stage of a run: unpruned, pruned, recalibrated, finetuned.

    Args:
        result: the content of a run's `result.json`. Scores are fractions there and per cent here; the per cent beside
            an amount are what remains of the first stage's.

    Returns:
        The table, with the asked and the achieved budget and the verification error below it.
    """
    table = Table(
        title="Accuracy ladder",
        title_justify="left",
        caption=_caption(result),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("stage", no_wrap=True)
    scores = {"miou": "mIoU\n%", "macc": "mAcc\n%", "accuracy": "pixel\nacc %"}
    if any("boundary_iou" in stage for stage in result["stages"]):
        scores["boundary_iou"] = "boundary\nIoU %"
    for heading in (*scores.values(), "params", "MACs", "paper\nFLOPs", "latency\nms"):
        table.add_column(heading, justify="right", no_wrap=True)
    stages = result["stages"]
    for stage in stages:
        table.add_row(
            stage["stage"],
            *(_percent(stage.get(key)) for key in scores),
            *(_amount(stage[key], stages[0][key]) for key in ("params", "macs", "paper_flops")),
            _NONE if stage.get("latency_ms") is None else f"{stage['latency_ms']:.2f}",
        )
    return table


def per_class_table(result: Mapping[str, Any]) -> Table:
    """IoU of every class in per cent, one column per stage; '-' where a class neither occurs nor is predicted."""
    stages = result["stages"]
    table = Table(title="IoU per class, %", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", no_wrap=True)
    for stage in stages:
        table.add_column(stage["stage"], justify="right", no_wrap=True)
    for name in stages[0]["per_class"]:
        table.add_row(Text(name), *(_percent(stage["per_class"].get(name)) for stage in stages))
    return table


def _caption(result: Mapping[str, Any]) -> Text:
    lines = []
    budget, verification = result.get("budget"), result.get("verification")
    if budget:
        achieved = budget["achieved"]
        for key, asked in budget["asked"].items():
            show = _milliseconds if key == "latency" and asked > 1 else _budget
            reached = achieved.get(key)
            lines.append(f"budget, {key}: asked {show(asked)}, achieved {_NONE if reached is None else show(reached)}")
    if verification:
        verdict = "exact" if verification["ok"] else "NOT EXACT"
        lines.append(f"verification: relative error {verification['relative_error']:.1e}, {verdict}")
    return Text("\n".join(lines))


def _percent(fraction: float | None) -> str:
    """'54.8'; '-' for None and for not-a-number."""
    return _NONE if fraction is None or fraction != fraction else f"{100 * fraction:.1f}"


def _amount(value: float, whole: float) -> str:
    """'1.34 M 40%'."""
    share = f" {100 * value / whole:.0f}%" if whole and value != whole else ""
    return f"{_metric(value)}{share}"


def _budget(value: float) -> str:
    return f"{100 * value:.2f} %" if value <= 1 else _metric(value)


def _milliseconds(value: float) -> str:
    return f"{value:.2f} ms"


def _metric(value: float) -> str:
    """A count in three digits with a metric prefix: '29.4 M', '106 G'."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            short = value / size
            return f"{short:.{2 if short < 9.995 else 1 if short < 99.95 else 0}f} {prefix}"
    return f"{value:.0f}"
