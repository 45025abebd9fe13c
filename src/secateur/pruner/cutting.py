"""Select, cut and verify: no network is handed over that was not compared with the one it was cut from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from secateur.allocate import Allocation, outcome, selection, why_nothing
from secateur.costs import CostModel
from secateur.errors import NothingPrunableError, VerificationError
from secateur.graph import find_guilty, unwrapped
from secateur.plan import Plan, plan_of, units_of
from secateur.pruner.progress import Progress
from secateur.pruner.result import Result
from secateur.surgery import apply, verify
from secateur.surgery.cut import check as check_fit

log = logging.getLogger("secateur")


def cut_verified(
    at: Progress,
    scores: NDArray[np.float64],
    allocation: Allocation,
    *,
    inplace: bool = False,
    check: bool = True,
    optimizer: Optimizer | None = None,
    averages: Iterable[nn.Module] = (),
    warn: Callable[[NDArray[np.bool_]], list[str]] | None = None,
) -> Result:
    """Select, apply and verify. Groups whose removal fails the verification are found by bisection, kept, and the rest
    goes on.

    Args:
        at: the network, and the original that the allocation's shares refer to.
        scores: per unit of the network as it is.
        allocation: how much goes of the original, what was removed before included.
        inplace: cut the network itself.
        check: verify.
        optimizer: its state is cut along.
        averages: copies of the network, cut along in place.
        warn: bool per unit of the network as it is, removed now -> what the user should know.

    Raises:
        NothingPrunableError: nothing was removed though something was asked for.
        PlanError: one of `averages` is of another shape; nothing was cut.
        VerificationError: no exact plan could be found.
    """
    graph, model = at.original, at.now.model
    given = at.in_original(scores)
    values = given.copy()
    refused: dict[int, str] = {}
    report, small = None, None
    while True:
        try:
            plan, latency = selection(
                graph, values, allocation, at.gone, lambda plan: apply(model, plan.since(at.plan))
            )
        except NothingPrunableError:
            raise NothingPrunableError(why_nothing(graph, values, refused)) from None
        if not len(plan) and (refused or allocation.pruning_ratio):
            raise NothingPrunableError(why_nothing(graph, values, refused))
        going = plan.since(at.plan)
        if not check:
            break
        small = apply(model, going)
        report = verify(model, small, going, at.now.example_inputs)
        if report.ok:
            break
        found = _refused(at, plan)
        if not found:
            raise VerificationError(
                f"the pruned {type(model).__name__} is not exact, and no group alone is to blame: {report}"
            )
        refused.update(found)
        for group in found:
            values[list(graph.groups[group].units)] = np.inf
    notes = [f"{graph.groups[g].name} was kept: failed verification ({text})" for g, text in refused.items()]
    costs = CostModel(graph)
    removed = units_of(graph, plan)
    before, after = costs(), costs(removed)
    warnings = warn(at.in_now(removed & ~at.gone)) if warn is not None else []
    averages = tuple(averages)
    for average in averages:
        check_fit(unwrapped(average), going)
    if small is None or inplace or optimizer is not None:
        small = apply(model, going, inplace=inplace, optimizer=optimizer)
    for average in averages:
        apply(average, going, inplace=True)
    asked, got = outcome(graph, given, removed, before, after, allocation, latency)
    if got.get("pruning_ratio", 1.0) < asked.get("pruning_ratio", 0.0) - 0.01:
        notes.append(
            f"{got['pruning_ratio']:.1%} of the units were removed, {asked['pruning_ratio']:.1%} asked: "
            "min_keep or round_to stopped it"
        )
    for text in notes:
        log.warning(text)
    return Result(small, plan, report, before, after, {"asked": asked, "achieved": got}, graph, (*warnings, *notes))


def _refused(at: Progress, plan: Plan) -> dict[int, str]:
    """The groups that can't be removed exactly, by bisection: group -> what the verification said."""
    graph, model = at.original, at.now.model
    going = units_of(graph, plan) & ~at.gone
    groups = sorted(set(graph.solution.group_of[going].tolist()))

    def said(part: Any) -> str | None:
        some = at.gone | (going & np.isin(graph.solution.group_of, part))
        smaller = plan_of(graph, some).since(at.plan)
        report = verify(model, apply(model, smaller), smaller, at.now.example_inputs)
        return None if report.ok else next((c.problem for c in report.checks if c.problem), str(report))

    guilty: dict[int, str] = {}
    find_guilty(groups, said, guilty)
    return guilty
