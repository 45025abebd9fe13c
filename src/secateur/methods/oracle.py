"""The performance-aware oracle: every task's loss of a network that some units have left, on calibration data."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import MethodError
from secateur.graph import Graph, mode_of, state_of
from secateur.graph.inside import distinct_modules, walked_once
from secateur.graph.keep import attributes_kept
from secateur.methods.material import Material, call
from secateur.methods.prefix import Prefix, played
from secateur.plan import Plan, plan_of
from secateur.surgery import apply

log = logging.getLogger("secateur")

Losses = dict[str, float]  # task -> the sum of its losses over batches

SAME = 1e-6  # relative: two losses of one network, in another order of sums
_STEADY = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.RReLU)  # as in eval mode throughout


@contextmanager
def as_trained(model: nn.Module, mode: str) -> Iterator[None]:
    """What the training loss takes (side heads, raw detections) comes from train mode; statistics stay, nothing drops.

    Args:
        mode: "train", train mode but for batch norms and dropout, or "eval".
    """
    with mode_of(model, mode == "train"):
        for module in distinct_modules(model) if mode == "train" else ():
            if isinstance(module, _STEADY):
                module.training = False
        yield


@dataclass(eq=False)
class Candidate:
    """A network that could come next, and what is known of its losses.

    Attributes:
        removed: bool per unit of the original network.
        plan: what goes from the network as it stands.
        batches: every task's loss of every batch that was run.
        model: the cut copy, while it is needed.
    """

    removed: NDArray[np.bool_]
    plan: Plan
    batches: list[Losses] = field(default_factory=list)
    model: nn.Module | None = None

    def sums(self) -> Losses:
        """Over the batches that were run."""
        return total(self.batches)


def total(batches: Sequence[Losses]) -> Losses:
    """Every task's sum over batches, added up in their order."""
    out: Losses = {}
    for losses in batches:
        for task, loss in losses.items():
            out[task] = out.get(task, 0.0) + loss
    return out


class BelowZero(Exception):
    """A batch's loss is below zero, so that sums over batches may fall again: what was stopped early counts not."""


