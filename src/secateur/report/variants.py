"""The table of all variants: every row of a report and the networks before pruning, with scores and costs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.report.comparison import mean, minority_iou, rung
from secateur.report.run_record import RunRecord

__all__ = ["COLUMNS", "Variant", "latex_table", "variants_csv", "variants_of"]

# key -> head, unit by which values are divided, digits, what it is
COLUMNS: dict[str, tuple[str, float, int, str]] = {
    "miou": ("mIoU %", 0.01, 1, "mean IoU on the validation images"),
    "minority": ("minority %", 0.01, 1, "mean IoU of the classes of fewest pixels"),
    "macc": ("mAcc %", 0.01, 1, "mean accuracy of the classes"),
    "params": ("params M", 1e6, 3, "parameters, millions"),
    "macs": ("GMACs", 1e9, 3, "multiply-accumulates of one image, billions"),
    "paper_flops": ("GFLOPs", 1e9, 3, "as the CAP paper counts them, billions"),
    "latency_ms": ("ms", 1.0, 1, "median time of one image"),
    "bytes": ("MB", 1e6, 2, "the file of its weights"),
    "minutes": ("minutes", 1.0, 0, "wall time of all stages"),
}


@dataclass(frozen=True)
class Variant:
    """A row of the table.

    Attributes:
        name: the row's.
        network: registered name of its network.
        values: by the keys of `COLUMNS`, in base units, the mean over seeds; None where it is not known.
        seeds: mIoU of every run.
        per_class: IoU by class, the mean over seeds.
        is_parent: a network before pruning.
    """

    name: str
    network: str
    values: Mapping[str, Any]
    seeds: tuple[float, ...] = ()
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    is_parent: bool = False

    def shown(self, key: str) -> str:
        """A value as text, "-" if it is not known."""
        value, (_, unit, digits, _) = self.values.get(key), COLUMNS[key]
        return "-" if value is None else f"{value / unit:.{digits}f}"

    @property
    def spread(self) -> str:
        """What each seed came to, if there are several."""
        return ", ".join(f"{100 * value:.1f}" for value in self.seeds) if len(self.seeds) > 1 else ""


def variants_of(rows: Mapping[str, Sequence[RunRecord]]) -> list[Variant]:
    """One for every row, behind one for every network before its pruning."""
    networks: dict[tuple[str, int], list[RunRecord]] = {}
    for runs in rows.values():
        for run in runs:
            if "params" in (parent := rung(run.result, "unpruned")):
                networks.setdefault((run.result.get("network", "network"), parent["params"]), []).append(run)
    several = len({name for name, _ in networks}) < len(networks)
    parents = [
        _variant(f"{name} before pruning" + (f", {params:,} parameters" if several else ""), runs, "unpruned")
        for (name, params), runs in networks.items()
    ]
    return [*parents, *(_variant(name, runs, "finetuned") for name, runs in rows.items())]


def variants_csv(variants: Sequence[Variant]) -> str:
    """All values in base units, and the IoU of every class, as CSV."""
    classes = list(dict.fromkeys(name for variant in variants for name in variant.per_class))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "network", *COLUMNS, *(f"iou {name}" for name in classes)])
    for variant in variants:
        values = [variant.values.get(key) for key in COLUMNS] + [variant.per_class.get(name) for name in classes]
        writer.writerow([variant.name, variant.network, *("" if value is None else value for value in values)])
    return text.getvalue()


def latex_table(variants: Sequence[Variant]) -> str:
    """The table for a paper, with booktabs' rules."""
    known = [key for key in COLUMNS if any(variant.values.get(key) is not None for variant in variants)]
    lines = [r"\begin{tabular}{l" + "r" * len(known) + "}", r"\toprule"]
    lines.append(" & ".join(["variant", *(_latex(COLUMNS[key][0]) for key in known)]) + r" \\")
    lines.append(r"\midrule")
    for variant in variants:
        lines.append(" & ".join([_latex(variant.name), *(variant.shown(key) for key in known)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)


def _variant(name: str, runs: Sequence[RunRecord], stage: str) -> Variant:
    parent = stage == "unpruned"
    rungs = [rung(run.result, stage) for run in runs]
    values = {
        key: mean([row.get(key) for row in rungs])
        for key in ("miou", "macc", "params", "macs", "paper_flops", "latency_ms")
    }
    executed = mean([row.get("executed_macs") for row in rungs])
    values["macs"] = values["macs"] if executed is None else executed
    values["minority"] = mean([minority_iou(run.result, stage) for run in runs])
    values["bytes"] = mean([run.size("parent.safetensors" if parent else "model.safetensors") for run in runs])
    values["minutes"] = None if parent else mean([sum(run.result.get("seconds", {}).values()) / 60 for run in runs])
    classes = list(dict.fromkeys(each for row in rungs for each in row.get("per_class", {})))
    return Variant(
        name,
        runs[0].result.get("network", "network"),
        values,
        tuple(row["miou"] for row in rungs if row.get("miou") is not None) if not parent else (),
        {each: mean([row.get("per_class", {}).get(each) for row in rungs]) for each in classes},
        parent,
    )
