"""What became of a choice, and why nothing could be chosen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secateur.allocate.allocation import Allocation
from secateur.costs import COLUMNS, Cost
from secateur.graph import Graph, match_groups


def why_nothing(graph: Graph, scores: NDArray[np.float64], refused: Mapping[int, str] | None = None) -> str:
    """The table of reasons why not a single unit can go; `refused` are groups that failed the verification."""
    lines = [f"nothing of {type(graph.model).__name__} can be removed:"]
    if not graph.groups:
        lines.append("  it has no parameters with channels")
    for number, group in enumerate(graph.groups):
        if group.pinned:
            reason = f"pinned: {group.pinned}"
        elif refused and number in refused:
            reason = f"failed verification: {refused[number]}"
        elif len(group) == 1:
            reason = "a single channel"
        elif not np.isfinite(scores[list(group.units)]).any():
            reason = "protected, by name or by the method (it has no score here)"
        else:
            reason = "kept by min_keep or round_to"
        lines.append(f"  {group.name} ({len(group)} units): {reason}")
    return "\n".join(lines)


def outcome(
    graph: Graph,
    scores: NDArray[np.float64],
    removed: NDArray[np.bool_],
    before: Cost,
    after: Cost,
    allocation: Allocation,
    latency: float | None,
) -> tuple[dict[str, float], dict[str, float]]:
    """What was asked of `select` and what became of it, in the same units.

    Args:
        graph, scores, allocation: as they were given to `selection`.
        removed: bool per unit.
        before, after: costs.
        latency: as measured, in the units in which it was asked; None if it is not limited.
    """
    asked: dict[str, float] = {}
    got: dict[str, float] = {}
    free = graph.prunable & np.isfinite(scores)
    for name, value in (allocation.budget or {}).items():
        asked[name] = float(value)
        if name in COLUMNS:
            got[name] = getattr(after, name) / getattr(before, name) if value <= 1 else getattr(after, name)
        elif latency is not None:
            got[name] = latency
    by_name = match_groups(graph, allocation.ratios or {}, "ratios")
    if allocation.pruning_ratio is not None:
        kept = match_groups(graph, allocation.protect, "protect")
        elsewhere = [group for groups in (*by_name.values(), *kept.values()) for group in groups]
        mine = free & np.isin(graph.solution.group_of, elsewhere, invert=True)
        asked["pruning_ratio"] = float(allocation.pruning_ratio)
        got["pruning_ratio"] = int(removed[mine].sum()) / max(1, int(mine.sum()))
    for pattern, share in (allocation.ratios or {}).items():
        mine = np.isin(graph.solution.group_of, by_name[pattern])
        asked[f"ratio of {pattern}"] = float(share)
        got[f"ratio of {pattern}"] = int(removed[mine].sum()) / int(mine.sum())
    return asked, got
