"""Prune in one call, or along somebody's own training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.optim import Optimizer

from secateur.allocate import Allocation, outcome, selection, why_nothing
from secateur.costs import Cost, CostModel, LatencyTable
from secateur.errors import NothingPrunableError, VerificationError
from secateur.graph import Graph, find_guilty, trace
from secateur.methods import Method, Training, make_method
from secateur.plan import Plan, plan_of
from secateur.surgery import Report, apply, verify

log = logging.getLogger("secateur")

Criterion = Callable[[Graph], ArrayLike]


@dataclass(frozen=True)
class Result:
    """A pruned network and everything to know about it.

    Attributes:
        model: the pruned network, a plain module of the original's class.
        plan: what was removed.
        report: the verification; None only if it was switched off.
        before, after: cost on the example inputs.
        budget: {"asked": ..., "achieved": ...} in the same units.
        graph: the graph of the original.
        warnings: what the user should know.
    """

    model: nn.Module
    plan: Plan
    report: Report | None
    before: Cost
    after: Cost
    budget: Mapping[str, Mapping[str, float]]
    graph: Graph
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        def row(name: str, a: float, b: float) -> str:
            return f"{name:<14}{a:>16,.0f}{b:>16,.0f}{(b / a - 1) if a else 0:>+10.1%}"

        def unit(name: str) -> str:
            return " ms" if name == "latency" and self.budget["asked"][name] > 1 else ""

        before, after = self.before, self.after
        lines = [f"{'':<14}{'before':>16}{'after':>16}{'change':>10}"]
        lines += [row(name, getattr(before, name), getattr(after, name)) for name in ("params", "macs", "paper_flops")]
        lines.append(row("bytes (fp32)", 4 * before.params, 4 * after.params))
        for what in ("asked", "achieved"):
            lines.append(f"{what:<14}" + ", ".join(f"{k} {v:.4g}{unit(k)}" for k, v in self.budget[what].items()))
        lines.append(f"verification  {self.report if self.report is not None else 'not made'}")
        pinned = [g for g in self.graph.groups if g.pinned]
        lines.append(f"pinned        {len(pinned)} of {len(self.graph.groups)} groups" + (":" if pinned else ""))
        lines += [f"  {g.name} ({len(g)} units): {g.pinned}" for g in pinned]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines)


def score(graph: Graph, method: str | Method | Criterion, **options: Any) -> NDArray[np.float64]:
    """One score per unit, the smallest least important; +inf for what must stay.

    Args:
        graph: the traced network.
        method: a method's name, a method object, or a function graph -> scores.

    Raises:
        MethodError: unknown method or option.
    """
    if not isinstance(method, (str, Method)) and callable(method):
        values = np.asarray(method(graph), dtype=np.float64)
    else:
        values = make_method(method, **options).scores(graph)
    return np.where(graph.prunable, values, np.inf)


def cut_verified(
    graph: Graph,
    scores: ArrayLike,
    allocation: Allocation,
    *,
    inplace: bool = False,
    check: bool = True,
    optimizer: Optimizer | None = None,
    warn: Callable[[NDArray[np.bool_]], list[str]] | None = None,
) -> Result:
    """Select, apply and verify. Groups whose removal fails the verification are found by bisection, kept, and the rest
    goes on.

    Raises:
        NothingPrunableError: nothing was removed though something was asked for.
        VerificationError: no exact plan could be found.
    """
    model, inputs = graph.model, graph.example_inputs
    values = np.asarray(scores, dtype=np.float64).copy()
    refused: dict[int, str] = {}
    report, small = None, None
    while True:
        try:
            plan, latency = selection(graph, values, allocation)
        except NothingPrunableError:
            raise NothingPrunableError(why_nothing(graph, values, refused)) from None
        if not len(plan):
            if refused or allocation.pruning_ratio:
                raise NothingPrunableError(why_nothing(graph, values, refused))
            break  # the empty plan is what was asked for
        if not check:
            break
        small = apply(model, plan)
        report = verify(model, small, plan, inputs)
        if report.ok:
            break
        found = _refused(graph, plan)
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
    warnings = warn(removed) if warn is not None else []
    if small is None or inplace or optimizer is not None:
        small = apply(model, plan, inplace=inplace, optimizer=optimizer)
    asked, got = outcome(graph, np.asarray(scores, dtype=np.float64), removed, before, after, allocation, latency)
    if got.get("pruning_ratio", 1.0) < asked.get("pruning_ratio", 0.0) - 0.01:
        notes.append(
            f"{got['pruning_ratio']:.1%} of the units were removed, {asked['pruning_ratio']:.1%} asked: "
            "min_keep or round_to stopped it"
        )
    for text in notes:
        log.warning(text)
    return Result(small, plan, report, before, after, {"asked": asked, "achieved": got}, graph, (*warnings, *notes))


def units_of(graph: Graph, plan: Plan) -> NDArray[np.bool_]:
    """bool per unit: removed by the plan."""
    removed = np.zeros(graph.units, dtype=bool)
    by_name = {t.name: t for t in graph.tensors}
    for name, dims in plan.removed.items():
        for dim, indices in dims.items():
            removed[graph.solution.of_atom[by_name[name].first[dim] + np.asarray(indices)]] = True
    return removed


def _refused(graph: Graph, plan: Plan) -> dict[int, str]:
    """The groups that can't be removed exactly, by bisection: group -> what the verification said."""
    removed = units_of(graph, plan)
    groups = sorted(set(graph.solution.group_of[removed].tolist()))

    def said(part: Any) -> str | None:
        smaller = plan_of(graph, removed & np.isin(graph.solution.group_of, part))
        report = verify(graph.model, apply(graph.model, smaller), smaller, graph.example_inputs)
        return None if report.ok else next((c.problem for c in report.checks if c.problem), str(report))

    guilty: dict[int, str] = {}
    find_guilty(groups, said, guilty)
    return guilty


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    method: str | Method | Criterion = "l1",
    pruning_ratio: float | None = None,
    budget: Mapping[str, float] | None = None,
    scope: str = "global",
    min_keep: float = 0.1,
    round_to: int = 1,
    protect: Iterable[str] = (),
    ratios: Mapping[str, float] | None = None,
    latency_table: LatencyTable | Path | str | None = None,
    inplace: bool = False,
    verify: bool = True,
    optimizer: Optimizer | None = None,
    **options: Any,
) -> Result:
    """Trace, score, select, apply and verify in one call.

    Args:
        model: any network; it is not changed unless `inplace`.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        method: a data-free method's name, a method object, or a function graph -> scores.
        pruning_ratio, budget, scope, min_keep, round_to, protect, ratios, latency_table: see `select`.
        inplace: cut the network itself.
        verify: compare the result with the silenced original before handing it over.
        optimizer: its state is cut along.
        options: the method's options.

    Raises:
        NothingPrunableError, BudgetError, MethodError, ModelError, VerificationError.
    """
    allocation = Allocation(pruning_ratio, budget, scope, min_keep, round_to, protect, ratios, latency_table)
    graph = trace(model, example_inputs)
    scores = score(graph, method, **options)
    return cut_verified(graph, scores, allocation, inplace=inplace, check=verify, optimizer=optimizer)


