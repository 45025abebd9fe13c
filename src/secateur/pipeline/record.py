"""What a run tells of itself: the rungs of the accuracy ladder and the content of `result.json`."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from secateur.costs import Cost
from secateur.metrics import Scores
from secateur.recipe import Recipe

__all__ = ["Record", "number", "result_of", "rung"]

Record = dict[str, Any]  # JSON values only


def rung(
    stage: str, scores: Scores, cost: Cost, latency_ms: float | None, executed_macs: float | None = None
) -> Record:
    """One stage of the ladder: scores as fractions, costs on one image, median milliseconds of one image; and of
    networks that gate channels the MACs that an average image executes, of boundary IoU what was asked for."""
    row = {
        "stage": stage,
        "miou": number(scores.miou),
        "macc": number(scores.macc),
        "accuracy": number(scores.accuracy),
        "fwiou": number(scores.fwiou),
        "per_class": {name: None if value is None else number(value) for name, value in scores.per_class.items()},
        "params": int(cost.params),
        "macs": int(cost.macs),
        "paper_flops": int(cost.paper_flops),
        "latency_ms": latency_ms,
    }
    if scores.boundary_iou is not None:
        row |= {"boundary_iou": number(scores.boundary_iou), "boundary_per_class": scores.boundary_per_class}
    return row if executed_macs is None else {**row, "executed_macs": executed_macs}


def result_of(
    records: Mapping[str, Record],
    recipe: Recipe,
    options: Mapping[str, Any],
    minority: Sequence[str],
    command: str,
    device: torch.device,
) -> Record:
    """The content of `result.json`.

    Args:
        records: what the stages done so far have recorded, by stage.
        recipe: the run's.
        options: of the method, all of them, as they were used.
        minority: the classes of fewest pixels.
        command: the command line.
        device: where it was computed.
    """
    prune = records.get("prune", {})
    return {
        "stages": [row for record in records.values() for row in record.get("rows", ())],
        "schedule": _schedule(records, recipe.schedule.steps),
        "budget": prune.get("budget"),
        "verification": prune.get("verification"),
        "method": {"name": recipe.method.name, "options": _plain(options)},
        "network": recipe.model.name,
        "minority": list(minority),
        "sparsified_miou": records.get("sparsify", {}).get("miou"),
        "compensation": prune.get("compensation"),
        "recalibration_batches": prune.get("recalibration_batches", 0),
        "seconds": {stage: round(record["seconds"], 3) for stage, record in records.items()},
        "waiting_share": {s: record["waiting_share"] for s, record in records.items() if "waiting_share" in record},
        "steps": {stage: record["steps"] for stage, record in records.items() if "steps" in record},
        "unreadable": {stage: record["unreadable"] for stage, record in records.items() if record.get("unreadable")},
        "warnings": prune.get("warnings", []),
        "pinned": prune.get("pinned", []),
        "seed": recipe.run.seed,
        "command": command,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "secateur": version("secateur"),
            "torch": torch.__version__,
            "lightning-fabric": version("lightning-fabric"),
            "python": platform.python_version(),
        },
    }


def _schedule(records: Mapping[str, Record], steps: int) -> list[Record]:
    """One row for every cut but the last, with the mIoU that the training after it came to, if that is done."""
    rows = []
    for step in range(1, steps):
        if record := records.get(f"step-{step}"):
            following = records.get(f"step-{step + 1}" if step + 1 < steps else "prune", {})
            rows.append({**record["cut"], "trained_miou": following.get("trained_miou")})
    return rows


def number(value: float) -> float | None:
    """A score for JSON, which has no NaN: None where there was nothing to score."""
    return value if value == value else None


def _plain(value: Any) -> Any:
    """Options as JSON values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
