"""MCAG, minority-class-aware online group pruning: the channels that rare classes need stay, the others fade away.

"Minority-Class-aware Online Group Pruning Method for Image Segmentation Networks": the authors' code and its page; no
other description was at hand. Implemented, with the code's defaults:

1. After the first epoch, Taylor scores of every channel for every class (`class_taylor`).
2. The minority classes are those with the fewest pixels in the training data.
3. Every minority class ranks the channels of a layer; the rankings are interleaved, rarest class first.
4. The first `keep_rate` of every layer stay.
5. After every epoch all that makes the other channels is multiplied by `decay`, and trains on, so that they may
   recover; in the last `final_epochs` it is multiplied by 0. At the end they are removed.

Variants with the same flow: "taylor" (sum of the ranks over all classes), "taylor_small" (interleaved over all classes,
rarest first); and such that choose anew after every epoch until the last phase: "sfp" (L2 norm), "fpgm" (sum of the
distances to the layer's other filters), "tmm" (of the two closest filters, the one that is nearer to all others goes).

Deviations:
- *Mode.* The published code makes its pass in train mode, in front of batch norms, where these scores are zero but for
  rounding and the norms' eps (see taylor.py). Here it is in eval mode.
- *Order.* The published code sorts the interleaved list by channel number, and so keeps the channels of the lowest
  numbers. Here it is the order of first appearance.
- *Void* pixels count for nothing; there, the network's answer is their target.
- *Coupled channels* that several layers make together are one: their scores are added up over these layers.
- *How many classes* are a minority is a table in the published code: CamVid 5 of 11, Cityscapes 10 of 19, VOC 10 of
  21, ADE20K 73 of 150, which no rule on the number of classes gives. Here: half, rounded down, of the classes that
  occur (5, 9, 10 and 75); `minority` takes another number.
- *Short trainings.* 50 final epochs are a sixth of the published 300; of less than that they are a sixth.
- *The last phase* has one choice: there, "sfp", "fpgm" and "tmm" choose anew among filters that are zero.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from secateur.errors import MethodError, nearest
from secateur.graph import Graph
from secateur.methods.channels import per_unit
from secateur.methods.class_taylor import class_scores
from secateur.methods.contributions import readings
from secateur.methods.distances import closest_pairs, unit_distances
from secateur.methods.minority import (
    Minority,
    by_rank_sum,
    interleaved,
    labels_of,
    minority_of,
    pixel_counts,
    rarest_first,
)
from secateur.methods.protocol import Method, Scores, Training
from secateur.methods.soft import chosen_from, chosen_state, fade, filter_norms, kept_of, share_between, weakest

log = logging.getLogger(__name__)

BY_CLASS = ("taylor_small_group", "taylor_small", "taylor")
BY_WEIGHTS = ("sfp", "fpgm", "tmm")


@dataclass
class MCAG(Method):
    """The channels of every layer that minority classes rank highest stay; the rest fades, epoch by epoch."""

    name = "mcag"
    summary = "class-wise Taylor scores, rankings of the rarest classes first; the rest fades and may recover"
    paper = "Minority-Class-aware Online Group Pruning Method for Image Segmentation Networks (authors' code)"
    needs_training = True
    needs_data = True
    needs_labels = True
    decides = True

    variant: str = field(
        default="taylor_small_group",
        metadata={"help": "how channels are ranked: taylor_small_group, taylor_small, taylor, sfp, fpgm, tmm"},
    )
    keep_rate: float = field(default=0.5, metadata={"help": "share of every layer that stays, where no budget says it"})
    decay: float = field(default=0.7, metadata={"help": "factor on all that makes the other channels, every epoch"})
    final_epochs: int = field(
        default=50, metadata={"help": "last epochs with a factor of 0; of fewer than six times that, a sixth of them"}
    )
    minority: Minority = field(
        default=None, metadata={"help": "how many of the rarest classes, or their names or labels; null: half of them"}
    )
    batches: int | None = field(default=None, metadata={"help": "how many batches the scores take; null: all"})

    def __post_init__(self) -> None:
        if self.variant not in (*BY_CLASS, *BY_WEIGHTS):
            raise MethodError(f"variant {self.variant!r}; {nearest(self.variant, (*BY_CLASS, *BY_WEIGHTS))}")
        share_between("keep_rate", self.keep_rate)
        share_between("decay", self.decay)
        if self.final_epochs < 1:
            raise MethodError(f"final_epochs {self.final_epochs}: at least 1 was expected")
        if self.batches is not None and self.batches < 1:
            raise MethodError(f"batches {self.batches}: at least 1 was expected, or null for all")
        self._forget(np.zeros(0, np.int64), 0)

    def _forget(self, kept: NDArray[np.int64], units: int) -> None:
        self._kept, self._gone = kept, np.zeros(units, bool)
        self._importance: Scores | None = None  # per unit; +inf for what can't be ranked
        self._epochs = 0  # finished
        self._silent = False  # the last factor was 0

    def start(self, graph: Graph) -> None:
        labels_of(self.minority, self.material.class_names)  # refuses what there is not
        self._graph = graph
        self._rankable = np.isfinite(
            per_unit(graph, [(r.units, np.zeros(len(r.units))) for r in readings(graph)], "sum")
        )
        self._forget(kept_of(graph, 1 - self.keep_rate), graph.units)
        self._total = 0

    def aim(self, kept: NDArray[np.int64]) -> None:
        self._kept = kept

    def begin(self, training: Training) -> None:
        self._total = training.epochs

    @property
    def _final(self) -> bool:
        """The last phase has come: its factor is 0."""
        last = self.final_epochs if self._total >= 6 * self.final_epochs else max(1, self._total // 6)
        return 0 < self._total <= self._epochs - 1 + last

    def after_epoch(self, epoch: int) -> None:
        self._epochs += 1
        if self._importance is None or (self.variant in BY_WEIGHTS and not self._silent):
            self._importance = _of_first_process(self._graph, self._rank())
            self._gone = weakest(self._graph, self._importance, self._kept)
        self._silent = self._final
        fade(self._graph, self._gone, 0.0 if self._silent else self.decay)

    def _rank(self) -> Scores:
        """The importance of every unit: in every group 1 for the first of its ranking, evenly down to above 0."""
        graph, importance = self._graph, np.full(self._graph.units, np.inf)
        orders = self._by_class() if self.variant in BY_CLASS else self._by_weights()
        for number, order in orders.items():
            units = np.asarray(graph.groups[number].units)
            importance[units[order]] = 1 - np.arange(len(order)) / len(order)
        return importance

    def _by_class(self) -> dict[int, NDArray[np.int64]]:
        """Group -> its units from the most important to the least, by their scores for classes."""
        graph, names = self._graph, self.material.class_names
        counts = pixel_counts(self.material, graph.model)
        minority = minority_of(counts, self.minority, names)
        classes = minority if self.variant == "taylor_small_group" else rarest_first(counts)
        log.info(
            "mcag: %s by %s, from the rarest: %s",
            self.variant,
            "minority classes" if classes == minority else "all classes",
            ", ".join(f"{names[label]} ({counts[label] / counts.sum():.2%})" for label in classes),
        )
        layers = class_scores(graph, self.material, classes, self.batches)
        parts = [(layer.units, scores.double().cpu().numpy()) for layer, scores in layers]
        scores = np.stack(
            [per_unit(graph, [(units, of[row]) for units, of in parts], "sum") for row in range(len(classes))]
        )
        order = by_rank_sum if self.variant == "taylor" else interleaved
        out = {}
        for number, group in enumerate(graph.groups):
            units = np.asarray(group.units)
            rankable = np.flatnonzero(np.isfinite(scores[0, units]))
            if len(rankable):
                out[number] = rankable[order(scores[:, units[rankable]])]
        return out

    def _by_weights(self) -> dict[int, NDArray[np.int64]]:
        """Group -> its units from the most important to the least, by their filters."""
        graph = self._graph
        if self.variant == "sfp":
            norms = filter_norms(graph)
            groups = {number: norms[np.asarray(group.units)] for number, group in enumerate(graph.groups)}
            return {number: np.argsort(-of, kind="stable") for number, of in groups.items() if np.isfinite(of).all()}
        if self.variant == "fpgm":
            return {number: np.argsort(-of.sum(1), kind="stable") for number, of in unit_distances(graph)}
        return {number: closest_pairs(of)[::-1] for number, of in unit_distances(graph)}

    def log(self) -> dict[str, float]:
        if not self._gone.any():
            return {}
        norms = filter_norms(self._graph)
        stay = np.isfinite(norms) & ~self._gone
        return {
            "faded": float(self._gone.sum()),
            "faded_norm": float(norms[self._gone].mean() / max(norms[stay].mean(), 1e-30)),  # against those that stay
        }

    def warnings(self, graph: Graph, removed: NDArray[np.bool_]) -> list[str]:
        if self._importance is None:
            return ["method mcag: no epoch was over, so that channels were ranked by the norm of their filters"]
        if not self._silent and removed.any():
            return [
                "method mcag: the channels that were removed had not been set to zero; tell the length of the training "
                "with pruner.begin(..., epochs=)"
            ]
        return []

    def scores(self, graph: Graph) -> Scores:
        if self._importance is None:
            return np.where(self._rankable, filter_norms(graph), np.inf)
        return self._importance

    def decided(self, graph: Graph) -> NDArray[np.bool_]:
        if self._importance is None:
            raise MethodError("method mcag has ranked no channel yet: call pruner.after_epoch(epoch) in your loop")
        return self._gone

    def state_dict(self) -> dict[str, Any]:
        ranked = {} if self._importance is None else {"importance": torch.from_numpy(self._importance)}
        return {**chosen_state(self._kept, self._gone), **ranked, "epochs": self._epochs, "silent": self._silent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept, self._gone = chosen_from(state)
        self._importance = state["importance"].numpy().astype(np.float64) if "importance" in state else None
        self._epochs, self._silent = int(state["epochs"]), bool(state["silent"])


def _of_first_process(graph: Graph, importance: Scores) -> Scores:
    """The first process's ranking for all of them: theirs may differ by the order of a device's sums."""
    if not (dist.is_available() and dist.is_initialized()):
        return importance
    device = next(graph.model.parameters()).device
    shared = torch.from_numpy(importance).to(device)
    dist.broadcast(shared, 0)
    return shared.cpu().numpy()