class Pruner:
    """A method's part in anybody's training loop.

    Args:
        model: the network that is being trained.
        example_inputs: what to trace it on.
        method: a method's name or object.
        options: the method's options.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, method: str | Method = "cap", **options: Any) -> None:
        self.method = make_method(method, **options)
        self.graph = trace(model, example_inputs)
        self.method.start(self.graph)
        self._stepped = True  # nothing is owed to the optimizer's last step

    @property
    def needs_training(self) -> bool:
        """The method acts while training; others only score at the end."""
        return self.method.needs_training

    def begin(self, steps: int, lr_sum: float, momentum: float = 0.0, adaptive: bool = False) -> None:
        """Tell the schedule: optimizer steps in all, the sum of the learning rate over them, SGD's momentum (0 for
        other optimizers).
        """
        self.method.begin(Training(steps, lr_sum, momentum, adaptive))

    def after_backward(self) -> None:
        """Between `loss.backward()` and `optimizer.step()`."""
        if not self._stepped:  # a loop that does not call after_step: what belongs there is done here
            self.method.after_step()
        self.method.after_backward()
        self._stepped = False

    def after_step(self, lr: float | None = None) -> None:
        """Right after `optimizer.step()`, with its learning rate if it changes. Optional: without it, the same happens
        at the next `after_backward`, as if the learning rate were constant."""
        self.method.after_step(lr)
        self._stepped = True

    def after_epoch(self, epoch: int) -> None:
        """At the end of an epoch (0-based)."""
        self.method.after_epoch(epoch)

    def log(self) -> dict[str, float]:
        """Numbers worth a line in the log."""
        return self.method.log()

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on after an interruption."""
        return {"method": self.method.state_dict(), "stepped": self._stepped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.method.load_state_dict(state["method"])
        self._stepped = bool(state["stepped"])

    def finish(
        self,
        pruning_ratio: float | None = None,
        budget: Mapping[str, float] | None = None,
        *,
        scope: str = "global",
        min_keep: float = 0.1,
        round_to: int = 1,
        protect: Iterable[str] = (),
        ratios: Mapping[str, float] | None = None,
        latency_table: LatencyTable | Path | str | None = None,
        inplace: bool = False,
        optimizer: Optimizer | None = None,
    ) -> Result:
        """Detach the method, remove channels physically, verify.

        Args:
            pruning_ratio, budget, scope, min_keep, round_to, protect, ratios, latency_table: see `select`.
            inplace: cut the network itself.
            optimizer: its state is cut along.

        Raises:
            NothingPrunableError, BudgetError, MethodError, VerificationError.
        """
        allocation = Allocation(pruning_ratio, budget, scope, min_keep, round_to, protect, ratios, latency_table)
        if not self._stepped:
            self.after_step()
        scores = score(self.graph, self.method)
        self.close()
        return cut_verified(
            self.graph,
            scores,
            allocation,
            inplace=inplace,
            optimizer=optimizer,
            warn=lambda removed: self.method.warnings(self.graph, removed),
        )

    def close(self) -> None:
        """Detach the method without pruning."""
        self.method.stop()