def exceeds(sums: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Any task's loss is above its limit, or is no number."""
    return any(not sums[task] <= limit for task, limit in limits.items())


class Oracle:
    """Evaluates cut networks.

    Args:
        graph: of the original network, whose weights count; it is not changed.
        material: the calibration data and the loss.
        mode: see `as_trained`.
        limit: how many batches; None: all.
        memory: bytes of batches, and of activations, that may be held; what is beyond is read, or computed, again.
    """

    def __init__(self, graph: Graph, material: Material, mode: str, limit: int | None, memory: int) -> None:
        self.graph, self.material, self.mode, self.limit, self.memory = graph, material, mode, limit, memory
        self.stops = True  # losses are sums of numbers of which none is below zero
        self._held: list[tuple[Any, Any]] = []
        self._all_held = False
        self._room: dict[Any, Tensor] = {}
        self._keeps = True  # passes from a layer on were never seen to differ from full ones
        self.stand_at(np.zeros(graph.units, dtype=bool))

    # Where it stands

    def stand_at(self, removed: NDArray[np.bool_]) -> None:
        """Go on from the network without these units (bool per unit)."""
        self.plan = plan_of(self.graph, removed)
        self.model = apply(self.graph.model, self.plan)
        self.state = state_of(self.model)
        self.turn_to_a_layer()

    def turn_to_a_layer(self) -> None:
        """Forget what the candidates of another layer had in common."""
        self._prefixes: dict[int, Prefix] = {}
        self._compared, self._layer_keeps = False, True

    def candidate(self, removed: NDArray[np.bool_]) -> Candidate:
        """The network without these units (bool per unit of the original), of which those that are gone are some."""
        return Candidate(removed, plan_of(self.graph, removed).since(self.plan))

    # Losses

    def as_it_stands(self) -> list[Losses]:
        """Every task's loss of every batch, of the network as it stands.

        Raises:
            MethodError: a task's loss is below zero, or no number, so that nothing can be said of its growth.
            DataError: there are no batches.
        """
        with self._evaluating(self.model):
            batches = [self._full(self.model, batch) for batch in self._batches()]
        for task, loss in total(batches).items():
            if not (math.isfinite(loss) and loss >= 0):
                raise MethodError(
                    f"the loss {task!r} of the network is {loss} on the calibration data; expected a finite number, 0 "
                    "or more, since it is its growth by a factor that is bounded"
                )
        self.stops = self.stops and all(loss >= 0 for losses in batches for loss in losses.values())
        return batches

    def literally(self, candidate: Candidate) -> Losses:
        """The losses of a cut copy on all of the data."""
        small = apply(self.model, candidate.plan)
        with self._evaluating(small):
            return total([self._full(small, batch) for batch in self._batches()])

    def evaluated(self, candidate: Candidate, until: int, limits: Mapping[str, float], reach: Sequence[str]) -> Losses:
        """The losses of a cut copy on the first batches, computed from the layer on where what is in front is kept.

        Args:
            candidate: its `batches` are continued.
            until: how many batches.
            limits: task -> the sum over all batches that it may not exceed.
            reach: the tensors that any candidate of this layer changes.

        Returns:
            The sums over the batches that were run: fewer where a sum is above its limit, and stays there, since no
            batch's loss is below zero.

        Raises:
            BelowZero: one is; `stops` is false from now on.
        """
        done = len(candidate.batches)
        if done >= until or (self.stops and done and exceeds(candidate.sums(), limits)):
            return candidate.sums()
        if candidate.model is None:
            candidate.model = apply(self.model, candidate.plan)
        state = state_of(candidate.model)
        tensors = list({id(t): t for t in state.values()}.values())
        changed = [state[name] for name in reach]
        with self._evaluating(candidate.model):
            for number, batch in enumerate(self._batches()):
                if number < done:
                    continue
                if number >= until or (self.stops and candidate.batches and exceeds(candidate.sums(), limits)):
                    break
                candidate.batches.append(self._from_the_layer(candidate.model, number, batch, tensors, changed))
                if self.stops and min(candidate.batches[-1].values()) < 0:
                    self.stops = False
                    raise BelowZero
        return candidate.sums()

    def _from_the_layer(
        self,
        model: nn.Module,
        number: int,
        batch: tuple[Any, Any],
        tensors: Sequence[Tensor],
        changed: Sequence[Tensor],
    ) -> Losses:
        """One batch's losses."""
        if not (self._keeps and self._layer_keeps):
            return self._full(model, batch)
        inputs, target = pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, batch)
        given = [t for t in pytree.tree_leaves((inputs, target)) if isinstance(t, Tensor)]
        known = self._prefixes.get(number)

        def work() -> Losses:  # numbers: what is not reached has no other value than the number that was read
            return {task: float(loss) for task, loss in self.material.losses(call(model, inputs), target).items()}

        try:
            with _alone(model):
                found, prefix = played(known, work, tensors, changed, given, self._room)
        except Exception as why:  # whatever code says to stand-ins; an error of its own comes again in the full pass
            log.info("pagcp: full passes for this layer (%s)", why)
            self._layer_keeps = False
            self._prefixes.clear()
            return self._full(model, batch)
        if known is None:
            if self._kept_bytes + prefix.bytes <= self.memory:
                self._prefixes[number] = prefix
            return found
        if not self._compared:
            self._compared = True
            whole = self._full(model, batch)
            if not all(_alike(found[task], loss) for task, loss in whole.items()):
                log.warning("pagcp: passes from a layer on differ from full ones; full passes instead")
                self._keeps = False
                self._prefixes.clear()
                return whole
        return found

    @property
    def _kept_bytes(self) -> int:
        return sum(prefix.bytes for prefix in self._prefixes.values())

    def _full(self, model: nn.Module, batch: tuple[Any, Any]) -> Losses:
        inputs, target = pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, batch)
        with _alone(model):
            losses = self.material.losses(call(model, inputs), target)
        return {task: float(loss) for task, loss in losses.items()}

    @contextmanager
    def _evaluating(self, model: nn.Module) -> Iterator[None]:
        with walked_once(), as_trained(model, self.mode), torch.no_grad():
            yield

    def _batches(self) -> Iterator[tuple[Any, Any]]:
        """The calibration data, the same every time; held in memory as far as that reaches."""
        yield from self._held
        if self._all_held:
            return
        size, held, room = sum(map(_size, self._held)), len(self._held), True
        for number, batch in enumerate(self.material.batches(self.graph.model, self.limit)):
            if number < held:
                continue
            size += _size(batch)
            room = room and size <= self.memory
            if room:
                self._held.append(batch)
            yield batch
        self._all_held = room


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """A pass that depends on no other: random numbers start alike, and what forward leaves in attributes goes."""
    with attributes_kept(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _size(batch: Any) -> int:
    return sum(t.numel() * t.element_size() for t in pytree.tree_leaves(batch) if isinstance(t, Tensor))


def _alike(a: float, b: float) -> bool:
    return a == b or abs(a - b) <= SAME * max(abs(a), abs(b)) or (math.isnan(a) and math.isnan(b))
