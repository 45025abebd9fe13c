"""Guards: what classes or tasks may lose at the cut, as a hard limit while it is decided how much every group gives.

A plan whose network breaks the guard is changed: of the groups that hurt most by themselves at most half as much may
go, the others give more, and so on until the guard holds and the budget is met, or can't be.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from secateur.allocate.allocation import Allocation
from secateur.errors import BudgetError, MethodError, NothingPrunableError, nearest
from secateur.graph import Graph

log = logging.getLogger("secateur")

Evaluate = Callable[[nn.Module], Mapping[str, float]]
Chosen = tuple[NDArray[np.bool_], float | None]
_ROUNDS = 6  # of bisection, for what can be had instead


@dataclass
class Guard:
    """What scores may lose at most.

    Args:
        evaluate: a network -> its scores by name, higher is better, such as the IoU of every class on validation images
            (perhaps with the batch norms' statistics estimated anew first). It must leave the network's weights alone.
        limits: name -> how much this score may fall, in its own unit.
        base: scores to fall from; None: those of the network in front of the first cut.

    Raises:
        MethodError: a limit is negative, or there is none.

    Examples:
        >>> import torch, secateur
        >>> conv, relu = torch.nn.Conv2d, torch.nn.ReLU
        >>> net = torch.nn.Sequential(conv(3, 16, 3), relu(), conv(16, 16, 3), relu(), conv(16, 2, 1))
        >>> image = torch.randn(1, 3, 16, 16)
        >>> def evaluate(model):  # as if everything depended on the first layer
        ...     return {"pole": model[0].out_channels / 16, "road": 1.0}
        >>> guard = secateur.Guard(evaluate, {"pole": 0.125})
        >>> model = secateur.prune(net, image, pruning_ratio=0.4, scope="group").model
        >>> model[0].out_channels, model[2].out_channels
        (10, 10)
        >>> model = secateur.prune(net, image, pruning_ratio=0.4, scope="group", guard=guard).model
        >>> model[0].out_channels, model[2].out_channels
        (15, 5)
    """

    evaluate: Evaluate
    limits: Mapping[str, float]
    base: Mapping[str, float] | None = None
    evaluations: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not self.limits:
            raise MethodError("a guard without limits; expected name -> how much the score may fall")
        for name, limit in self.limits.items():
            if not limit >= 0:
                raise MethodError(f"guard {name!r}: {limit}; how much the score may fall, 0 or more, was expected")

    def __str__(self) -> str:
        return ", ".join(f"{name} may lose {limit:g}" for name, limit in self.limits.items())

    def start(self, model: Callable[[], nn.Module]) -> None:
        """Learn what the scores fall from, if it isn't known: those of a network, which is made only then.

        Raises:
            MethodError: a guarded score is unknown or not finite.
        """
        if self.base is None:
            self.base = dict(self.evaluate(model()))
        for name in self.limits:
            if name not in self.base:
                raise MethodError(f"guard {name!r}: there is no such score; {nearest(name, self.base)}")
            if not math.isfinite(self.base[name]):
                raise MethodError(f"guard {name!r}: its score is {self.base[name]}; does it occur in the data?")

    def drops(self, model: nn.Module) -> dict[str, float]:
        """How much every guarded score has fallen."""
        assert self.base is not None
        self.evaluations += 1
        scores = self.evaluate(model)
        return {name: self.base[name] - scores[name] for name in self.limits}

    def harm(self, model: nn.Module) -> float:
        """The largest share of a limit that is used up; up to 1 is allowed."""

        def used(drop: float, limit: float) -> float:
            if math.isnan(drop) or (limit == 0 and drop > 0):
                return math.inf
            return drop / limit if limit > 0 else 0.0

        return max(used(drop, self.limits[name]) for name, drop in self.drops(model).items())


def guarded(
    graph: Graph,
    allocation: Allocation,
    guard: Guard,
    gone: NDArray[np.bool_],
    choose: Callable[[Allocation, Mapping[int, int]], Chosen],
    build: Callable[[NDArray[np.bool_]], nn.Module],
) -> Chosen:
    """What `choose` chooses, with caps on what single groups give so that the guard holds.

    Args:
        graph: of the network before anything left it.
        allocation: how much is to go.
        guard: started.
        gone: bool per unit: removed before.
        choose: allocation, and the most that groups may give from now on -> bool per unit to be removed, and the
            latency.
        build: bool per unit to be removed -> the cut network.

    Raises:
        BudgetError: the guard forbids it; says what can be had.
    """
    caps: dict[int, int] = {}
    harms: dict[tuple[int, int], float] = {}
    group_of, before = graph.solution.group_of, guard.evaluations
    removed, latency = choose(allocation, caps)  # what this raises has nothing to do with the guard
    asked = int(removed.sum())
    while allocation.budget is not None or removed.sum() >= asked:
        harm = guard.harm(build(removed))
        if harm <= 1:
            log.info("the guard holds after %d evaluations", guard.evaluations - before)
            return removed, latency
        giving = {g: int(n) for g, n in enumerate(np.bincount(group_of[removed & ~gone])) if n}
        if not giving:
            break
        for group, count in giving.items():
            if (group, count) not in harms:
                harms[group, count] = guard.harm(build(gone | (removed & (group_of == group))))
        worst = max(giving, key=lambda g: harms[g, giving[g]])
        guilty = [group for group, count in giving.items() if harms[group, count] > 1] or [worst]
        log.info("the guard is broken (%.2f of what is allowed); halving %d groups", harm, len(guilty))
        caps.update({group: giving[group] // 2 for group in guilty})
        try:
            removed, latency = choose(allocation, caps)
        except (BudgetError, NothingPrunableError):
            break
    raise BudgetError(
        f"the guard ({guard}) forbids it: {_what_can_be_had(allocation, guard, choose, build)}; give the guard more "
        "room, or ask for less"
    )


def _what_can_be_had(
    allocation: Allocation,
    guard: Guard,
    choose: Callable[[Allocation, Mapping[int, int]], Chosen],
    build: Callable[[NDArray[np.bool_]], nn.Module],
) -> str:
    """The largest part of the way to what was asked at which the guard holds, found by bisection."""

    def at(part: float) -> Allocation:
        if allocation.budget is None:
            return replace(allocation, pruning_ratio=part * (allocation.pruning_ratio or 0.0))
        return replace(allocation, budget={k: 1 - part * (1 - v) for k, v in allocation.budget.items() if v <= 1})

    absolute = allocation.budget is not None and any(value > 1 for value in allocation.budget.values())
    if absolute or (allocation.budget is None and allocation.pruning_ratio is None):
        return "nothing near it keeps within it"
    low, high = 0.0, 1.0
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        holds = guard.harm(build(choose(at(middle), {})[0])) <= 1
        low, high = (middle, high) if holds else (low, middle)
    best = at(low)
    amount = {"pruning_ratio": best.pruning_ratio} if best.budget is None else best.budget
    return ", ".join(f"{name} {value:.3g} can be had" for name, value in amount.items() if value is not None)
