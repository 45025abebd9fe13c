"""From scores to a plan: which units go, under a ratio or a budget, with floors and rounding.

Units leave one after the other in one fixed order, so a larger budget's plan always contains a smaller one's, and a
budget is met by bisecting how many have left. Latency is then measured on networks that are really cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from secateur.costs import COLUMNS, Cost, CostModel, LatencyModel, LatencyTable, agreed, fewest, table_of
from secateur.errors import BudgetError, MethodError, NothingPrunableError, nearest
from secateur.graph import Graph, match_groups
from secateur.plan import Plan, plan_of
from secateur.surgery import apply

BUDGETS = (*COLUMNS, "latency")
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
    protect: Iterable[str] = (),
    ratios: Mapping[str, float] | None = None,
    latency_table: LatencyTable | Path | str | None = None,
) -> Plan:
    """Choose the units to remove: those of smallest score.

    Args:
        graph: the traced network.
        scores: float per unit; +inf is never removed. Ties go to the lower unit id.
        pruning_ratio: share of the removable units to remove, 0 to 1 (1 means: down to the floors).
        budget: instead of a ratio, what may remain of one or more of "params", "macs", "paper_flops", "yolo_flops",
            "latency": a fraction of the original (up to 1) or an absolute number (above 1; of latency, milliseconds).
            Latency is that of one forward pass on the example inputs as they are, in eval mode, on the network's
            device, with the threads that torch has now. Candidates are cut and measured against the original.
        scope: "global" ranks all units together; "group" removes the same share of every group; "cost" ranks all
            units together by the square of their score over what their removal saves of the budget. What is lost with
            a channel goes with the square of its scale, and a channel of a wide layer saves many times what one of a
            narrow layer saves: the greedy rule of the knapsack problem.
        min_keep: every group keeps at least this share of its units, and at least one.
        round_to: every group keeps a multiple of this many channels.
        protect: modules, parameters, groups, or patterns of their names ("decoder.*"), whose channels all stay.
        ratios: the same -> the share of these channels that goes, whatever the rest does; of several patterns that
            name a group the last one counts. The ratio or budget is then met by the others, if there is one.
        latency_table: a JSON file that keeps the measured times of operators, which a budget of latency needs; without
            one they are kept as long as the process lives.

    Returns:
        The plan.

    Raises:
        MethodError: an argument is out of range, or a score is NaN.
        NothingPrunableError: no unit can be removed; the message is the table of reasons.
        BudgetError: the budget can't be met; says what can.
        CheckpointError: the latency table is damaged.
    """
    return selection(
        graph,
        scores,
        pruning_ratio=pruning_ratio,
        budget=budget,
        scope=scope,
        min_keep=min_keep,
        round_to=round_to,
        protect=protect,
        ratios=ratios,
        latency_table=latency_table,
    ).plan


class Selection(NamedTuple):
    """A plan, and what its latency was measured to be, in the units of the budget; None without such a budget."""

    plan: Plan
    latency: float | None


def selection(
    graph: Graph,
    scores: ArrayLike,
    *,
    pruning_ratio: float | None = None,
    budget: Mapping[str, float] | None = None,
    scope: str = "global",
    min_keep: float = 0.1,
    round_to: int = 1,
    protect: Iterable[str] = (),
    ratios: Mapping[str, float] | None = None,
    latency_table: LatencyTable | Path | str | None = None,
) -> Selection:
    """As `select`."""
    values = _checked(graph, scores, pruning_ratio, budget, scope, min_keep, round_to, ratios)
    for groups in match_groups(graph, protect, "protect").values():
        for group in groups:
            values[list(graph.groups[group].units)] = np.inf
    shares: dict[int, float] = {}
    for pattern, groups in match_groups(graph, ratios or {}, "ratios").items():
        shares.update(dict.fromkeys(groups, (ratios or {})[pattern]))

    def choose() -> tuple[NDArray[np.bool_], float | None]:
        limited = _Limited(graph, budget, latency_table) if budget is not None else None
        chunks = _chunks(graph, values, scope, min_keep, round_to, limited)
        if not any(chunks.values()):
            raise NothingPrunableError(why_nothing(graph, values))
        fixed = [
            chunk
            for group, share in shares.items()
            for chunk in _within(chunks.pop(group, []), share * len(graph.groups[group]))
        ]
        order = sorted(
            (chunk for mine in chunks.values() for chunk in mine), key=lambda chunk: (chunk.rank, int(chunk.units[0]))
        )
        if limited is not None:
            return _meet(graph, fixed, order, limited)
        others = np.isin(graph.solution.group_of, list(shares), invert=True)
        target = int((pruning_ratio or 0.0) * int((graph.prunable & np.isfinite(values) & others).sum()) + 1e-9)
        return _leaving(graph, [*fixed, *_within(order, target)]), None

    removed, latency = agreed(choose) if "latency" in (budget or {}) else choose()
    return Selection(plan_of(graph, removed), latency)


def _checked(
    graph: Graph,
    scores: ArrayLike,
    pruning_ratio: float | None,
    budget: Mapping[str, float] | None,
    scope: str,
    min_keep: float,
    round_to: int,
    ratios: Mapping[str, float] | None,
) -> NDArray[np.float64]:
    """The scores as a new array, if every argument is what it should be."""
    values = np.array(scores.detach().cpu() if isinstance(scores, torch.Tensor) else scores, dtype=np.float64)
    if values.shape != (graph.units,):
        raise MethodError(f"scores of shape {values.shape}; one per unit was expected: ({graph.units},)")
    bad = np.flatnonzero(np.isnan(values) & graph.prunable)
    if len(bad):
        group = graph.groups[graph.solution.group_of[bad[0]]]
        raise MethodError(
            f"the score of {len(bad)} units is NaN, first in {group.name}; are there NaNs in the network's weights?"
        )
    if (pruning_ratio is not None and budget is not None) or (pruning_ratio is None and budget is None and not ratios):
        raise MethodError(
            "give either pruning_ratio (share removed) or budget (what remains), not both and not neither"
        )
    for pattern, share in (ratios or {}).items():
        if not 0 <= share <= 1:
            raise MethodError(f"ratios {pattern!r}: {share}; the share to remove, between 0 and 1, was expected")
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
    """What is limited, the models that tell it, and how much of it there is."""

    def __init__(self, graph: Graph, budget: Mapping[str, float], table: LatencyTable | Path | str | None) -> None:
        counts = CostModel(graph)
        self.graph = graph
        self.latency = LatencyModel(graph, table_of(table)) if "latency" in budget else None
        self.models = {name: self.latency if self.latency and name == "latency" else counts for name in budget}
        self.whole = {name: float(model.total(name)) for name, model in self.models.items()}
        self.relative = {name for name, value in budget.items() if value <= 1}
        self.limits = {
            name: value * self.whole[name] if name in self.relative else value for name, value in budget.items()
        }

    def savings(self) -> NDArray[np.float64]:
        """Of what has to go, the share that every single unit saves; over all limits together."""
        out = np.zeros(self.graph.units)
        for name, limit in self.limits.items():
            excess = self.whole[name] - limit
            if excess > 0:
                out += self.models[name].saved(name) / excess
        return out


def _chunks(
    graph: Graph,
    scores: NDArray[np.float64],
    scope: str,
    min_keep: float,
    round_to: int,
    limited: _Limited | None,
) -> dict[int, list[_Chunk]]:
    """The units of every group that may leave, in the order in which they leave it."""
    chunks: dict[int, list[_Chunk]] = {}
    savings = limited.savings() if scope == "cost" and limited is not None else None
    for number, group in enumerate(graph.groups):
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
        running, start, leaving = -math.inf, 0, chunks.setdefault(number, [])
        for end in ends:
            part = by_score[start:end]
            if scope == "group":
                rank = end / len(units)
            elif savings is None:
                rank = float(scores[part].mean())
            else:
                rank = _per_cost(scores[part], savings[part])
            running = max(running, rank)  # within a group the order is kept
            leaving.append(_Chunk(running, part))
            start = end
    return chunks


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


def _within(chunks: list[_Chunk], count: float) -> list[_Chunk]:
    """The first chunks that hold at most so many units."""
    ends = np.cumsum([len(chunk.units) for chunk in chunks])
    return chunks[: int(np.searchsorted(ends, count + 1e-9, side="right"))]


def _leaving(graph: Graph, chunks: Iterable[_Chunk]) -> NDArray[np.bool_]:
    """bool per unit: in one of the chunks."""
    removed = np.zeros(graph.units, dtype=bool)
    for chunk in chunks:
        removed[chunk.units] = True
    return removed


def _meet(
    graph: Graph, fixed: list[_Chunk], order: list[_Chunk], limited: _Limited
) -> tuple[NDArray[np.bool_], float | None]:
    """What is fixed, and the fewest further chunks whose removal meets every budget; the latency, if it is limited."""
    counted = {name: limit for name, limit in limited.limits.items() if name != "latency"}

    def removed(count: int) -> NDArray[np.bool_]:
        return _leaving(graph, [*fixed, *order[:count]])

    def total(name: str, count: int) -> float:
        return limited.models[name].total(name, removed(count))

    least = {name: total(name, len(order)) for name in counted}
    short = {name: limit for name, limit in counted.items() if least[name] > limit}
    if short:
        raise BudgetError(
            "the budget is out of reach: "
            + "; ".join(
                f"{name} {limit:,.0f} was asked, {least[name]:,} ({least[name] / limited.whole[name]:.1%}) is the "
                f"least that min_keep, round_to and what is pinned or protected allow"
                for name, limit in short.items()
            )
        )
    count = fewest(lambda n: all(total(name, n) <= limit for name, limit in counted.items()), 0, len(order))
    if limited.latency is None:
        return removed(count), None
    relative = "latency" in limited.relative
    count, milliseconds = limited.latency.meet(
        limited.limits["latency"],
        relative,
        removed,
        lambda units: apply(graph.model, plan_of(graph, units)),
        count,
        len(order),
    )
    return removed(count), milliseconds / limited.whole["latency"] if relative else milliseconds


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
    *,
    pruning_ratio: float | None = None,
    budget: Mapping[str, float] | None = None,
    protect: Iterable[str] = (),
    ratios: Mapping[str, float] | None = None,
    latency: float | None = None,
    **_: Any,
) -> tuple[dict[str, float], dict[str, float]]:
    """What was asked of `select` and what became of it, in the same units.

    Args:
        latency: as measured, in the units in which it was asked.
    """
    asked: dict[str, float] = {}
    got: dict[str, float] = {}
    free = graph.prunable & np.isfinite(scores)
    for name, value in (budget or {}).items():
        asked[name] = float(value)
        if name in COLUMNS:
            got[name] = getattr(after, name) / getattr(before, name) if value <= 1 else getattr(after, name)
        elif latency is not None:
            got[name] = latency
    by_name = match_groups(graph, ratios or {}, "ratios")
    if pruning_ratio is not None:
        kept = match_groups(graph, protect, "protect")
        elsewhere = [group for groups in (*by_name.values(), *kept.values()) for group in groups]
        mine = free & np.isin(graph.solution.group_of, elsewhere, invert=True)
        asked["pruning_ratio"] = float(pruning_ratio)
        got["pruning_ratio"] = int(removed[mine].sum()) / max(1, int(mine.sum()))
    for pattern, share in (ratios or {}).items():
        mine = np.isin(graph.solution.group_of, by_name[pattern])
        asked[f"ratio of {pattern}"] = float(share)
        got[f"ratio of {pattern}"] = int(removed[mine].sum()) / int(mine.sum())
    return asked, got
