"""In which order units leave: one fixed order, so that what more removes contains what less removes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secateur.allocate.allocation import Allocation
from secateur.graph import Graph


class Chunk(NamedTuple):
    """Units of one group that leave together, so that the rest keeps a multiple of `round_to`; the chunk of smallest
    rank goes first."""

    rank: float
    units: NDArray[np.int64]


def chunks_of(
    graph: Graph,
    scores: NDArray[np.float64],
    allocation: Allocation,
    gone: NDArray[np.bool_],
    savings: NDArray[np.float64] | None,
) -> dict[int, list[Chunk]]:
    """The units of every group that may leave, in the order in which they leave it.

    Args:
        graph: the traced network.
        scores: per unit; +inf for what stays.
        allocation: its scope, floor and rounding count here.
        gone: bool per unit: removed already. Floors and shares are those of the whole groups.
        savings: per unit, of what the budget asks for; with scope "cost" only.
    """
    chunks: dict[int, list[Chunk]] = {}
    for number, group in enumerate(graph.groups):
        units = np.asarray(group.units)
        mine = scores[units]
        free = units[np.isfinite(mine) & graph.prunable[units] & ~gone[units]] if len(units) else units
        if group.pinned or not len(free):
            continue
        step = _step(graph, units[0], allocation.round_to)
        floor = max(1, math.ceil(allocation.min_keep * len(units) - 1e-9))
        floor = min(len(units), math.ceil(floor / step) * step)
        left = len(units) - int(gone[units].sum())
        room = min(len(free), left - floor)
        by_score = free[np.lexsort((free, scores[free]))]
        # The first chunk brings the group to a multiple of the step, the others keep it one.
        ends = [n for n in range(1, room + 1) if step == 1 or (left - n) % step == 0]
        if len(ends) == room:  # one unit each
            parts = list(by_score[:room, None])
        else:
            parts = [by_score[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        if allocation.scope == "group":
            ranks = [(len(units) - left + end) / len(units) for end in ends]
        elif savings is not None:
            ranks = [_per_cost(scores[part], savings[part]) for part in parts]
        elif len(ends) == room:
            ranks = scores[by_score[:room]].tolist()
        else:
            ranks = [float(scores[part].mean()) for part in parts]
        # Within a group the order is kept: none goes before one of a lower rank.
        chunks[number] = [Chunk(rank, part) for rank, part in zip(accumulate(ranks, max), parts, strict=True)]
    return chunks


def in_order(chunks: Iterable[list[Chunk]]) -> list[Chunk]:
    """The chunks of several groups, the first to leave first."""
    every = [chunk for mine in chunks for chunk in mine]
    order = np.lexsort(([chunk.units[0] for chunk in every], [chunk.rank for chunk in every]))
    return [every[i] for i in order.tolist()]


def within(chunks: list[Chunk], count: float) -> list[Chunk]:
    """The first chunks that hold at most so many units."""
    ends = np.cumsum([len(chunk.units) for chunk in chunks])
    return chunks[: int(np.searchsorted(ends, count + 1e-9, side="right"))]


def leaving(graph: Graph, chunks: Iterable[Chunk]) -> NDArray[np.bool_]:
    """bool per unit: in one of the chunks."""
    removed = np.zeros(graph.units, dtype=bool)
    units = [chunk.units for chunk in chunks]
    if units:
        removed[np.concatenate(units)] = True
    return removed


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
