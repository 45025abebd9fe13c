"""Which units go: those of smallest score, until a ratio or a budget is met.

Units leave one after the other in one fixed order, so a larger budget's plan always contains a smaller one's, and a
budget is met by bisecting how many have left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from secateur.allocate.allocation import Allocation
from secateur.allocate.guard import Guard, guarded
from secateur.allocate.limits import Limits
from secateur.allocate.order import chunks_of, in_order, leaving, within
from secateur.allocate.reasons import why_nothing
from secateur.costs import LatencyTable, agreed
from secateur.errors import MethodError, NothingPrunableError
from secateur.graph import Graph, match_groups, no_collection
from secateur.plan import Plan, plan_of
from secateur.surgery import apply


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
    guard: Guard | None = None,
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
        guard: what classes or tasks may lose at most; groups that hurt them give less, the others more.

    Returns:
        The plan.

    Raises:
        MethodError: an argument is out of range, or a score is NaN.
        NothingPrunableError: no unit can be removed; the message is the table of reasons.
        BudgetError: the budget can't be met, or not under the guard; says what can.
        CheckpointError: the latency table is damaged.

    Examples:
        >>> import torch, secateur
        >>> conv, relu = torch.nn.Conv2d, torch.nn.ReLU
        >>> net = torch.nn.Sequential(conv(3, 16, 3), relu(), conv(16, 32, 3), relu(), conv(32, 2, 1))
        >>> graph = secateur.trace(net, torch.zeros(1, 3, 16, 16))
        >>> scores = [float(unit % 16) for unit in range(graph.units)]  # any numbers will do
        >>> plan = secateur.select(graph, scores, pruning_ratio=0.25)
        >>> plan.removed["0.weight"][0]
        (0, 1, 2, 3)

        How many channels the two convolutions keep:

        >>> def widths(**options):
        ...     small = secateur.apply(net, secateur.select(graph, scores, scope="group", **options))
        ...     return small[0].out_channels, small[2].out_channels
        >>> widths(budget={"macs": 0.5})
        (11, 22)
        >>> widths(budget={"macs": 0.5, "params": 1000})
        (6, 13)
        >>> widths(budget={"macs": 0.5}, round_to=8)
        (8, 24)
        >>> widths(pruning_ratio=1.0, min_keep=0.25)
        (4, 8)
        >>> widths(pruning_ratio=0.5, protect="0")
        (16, 16)
        >>> widths(pruning_ratio=0.5, ratios={"2": 0.75})
        (8, 8)
    """
    allocation = Allocation(pruning_ratio, budget, scope, min_keep, round_to, protect, ratios, latency_table, guard)
    return selection(graph, scores, allocation, np.zeros(graph.units, dtype=bool)).plan


class Selection(NamedTuple):
    """A plan, and what its latency was measured to be, in the units of the budget; None without such a budget."""

    plan: Plan
    latency: float | None


@no_collection()
def selection(
    graph: Graph,
    scores: ArrayLike,
    allocation: Allocation,
    gone: NDArray[np.bool_],
    cut: Callable[[Plan], nn.Module] | None = None,
) -> Selection:
    """As `select`, for a network that some units have left already.

    Args:
        graph: of the network before anything left it, which all shares refer to.
        scores: per unit of it.
        allocation: how much is to be gone in the end, and what may go.
        gone: bool per unit: in the plan in any case.
        cut: a plan -> the network that a guard evaluates; that of the graph, cut, by default.
    """
    values = checked_scores(graph, scores)
    for groups in match_groups(graph, allocation.protect, "protect").values():
        for group in groups:
            values[list(graph.groups[group].units)] = np.inf
    ratios = allocation.ratios or {}
    shares: dict[int, float] = {}
    for pattern, groups in match_groups(graph, ratios, "ratios").items():
        shares.update(dict.fromkeys(groups, ratios[pattern]))

    already = np.bincount(graph.solution.group_of[gone], minlength=len(graph.groups))

    def choose(allocation: Allocation, caps: Mapping[int, int]) -> tuple[NDArray[np.bool_], float | None]:
        budget = allocation.budget
        limits = Limits(graph, budget, allocation.latency_table) if budget is not None else None
        savings = limits.savings() if limits is not None and allocation.scope == "cost" else None
        chunks = chunks_of(graph, values, allocation, gone, savings)
        for group, most in caps.items():
            chunks[group] = within(chunks.get(group, []), most)
        if not any(chunks.values()) and not gone.any():
            raise NothingPrunableError(why_nothing(graph, values))
        fixed = [
            chunk
            for group, share in shares.items()
            for chunk in within(chunks.pop(group, []), share * len(graph.groups[group]) - already[group])
        ]
        order = in_order(chunks.values())
        if limits is not None:
            return limits.meet(gone, fixed, order)
        others = np.isin(graph.solution.group_of, list(shares), invert=True)
        removable = graph.prunable & np.isfinite(values) & others
        target = int((allocation.pruning_ratio or 0.0) * int(removable.sum()) + 1e-9) - int((gone & removable).sum())
        return gone | leaving(graph, [*fixed, *within(order, target)]), None

    def chosen() -> tuple[NDArray[np.bool_], float | None]:
        if allocation.guard is None:
            return choose(allocation, {})
        make = cut or partial(apply, graph.model)
        allocation.guard.start(lambda: make(plan_of(graph, gone)))
        return guarded(graph, allocation, allocation.guard, gone, choose, lambda units: make(plan_of(graph, units)))

    removed, latency = agreed(chosen) if "latency" in (allocation.budget or {}) else chosen()
    return Selection(plan_of(graph, removed), latency)


def checked_scores(graph: Graph, scores: ArrayLike) -> NDArray[np.float64]:
    """The scores as a new array.

    Raises:
        MethodError: they are not one number per unit.
    """
    values = np.array(scores.detach().cpu() if isinstance(scores, torch.Tensor) else scores, dtype=np.float64)
    if values.shape != (graph.units,):
        raise MethodError(f"scores of shape {values.shape}; one per unit was expected: ({graph.units},)")
    bad = np.flatnonzero(np.isnan(values) & graph.prunable)
    if len(bad):
        group = graph.groups[graph.solution.group_of[bad[0]]]
        raise MethodError(
            f"the score of {len(bad)} units is NaN, first in {group.name}; are there NaNs in the network's weights?"
        )
    return values
