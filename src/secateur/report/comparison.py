"""Several runs side by side, as Markdown: the accuracy ladder of each row, then the IoU of every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

_HEAD = ("row", "before", "sparse", "cut", "BN re-estimated", "fine-tuned", "minority", "mAcc", "params M", "GMACs",
         "ms", "minutes")  # fmt: skip


def comparison_table(rows: Mapping[str, Sequence[Result]]) -> str:
    """Two Markdown tables.

    Args:
        rows: a row's name -> the contents of `result.json` of its runs, which are seeds of the same recipe: their mean
            is given, and what each came to. GMACs are those that an average image executes where channels are gated.

    Returns:
        Scores in per cent. *minority* is the mean IoU of the classes that the runs name as the rarest half;
        *minutes* the wall time of all stages.
    """
    lines = ["| " + " | ".join(_HEAD) + " |", "|---" + "|---:" * (len(_HEAD) - 1) + "|"]
    lines += [_ladder(name, seeds) for name, seeds in rows.items()]
    finals = {
        name: [rung(result, "finetuned").get("per_class", {}) for result in seeds] for name, seeds in rows.items()
    }
    classes = list(dict.fromkeys(each for seeds in finals.values() for row in seeds for each in row))
    lines += ["", "| IoU, fine-tuned | " + " | ".join(classes) + " |", "|---" + "|---:" * len(classes) + "|"]
    for name, seeds in finals.items():
        cells = (_percent(mean([row.get(each) for row in seeds])) for each in classes)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rung(result: Result, stage: str) -> Mapping[str, Any]:
    """A stage of the accuracy ladder; empty if the run has not come there."""
    return next((row for row in result["stages"] if row["stage"] == stage), {})


def _ladder(name: str, seeds: Sequence[Result]) -> str:
    def over_seeds(stage: str, key: str) -> float | None:
        return mean([rung(result, stage).get(key) for result in seeds])

    each = ", ".join(_percent(rung(result, "finetuned").get("miou")) for result in seeds)
    cells = [name, _percent(over_seeds("unpruned", "miou"))]
    cells.append(_percent(mean([result.get("sparsified_miou") for result in seeds])))
    cells += [_percent(over_seeds(stage, "miou")) for stage in ("pruned", "recalibrated")]
    cells.append(_percent(over_seeds("finetuned", "miou")) + (f" ({each})" if len(seeds) > 1 else ""))
    cells.append(_percent(mean([minority_iou(result, "finetuned") for result in seeds])))
    cells.append(_percent(over_seeds("finetuned", "macc")))
    for key, unit, digits in (("params", 1e6, 3), ("macs", 1e9, 3), ("latency_ms", 1, 1)):
        value = over_seeds("finetuned", key)
        if key == "macs" and (executed := over_seeds("finetuned", "executed_macs")) is not None:
            value = executed
        cells.append("-" if value is None else f"{value / unit:.{digits}f}")
    minutes = mean([sum(result["seconds"].values()) / 60 for result in seeds])
    cells.append("-" if minutes is None else f"{minutes:.0f}")
    return "| " + " | ".join(cells) + " |"


def minority_iou(result: Result, stage: str) -> float | None:
    """Mean IoU of the rarest half of the classes at a stage."""
    per_class = rung(result, stage).get("per_class", {})
    return mean([per_class.get(name) for name in result.get("minority", ())])


def mean(values: Sequence[float | None]) -> float | None:
    """None if one of them is missing, or there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
