"""PAGCP's walk: the layers one after the other, each as far as every task's limit allows, and which cuts are kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from secateur.allocate import Allocation
from secateur.allocate.order import Chunk, chunks_of, leaving, within
from secateur.costs import CostModel, fewest
from secateur.errors import BudgetError, CheckpointError, MethodError, NothingPrunableError
from secateur.graph import Graph, match_groups
from secateur.methods.channels import computed_filters, filters, per_unit, units_along
from secateur.methods.decisions import Decisions, LayerDecision, Round, Try
from secateur.methods.layer_search import Found, literally, with_less_work
from secateur.methods.oracle import SAME, BelowZero, Losses, Oracle, exceeds, total

log = logging.getLogger("secateur")

RATIOS = tuple(step / 20 for step in range(1, 20))  # 0.05, 0.10 ... 0.95
ORDERED_BY = 0.3  # layers are ordered by what this share of their filters would save

Removed = NDArray[np.bool_]


def decay(initial_rate: float, bound: float, layers: int) -> float:
    """lambda, the root of prod_{i=0}^{L-1} (1 + T0 lambda^i) = bound; 1 for a single layer, which has T0 to itself.

    Raises:
        MethodError: there is none, since the first layer alone may use up the bound.
    """
    if layers == 1:
        return 1.0
    if not bound > 1 + initial_rate:
        raise MethodError(
            f"initial_thres {bound}: what all layers together may raise a loss to has to be above what the first may "
            f"alone, 1 + initial_rate = {1 + initial_rate:g}"
        )
    powers, start = np.arange(layers), math.log(initial_rate)

    def excess(log_factor: float) -> float:
        return float(np.logaddexp(0.0, start + powers * log_factor).sum()) - math.log(bound)

    low, high = -1.0, 1.0
    while excess(low) > 0:
        low *= 2
    while excess(high) < 0:
        high *= 2
    for _ in range(200):  # until the numbers between are used up
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return math.exp(low)  # below the root: the product is never above the bound


def saliency(graph: Graph, oracle: Oracle | None = None) -> NDArray[np.float64]:
    """Per unit the sum over its filters of the mean absolute weight, (units,); +inf for what must stay.

    Args:
        graph: of the original network.
        oracle: of the network as it stands, whose filters have fewer weights; None: the original's.
    """
    parts = []
    with torch.no_grad():
        for info, dim, weight in filters(graph):
            units, now = units_along(graph, info, dim), weight
            if oracle is not None:
                now = oracle.state[info.name]
                if info.name in oracle.plan.shapes:
                    units = units[oracle.plan.kept(info.name, dim)]
            parts.append((units, _mean_weights(now, dim)))
        parts.extend((units, _mean_weights(weight, dim)) for units, dim, weight in computed_filters(graph))
    return per_unit(graph, parts, "sum")


def _mean_weights(weight: torch.Tensor, dim: int) -> NDArray[np.float64]:
    return weight.detach().movedim(dim, 0).flatten(1).abs().mean(1).double().cpu().numpy()


@dataclass
class Greedy:
    """The search.

    Attributes:
        graph: of the network; nothing was cut from it.
        oracle: its evaluation.
        decisions: what has been decided; gone on with.
        initial_rate, initial_thres, topk, rounds, exact: the method's options.
        asked: floors, rounding, protection, and a budget or ratio at which enough has gone; None: no such limit.
        journal: written after every layer; None: nowhere.
    """

    graph: Graph
    oracle: Oracle
    decisions: Decisions
    initial_rate: float
    initial_thres: float
    topk: float
    rounds: int
    exact: bool
    asked: Allocation | None
    journal: Path | None

    def __post_init__(self) -> None:
        self.costs = CostModel(self.graph)
        self.allowed = self.asked or Allocation(pruning_ratio=1.0, min_keep=0.0)
        self.protected = [
            group for found in match_groups(self.graph, self.allowed.protect, "protect").values() for group in found
        ]

    def run(self) -> Removed:
        """The units that go (bool per unit).

        Raises:
            NothingPrunableError: nothing may go within the limits.
            BudgetError: what was asked can't be had within them.
        """
        removed = np.zeros(self.graph.units, dtype=bool)
        for number in range(self.rounds):
            removed = self._round(number, removed)
            if self.asked is not None and self._enough(removed):
                return removed
        if self.asked is not None:
            raise BudgetError(self._what_can_be_had(removed))
        if not removed.any():
            raise NothingPrunableError(
                f"within its limits (every loss at most {self.initial_thres:g} times as large) pagcp can remove "
                "nothing; give it a larger initial_rate or initial_thres"
            )
        return removed

    def _round(self, number: int, before: Removed) -> Removed:
        """One walk from a network that some units have left already."""
        self.oracle.stand_at(before)
        batches = self.oracle.as_it_stands()
        whole, layers = total(batches), self._in_order(before)
        here = self._begun(number, whole, len(batches), layers)
        base, threshold, removed = dict(whole), self.initial_rate, before.copy()
        for position, group in enumerate(layers):
            limits = {task: loss * (1 + threshold) for task, loss in base.items()}
            if position >= len(here.layers):
                losses = here.layers[-1].losses if here.layers else whole
                here.layers.append(self._layer(group, removed, threshold, limits, batches, losses, whole))
                self._save()
            decided = here.layers[position]
            log.info("pagcp %d/%d %s", position + 1, len(layers), _line(decided, len(batches)))
            gone = [unit for chunk in decided.chunks for unit in chunk]
            if gone:
                removed[gone] = True
                self.oracle.stand_at(removed)
            base = {task: max(base[task], decided.losses[task]) for task in base}
            here.bound = {task: here.bound.get(task, whole[task]) * (1 + threshold) for task in whole}
            threshold *= here.factor
        kept, here.final = self._kept(here, before)
        here.removed = np.flatnonzero(kept).tolist()
        self._save()
        return kept

    def _begun(self, number: int, whole: Losses, count: int, layers: Sequence[int]) -> Round:
        """The round's record: a new one, or the one to go on with."""
        rounds, names = self.decisions.rounds, [self.graph.groups[group].name for group in layers]
        if number == len(rounds):
            self.decisions.batches = count
            factor = decay(self.initial_rate, self.initial_thres, len(layers))
            rounds.append(Round(whole, factor, names))
        here = rounds[number]
        same = here.base.keys() == whole.keys() and all(
            abs(here.base[task] - loss) <= SAME * max(abs(loss), 1e-30) for task, loss in whole.items()
        )
        if here.order != names or self.decisions.batches != count or not same:
            raise CheckpointError(
                f"{self.journal} holds decisions on another network or other data (its losses were {here.base}, now "
                f"they are {whole}); remove it to begin again"
            )
        whole.update(here.base)  # to the last bit, so that all decisions are as they would have been
        here.bound = {}
        return here

    def _in_order(self, removed: Removed) -> list[int]:
        """The groups that can be cut, by the MACs that removing 30 % of their filters would save: the smallest first
        if the thresholds grow from layer to layer (lambda > 1), else the largest."""
        chunks = self._chunks(saliency(self.graph, self.oracle), removed)
        whole, saved = self.costs.total("macs", removed), {}
        for group in chunks:
            units = np.asarray(self.graph.groups[group].units)
            there = units[~removed[units]]
            without = removed.copy()
            without[there[: max(1, int(ORDERED_BY * len(there) + 1e-9))]] = True
            saved[group] = whole - self.costs.total("macs", without)
        if not saved:
            raise NothingPrunableError("no layer of this network can be cut; `secateur inspect` tells why")
        grows = decay(self.initial_rate, self.initial_thres, len(saved)) > 1
        return sorted(saved, key=lambda group: (saved[group] if grows else -saved[group], group))

    def _chunks(self, scores: NDArray[np.float64], removed: Removed) -> dict[int, list[Chunk]]:
        """Group -> its units in the order in which they may go."""
        values = scores.copy()
        for group in self.protected:
            values[list(self.graph.groups[group].units)] = np.inf
        one = Allocation(
            pruning_ratio=1.0, scope="group", min_keep=self.allowed.min_keep, round_to=self.allowed.round_to
        )
        found = chunks_of(self.graph, values, one, removed, None)
        return {group: chunks for group, chunks in found.items() if chunks}

    def _layer(
        self,
        group: int,
        removed: Removed,
        threshold: float,
        limits: Losses,
        base: list[Losses],
        here: Losses,
        whole: Losses,
    ) -> LayerDecision:
        """One layer's turn."""
        size = int((~removed[list(self.graph.groups[group].units)]).sum())
        chunks = self._chunks(saliency(self.graph, self.oracle), removed).get(group, [])
        parts = [within(chunks, ratio * size) for ratio in RATIOS]
        ratios = list(range(len(RATIOS)))
        if not self.exact:  # several ratios may remove the same
            ratios = [n for n in ratios if len(parts[n]) > (len(parts[n - 1]) if n else 0)]
        candidates = [self.oracle.candidate(removed | leaving(self.graph, parts[n])) for n in ratios]
        if self.exact:
            found = literally(self.oracle, candidates, limits, len(base))
        else:
            self.oracle.turn_to_a_layer()
            found = with_less_work(self.oracle, candidates, limits, base)
        return self._decided(group, size, threshold, limits, found, ratios, parts, removed, here, whole)

    def _decided(
        self,
        group: int,
        size: int,
        threshold: float,
        limits: Losses,
        found: Found,
        ratios: Sequence[int],
        parts: Sequence[list[Chunk]],
        removed: Removed,
        here: Losses,
        whole: Losses,
    ) -> LayerDecision:
        decision = LayerDecision(self.graph.groups[group].name, size, threshold, limits)
        for tried in found.tried:
            count = sum(len(chunk.units) for chunk in parts[ratios[tried.number]])
            decision.tried.append(Try(RATIOS[ratios[tried.number]], count, tried.losses, tried.batches, tried.passed))
        decision.losses = dict(here)
        if found.last >= 0 and found.losses is not None and parts[ratios[found.last]]:
            chosen = parts[ratios[found.last]]
            decision.ratio, decision.losses = _smallest(RATIOS, parts, ratios[found.last]), dict(found.losses)
            decision.chunks = [chunk.units.tolist() for chunk in chosen]
            before = self.costs.total("macs", removed)
            decision.macs_saved = before - self.costs.total("macs", removed | leaving(self.graph, chosen))
            rise = sum((decision.losses[task] - here[task]) / whole[task] for task in whole if whole[task] > 0)
            share = decision.macs_saved / max(1, self.costs.total("macs"))
            decision.score = rise / share if share > 0 else None
        return decision

    # Which cuts are kept

    def _kept(self, here: Round, before: Removed) -> tuple[Removed, Losses]:
        """The best share of the layers, or the best of them until enough has gone; more where the bound asks for it."""
        cut = sorted(
            (decision for decision in here.layers if decision.chunks),
            key=lambda d: (math.inf if d.score is None else d.score, here.order.index(d.group)),
        )
        self.oracle.stand_at(before)
        count = min(len(cut), math.ceil(self.topk * len(here.layers) - 1e-9))
        if self.asked is not None:
            count = fewest(lambda n: self._enough(_without(before, cut[:n])), 0, len(cut))
        while True:
            removed = _without(before, cut[:count])
            if self.asked is not None and count:
                removed = self._no_more_than_enough(_without(before, cut[: count - 1]), cut[count - 1])
            losses = self.oracle.literally(self.oracle.candidate(removed))
            limits = {task: bound * (1 + SAME) for task, bound in here.bound.items()}
            if count == len(cut) or not exceeds(losses, limits):
                break
            count += 1
        for decision in here.layers:
            decision.kept = any(decision is each for each in cut[:count])
        return removed, losses

    def _no_more_than_enough(self, removed: Removed, last: LayerDecision) -> Removed:
        """Of the last layer only as much as is needed; all of it where that is not enough."""

        def with_part(count: int) -> Removed:
            out = removed.copy()
            out[[unit for chunk in last.chunks[:count] for unit in chunk]] = True
            return out

        return with_part(fewest(lambda n: self._enough(with_part(n)), 0, len(last.chunks)))

    def _enough(self, removed: Removed) -> bool:
        """What was asked for is reached."""
        assert self.asked is not None
        if self.asked.budget is None:
            return int(removed.sum()) >= int((self.asked.pruning_ratio or 0.0) * self._removable + 1e-9)
        return all(
            self.costs.total(name, removed) <= (limit * self.costs.total(name) if limit <= 1 else limit)
            for name, limit in self.asked.budget.items()
        )

    @property
    def _removable(self) -> int:
        units = self.graph.prunable & np.isfinite(saliency(self.graph))
        return int((units & ~np.isin(self.graph.solution.group_of, self.protected)).sum())

    def _what_can_be_had(self, removed: Removed) -> str:
        assert self.asked is not None
        if self.asked.budget is None:
            least = f"pruning_ratio {removed.sum() / max(1, self._removable):.3g}"
            asked = f"pruning_ratio {self.asked.pruning_ratio:g}"
        else:
            least = ", ".join(
                f"{name} {self.costs.total(name, removed) / self.costs.total(name):.3g}" for name in self.asked.budget
            )
            asked = ", ".join(f"{name} {limit:g}" for name, limit in self.asked.budget.items())
        return (
            f"{asked} was asked; {least} is what pagcp can have in {self.rounds} round(s) that may raise every loss "
            f"{self.initial_thres:g} times each. Ask for less, or give a larger initial_thres or more rounds"
        )

    def _save(self) -> None:
        if self.journal is not None:
            self.decisions.save(self.journal)


def _without(before: Removed, decisions: Sequence[LayerDecision]) -> Removed:
    out = before.copy()
    out[[unit for decision in decisions for chunk in decision.chunks for unit in chunk]] = True
    return out


def _smallest(ratios: Sequence[float], parts: Sequence[list[Chunk]], chosen: int) -> float:
    """Of the ratios that remove the same, the first."""
    return next(ratio for ratio, part in zip(ratios, parts, strict=True) if len(part) == len(parts[chosen]))


def _line(decision: LayerDecision, batches: int) -> str:
    losses = ", ".join(
        f"{task} {loss / batches:.4g} of {decision.limits[task] / batches:.4g}"
        for task, loss in decision.losses.items()
    )
    return f"{decision.group}: {decision.ratio:.0%} of {decision.units} units; {losses}"


def searched(make: Callable[[], Greedy]) -> tuple[Removed, Decisions]:
    """Runs a search; once more, without stopping candidates early, should a batch's loss turn out to be below zero."""
    search = make()
    try:
        return search.run(), search.decisions
    except BelowZero:
        log.info("pagcp: a batch's loss is below zero; beginning again, with all batches for every candidate")
        search.decisions.rounds.clear()
        return search.run(), search.decisions
