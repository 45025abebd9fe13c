"""From scores to a plan: which units go, under a ratio or a budget, with floors and rounding.

Units leave one after the other in one fixed order, so a larger budget's plan always contains a smaller one's, and a
budget is met by bisecting how many have left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from secateur.costs import CostModel
from secateur.errors import BudgetError, MethodError, NothingPrunableError, nearest
from secateur.graph import Graph
from secateur.plan import Plan, plan_of

BUDGETS = ("params", "macs", "paper_flops", "yolo_flops")
SCOPES = ("global", "group", "cost")


@dataclass(frozen=True)
class _Chunk:
    """Units of one group that leave together, so that the rest keeps a multiple of `round_to`; the chunk of smallest
    rank goes first."""

    rank: float
    units: NDArray[np.int64]


def select(
    graph: Graph,
    scores: ArrayLike,
    *,
    pruning_ratio: float | None = None,
    budget: Mapping[str, float] | None = None,
    scope: str = "global",
    min_keep: float = 0.1,
    round_to: int = 1,
) -> Plan:
    """Choose the units to remove: those of smallest score.

    Args:
        graph: the traced network.
        scores: float per unit; +inf is never removed. Ties go to the lower unit id.
        pruning_ratio: share of the removable units to remove, 0 to 1 (1 means: down to the floors).
        budget: instead of a ratio, what may remain of one or more of "params", "macs", "paper_flops", "yolo_flops": a
            fraction of the original (up to 1) or an absolute number (above 1).
        scope: "global" ranks all units together; "group" removes the same share of every group; "cost" ranks all
            units together by the square of their score over what their removal saves of the budget. What is lost with
            a channel goes with the square of its scale, and a channel of a wide layer saves many times what one of a
            narrow layer saves: the greedy rule of the knapsack problem.
        min_keep: every group keeps at least this share of its units, and at least one.
        round_to: every group keeps a multiple of this many channels.

    Returns:
        The plan.

    Raises:
        MethodError: an argument is out of range, or a score is NaN.
        NothingPrunableError: no unit can be removed; the message is the table of reasons.
        BudgetError: the budget can't be met; says what can.
    """
    values = _checked(graph, scores, pruning_ratio, budget, scope, min_keep, round_to)
    limited = _Limited(graph, budget) if budget is not None else None
    order = _order(graph, values, scope, min_keep, round_to, limited)
    if not order:
        raise NothingPrunableError(why_nothing(graph, values))
    if limited is not None:
        removed = _meet(graph, order, limited)
    else:
        assert pruning_ratio is not None
        target = int(pruning_ratio * int((graph.prunable & np.isfinite(values)).sum()) + 1e-9)
        counts = np.cumsum([len(chunk.units) for chunk in order])
        removed = _first(graph, order, int(np.searchsorted(counts, target, side="right")))
    return plan_of(graph, removed)


def _checked(
    graph: Graph,
    scores: ArrayLike,
    pruning_ratio: float | None,
    budget: Mapping[str, float] | None,
    scope: str,
    min_keep: float,
    round_to: int,
) -> NDArray[np.float64]:
    values = np.asarray(scores.detach().cpu() if isinstance(scores, torch.Tensor) else scores, dtype=np.float64)
    if values.shape != (graph.units,):
        raise MethodError(f"scores of shape {values.shape}; one per unit was expected: ({graph.units},)")
    bad = np.flatnonzero(np.isnan(values) & graph.prunable)
    if len(bad):
        group = graph.groups[graph.solution.group_of[bad[0]]]
        raise MethodError(
            f"the score of {len(bad)} units is NaN, first in {group.name}; are there NaNs in the network's weights?"
        )
    if (pruning_ratio is None) == (budget is None):
        raise MethodError(
            "give either pruning_ratio (share removed) or budget (what remains), not both and not neither"
        )
    if pruning_ratio is not None and not 0 <= pruning_ratio <= 1:
        raise MethodError(f"pruning_ratio {pruning_ratio}: the share of units to remove, between 0 and 1, was expected")
    if scope not in SCOPES:
        raise MethodError(f"scope {scope!r}; {nearest(scope, SCOPES)}")
    if scope == "cost" and budget is None:
        raise MethodError(
            "scope 'cost' ranks units by what they save of a budget: give budget=... instead of pruning_ratio, "
            "or scope='global'"
        )
    if not 0 <= min_keep <= 1:
        raise MethodError(f"min_keep {min_keep}: a share between 0 and 1 was expected")
    if round_to < 1:
        raise MethodError(f"round_to {round_to}: a whole number of channels, at least 1, was expected")
    if budget is not None:
        if not budget:
            raise MethodError(f"an empty budget; give one of {', '.join(BUDGETS)}")
        for name, value in budget.items():
            if name not in BUDGETS:
                raise MethodError(f"budget {name!r}; {nearest(name, BUDGETS)}")
            if not value > 0:
                raise MethodError(
                    f"budget {name} {value}: a fraction of the original (0 to 1) or an absolute number was expected"
                )
    return values


class _Limited:
    """The cost of a network, and its limits."""

    def __init__(self, graph: Graph, budget: Mapping[str, float]) -> None:
        self.model = CostModel(graph)
        self.whole = self.model()
        self.limits = {
            name: value if value > 1 else value * getattr(self.whole, name) for name, value in budget.items()
        }

    def savings(self) -> NDArray[np.float64]:
        """Of what has to go, the share that every single unit saves; over all limits together."""
        out = np.zeros(self.model.graph.units)
        for name, limit in self.limits.items():
            excess = getattr(self.whole, name) - limit
            if excess > 0:
                out += self.model.saved(name) / excess
        return out


def _order(
    graph: Graph,
    scores: NDArray[np.float64],
    scope: str,
    min_keep: float,
    round_to: int,
    limited: _Limited | None,
) -> list[_Chunk]:
    """All units that may leave, in the order in which they leave."""
    chunks: list[_Chunk] = []
    savings = limited.savings() if scope == "cost" and limited is not None else None
    for group in graph.groups:
        units = np.asarray(group.units)
        mine = scores[units]
        free = units[np.isfinite(mine) & graph.prunable[units]] if len(units) else units
        if group.pinned or not len(free):
            continue
        step = _step(graph, units[0], round_to)
        floor = max(1, math.ceil(min_keep * len(units) - 1e-9))
        floor = min(len(units), math.ceil(floor / step) * step)
        room = min(len(free), len(units) - floor)
        by_score = free[np.lexsort((free, scores[free]))]
        # The first chunk brings the group to a multiple of the step, the others keep it one.
        ends = [n for n in range(1, room + 1) if (len(units) - n) % step == 0]
        running, start = -math.inf, 0
        for end in ends:
            part = by_score[start:end]
            if scope == "group":
                rank = end / len(units)
            elif savings is None:
                rank = float(scores[part].mean())
            else:
                rank = _per_cost(scores[part], savings[part])
            running = max(running, rank)  # within a group the order is kept
            chunks.append(_Chunk(running, part))
            start = end
    return sorted(chunks, key=lambda chunk: (chunk.rank, int(chunk.units[0])))


def _per_cost(scores: NDArray[np.float64], savings: NDArray[np.float64]) -> float:
    """The squares of scores over what their units save; scores below zero keep their sign, and so go first."""
    lost = float((np.sign(scores) * scores**2).sum())
    saved = float(savings.sum())
    if saved > 0:
        return lost / saved if lost > 0 else lost
    return math.inf  # nothing is won by these


def _step(graph: Graph, unit: int, round_to: int) -> int:
    """How many units at a time keep every tensor of a group at a multiple of `round_to` channels."""
    if round_to == 1:
        return 1
    step = 1
    counts: dict[tuple[int, int], int] = {}
    for tensor, dim, _ in graph.slots(unit):
        counts[tensor, dim] = counts.get((tensor, dim), 0) + 1
    for count in counts.values():
        step = math.lcm(step, round_to // math.gcd(round_to, count))
    return step


def _first(graph: Graph, order: list[_Chunk], count: int) -> NDArray[np.bool_]:
    removed = np.zeros(graph.units, dtype=bool)
    for chunk in order[:count]:
        removed[chunk.units] = True
    return removed


def _meet(graph: Graph, order: list[_Chunk], limited: _Limited) -> NDArray[np.bool_]:
    """The fewest chunks whose removal meets every budget."""
    model, whole, limits = limited.model, limited.whole, limited.limits
    least = model(_first(graph, order, len(order)))
    short = {name: limit for name, limit in limits.items() if getattr(least, name) > limit}
    if short:
        raise BudgetError(
            "the budget is out of reach: "
            + "; ".join(
                f"{name} {limit:,.0f} was asked, {getattr(least, name):,} "
                f"({getattr(least, name) / getattr(whole, name):.1%}) is the least that min_keep, round_to and what is "
                f"pinned or protected allow"
                for name, limit in short.items()
            )
        )
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        removed = _first(graph, order, middle)
        if all(model.total(name, removed) <= limit for name, limit in limits.items()):
            high = middle
        else:
            low = middle + 1
    return _first(graph, order, low)


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
            reason = "protected by the method (it has no score here)"
        else:
            reason = "kept by min_keep or round_to"
        lines.append(f"  {group.name} ({len(group)} units): {reason}")
    return "\n".join(lines)


def achieved(before: Any, after: Any, budget: Mapping[str, float]) -> dict[str, float]:
    """What became of a budget, in the units in which it was asked."""
    return {
        name: getattr(after, name) / getattr(before, name) if value <= 1 else getattr(after, name)
        for name, value in budget.items()
    }
