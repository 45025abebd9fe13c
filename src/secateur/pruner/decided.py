"""Cut what a method has chosen by itself, exactly that and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch.optim import Optimizer

from secateur.allocate import Allocation, Guard, outcome
from secateur.errors import BudgetError, MethodError
from secateur.methods import Method
from secateur.plan import plan_of, units_of
from secateur.pruner.cutting import cut_verified
from secateur.pruner.one_cut import scores_of
from secateur.pruner.progress import Progress
from secateur.pruner.result import Result
from secateur.surgery import apply


def cut_decided(
    at: Progress,
    method: Method,
    aimed: Allocation | None,
    *,
    inplace: bool = False,
    optimizer: Optimizer | None = None,
    guard: Guard | None = None,
) -> Result:
    """Detach the method, remove the units that it has chosen, verify; the constants that they emit go into biases.

    Args:
        at: the network; nothing was cut from it before.
        method: attached to it.
        aimed: what the method was asked for; None: its own options said it.
        inplace: cut the network itself.
        optimizer: its state is cut along.
        guard: what the cut must keep to.

    Raises:
        MethodError: it has chosen nothing.
        BudgetError: the cut breaks the guard; nothing was cut.
        NothingPrunableError, VerificationError: as of `cut_verified`.
    """
    graph = at.now
    eligible, removed = scores_of(graph, method), method.decided(graph)
    if removed is None:
        raise MethodError(f"method {method.name} has chosen nothing; give an amount to finish()")
    method.stop()
    folded = method.fold(graph, plan_of(graph, removed))
    if folded is not None:
        removed = units_of(graph, folded.plan)
    if guard is not None:
        guard.start(lambda: graph.model)
        if guard.harm(apply(graph.model, plan_of(graph, removed)) if folded is None else folded.model) > 1:
            when = " while training" if method.needs_training else ""
            raise BudgetError(
                f"what {method.name} has chosen{when} breaks the guard ({guard}); let it remove less, or use a method "
                "that only scores: for those the guard is kept while it is decided what goes"
            )
    result = cut_verified(
        at,
        np.where(removed, 0.0, np.inf),
        Allocation(pruning_ratio=1.0, min_keep=0.0),
        inplace=inplace,
        optimizer=optimizer,
        warn=lambda removed: method.warnings(graph, removed),
    )
    share = float(removed.sum() / max(1, np.isfinite(eligible).sum()))
    asked, achieved = outcome(
        graph,
        eligible,
        units_of(graph, result.plan),
        result.before,
        result.after,
        aimed or Allocation(pruning_ratio=share),
        None,
    )
    result = replace(result, budget={"asked": asked, "achieved": achieved})
    if folded is not None and folded.plan != result.plan:  # the verification kept a group
        folded = method.fold(graph, result.plan)
    if folded is None:
        return result
    result.model.load_state_dict(folded.model.state_dict())
    notes = [f"{name}: {count} units stay, {why}" for name, (count, why) in folded.refused.items()]
    notes += [str(carried) for carried in folded.consumers if carried.note]
    return replace(result, warnings=(*result.warnings, *notes))
