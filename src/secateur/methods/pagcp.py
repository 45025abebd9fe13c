"""PAGCP, performance-aware global channel pruning: layer after layer, as far as no task's loss rises above its limit.

Ye, Zhang, Chen, Fan, Wang, "Performance-aware Approximation of Global Channel Pruning for Multitask CNNs", IEEE TPAMI
2023, https://arxiv.org/abs/2303.11923. Written from a description of what the paper and its authors' program compute;
their code was not looked at. No training: a search on calibration data, at the cut.

1. Every task's loss on the calibration data is its base.
2. Layers (all that must be cut together is one) are ordered by the FLOPs that removing 30 % of their filters saves.
3. Thresholds begin at T0 = `initial_rate` and are multiplied by lambda from layer to layer, where lambda is the root of
   prod_{i=0}^{L-1} (1 + T0 lambda^i) = `initial_thres` for L layers; the order is ascending for lambda > 1, otherwise
   descending. Of layer i of the network as cut so far the filters of smallest saliency go (the sum over the coupled
   layers of a filter's mean absolute weight): 5 %, 10 % ... 95 % of them. As soon as any task's loss exceeds
   base * (1 + T), the ratio before is taken; the base becomes, task by task, max(base, loss at that ratio).
4. Only the cuts of the `topk` share of layers with the smallest rise of the losses over the FLOPs saved are kept.
   All of it may be repeated in `rounds`, which begin from the network as it is then.

Where the description is silent:

- *Losses* are sums over the batches, each batch counting as much as any other.
- *Mode.* The network runs as in training but for batch norms and dropout, since it is then that networks give what a
  training loss takes: side heads, raw detections. `mode="eval"` for losses of the eval output.
- *The rise* in step 4 is the sum over the tasks of (loss with the layer's cut - loss before it) / base; the saving is
  the share of the network's MACs. Of L layers ceil(topk L) are kept, at most.
- *The bound after step 4.* Leaving layers whole can, in principle, raise a loss; it is measured, and should a task
  exceed base * prod (1 + T_i), the next best cut is kept, too, and so on; with all of them the bound holds.
- *A budget*, which the paper has not: the cuts are kept best first (as in step 4, with as many layers as it takes)
  until the budget is met, of the last one only as much as is needed. If all of them are not enough, another round
  follows, up to `rounds`; then it is an error that says what can be had.
- *A single layer* has the whole of T0; lambda is 1.

`exact` is the literal procedure: every ratio in its order, on a cut copy and all of the data. Otherwise the same
decisions are reached with less work (prefix.py, oracle.py, layer_search.py): activations in front of the layer are
computed once for all its candidates, which are cut copies, so that their losses are the literal ones; a candidate is
dropped at the batch where a sum exceeds its limit, as no batch's loss is below zero (checked on those that are run; is
one found, all batches count for every candidate); and ratios are bisected, those that are skipped looked at on a part
of the batches (layer_search.py says what is assumed).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from secateur.allocate import Allocation
from secateur.errors import CheckpointError, MethodError, nearest
from secateur.graph import Graph
from secateur.methods.decisions import Decisions
from secateur.methods.greedy import Greedy, saliency, searched
from secateur.methods.oracle import Oracle
from secateur.methods.protocol import Method, Scores

log = logging.getLogger("secateur")

MODES = ("train", "eval")


@dataclass
class PAGCP(Method):
    """Every layer gives what it can until a task's loss exceeds its limit; the limits multiply up to a bound."""

    name = "pagcp"
    summary = "layer by layer, as much as leaves every task's loss within limits that multiply up to a bound"
    paper = "Ye et al., Performance-aware Approximation of Global Channel Pruning for Multitask CNNs, TPAMI 2023"
    needs_data = True
    by_task = True
    decides = True

    initial_rate: float = field(default=0.06, metadata={"help": "T0: how much the first layer may raise a loss"})
    initial_thres: float = field(
        default=6.0, metadata={"help": "what all layers together may multiply a loss by, above 1 + initial_rate"}
    )
    topk: float = field(
        default=0.8, metadata={"help": "share of the layers whose cut is kept, where no budget says it"}
    )
    rounds: int = field(default=1, metadata={"help": "walks through all layers; with a budget, at most so many"})
    exact: bool = field(
        default=False, metadata={"help": "every ratio in its order on a cut copy and all data: slow, as in the paper"}
    )
    batches: int | None = field(default=None, metadata={"help": "how many batches the losses are taken on; null: all"})
    mode: str = field(
        default="train", metadata={"help": "train: side heads give losses, too (statistics and dropout rest); or eval"}
    )
    memory: int = field(
        default=2048, metadata={"help": "MiB of batches, and of activations, that are kept; the rest is computed again"}
    )
    journal: str | None = field(
        default=None,
        metadata={"help": "JSON file of the decisions, to go on from; null: in the run folder of a recipe"},
    )

    def __post_init__(self) -> None:
        if not self.initial_rate > 0:
            raise MethodError(f"initial_rate {self.initial_rate}: a share above 0 was expected")
        if not self.initial_thres > 1 + self.initial_rate:
            raise MethodError(
                f"initial_thres {self.initial_thres}: above 1 + initial_rate = {1 + self.initial_rate:g} was expected"
            )
        if not 0 < self.topk <= 1:
            raise MethodError(f"topk {self.topk}: a share above 0, at most 1, was expected")
        for option in ("rounds", "memory", *(("batches",) if self.batches is not None else ())):
            if getattr(self, option) < 1:
                raise MethodError(f"{option} {getattr(self, option)}: at least 1 was expected")
        if self.mode not in MODES:
            raise MethodError(f"mode {self.mode!r}; {nearest(self.mode, MODES)}")
        self.decisions: Decisions | None = None
        self._asked: Allocation | None = None

    def within(self, allocation: Allocation) -> None:
        """What is asked for. Without it, the bound alone says how much goes.

        Raises:
            MethodError: latency, or ratios of single layers, which the search itself finds.
        """
        if "latency" in (allocation.budget or {}):
            raise MethodError(
                "pagcp can't search for a latency; give a budget of params, macs, paper_flops, yolo_flops"
            )
        if allocation.ratios:
            raise MethodError("pagcp finds every layer's ratio by itself; leave ratios out, or protect these layers")
        self._asked = allocation

    def note_decisions(self, path: Path) -> None:
        self.journal = self.journal or str(path)

    def scores(self, graph: Graph) -> Scores:
        """The saliency by which the filters of one layer are ranked."""
        return saliency(graph)

    def decided(self, graph: Graph) -> NDArray[np.bool_]:
        """The search; what it decided is in `decisions`.

        Raises:
            NothingPrunableError, BudgetError: nothing, or not enough, can go within the limits.
            MethodError: a task's loss is negative or no number.
            CheckpointError: the journal is of another network, other data or other settings.
        """
        first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        journal = Path(self.journal) if self.journal is not None and first else None

        def search() -> Greedy:
            oracle = Oracle(graph, self.material, self.mode, self.batches, self.memory * 2**20)
            return Greedy(
                graph, oracle, self._begun(graph, journal), self.initial_rate, self.initial_thres, self.topk,
                self.rounds, self.exact, self._asked, journal,
            )  # fmt: skip

        removed, self.decisions = searched(search)
        log.info("pagcp: what was tried, every task's loss with its limit, and what was chosen\n%s", self.decisions)
        return _of_first_process(graph, removed)

    def _begun(self, graph: Graph, journal: Path | None) -> Decisions:
        """The decisions to go on with, or none yet."""
        asked = self._fingerprint(graph)
        if journal is None or not journal.exists():
            return Decisions(asked)
        decisions = Decisions.load(journal)
        if decisions.asked != asked:
            other = [key for key in asked if decisions.asked.get(key) != asked[key]]
            raise CheckpointError(
                f"{journal} holds decisions with other settings ({', '.join(other)}); remove it to begin again, or "
                "give another journal"
            )
        return decisions

    def _fingerprint(self, graph: Graph) -> dict[str, Any]:
        """What decisions depend on beside the weights and the data, which their losses tell."""
        limits: Mapping[str, Any] = {}
        if self._asked is not None:
            names = ("pruning_ratio", "budget", "min_keep", "round_to", "protect")
            limits = {name: getattr(self._asked, name) for name in names}
            limits = {**limits, "budget": dict(limits["budget"] or {}), "protect": list(limits["protect"])}
        options = ("initial_rate", "initial_thres", "topk", "rounds", "exact", "batches", "mode")
        return {
            **{name: getattr(self, name) for name in options},
            "asked": dict(limits),
            "groups": [[group.name, len(group)] for group in graph.groups],
        }


def _of_first_process(graph: Graph, removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The first process's decisions for all of them: theirs may differ by the order of a device's sums."""
    if not (dist.is_available() and dist.is_initialized()):
        return removed
    shared = torch.from_numpy(removed.astype(np.uint8)).to(next(graph.model.parameters()).device)
    dist.broadcast(shared, 0)
    return shared.cpu().numpy().astype(bool)
