"""ACoSP, auto-compressing subset pruning: a soft selection of k channels of every layer that hardens while training.

Ditschuneit and Otterbach, Auto-Compressing Subset Pruning for Semantic Image Segmentation, 2022 (arXiv:2201.11103); the
authors' code, github.com/merantix/acosp, where the paper is silent.

With one weight w per channel, drawn from N(0, 1) and trained along with the network,

    w_norm = (w - mean w) / max(std w, 1e-3)            std with n - 1
    m      = sigmoid((w_norm - x0) / tau)               x0: the quantile 1 - k / C of w_norm, constant to the optimizer
    k      = max(ceil((1 - sparsity) C), min_remaining)

multiplies the channel. tau falls from 1 to 0.001 over the epochs, log-linearly; then the k channels of largest m are 1
and the others 0, and training goes on.

Choices, and where this differs:
- *Removal.* The authors leave the zeros in. Here the channels go, and what their batch norm makes of zero is carried
  into the layers that read them, exactly but for zero padding. Where that can't be (in front of an unpooling, of a
  transposed convolution with a stride, of a product with something that is no constant) the mask sits behind the batch
  norm, also with mask="before_norm": so exactly k channels survive in every layer.
- *Coupled layers* share one mask. Linear layers that make channels of their own have one, too.
- *Ties* of w at the cut are broken by position: exactly k.
- *A budget* that was asked for replaces `sparsity` and `min_remaining`: it must be met.
- *Optimizer.* w is trained by SGD with the training's momentum, or Adam where the training's optimizer is adaptive, at
  the training's learning rate, without weight decay (w_norm does not depend on the size of w).
- *Gradient.* dL/dw comes from the gradients of the layers' own parameters, see `multiplier`.
- *In front of a batch norm* in train mode a factor is undone by the norm, but for its eps, so that the gradient is
  hundreds of times smaller than with mask="after_norm".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.errors import MethodError, nearest
from secateur.graph import Graph
from secateur.methods.beside import Beside
from secateur.methods.multiplier import Gathered, Multiplier, removable
from secateur.methods.protocol import Method, Scores, Training
from secateur.methods.soft import chosen_from, chosen_state, kept_of, share_between, weakest
from secateur.methods.soft_top_k import (
    COLDEST,
    HOTTEST,
    normalised,
    normalised_backward,
    shares,
    soft_masks,
    temperature,
    thresholds,
)
from secateur.plan import Plan
from secateur.surgery import Compensated, fold_constants

MASKS = ("before_norm", "after_norm")


@dataclass
class ACoSP(Method):
    """Masks on channels that soften the choice of k, harden while training, and are cut."""

    name = "acosp"
    summary = "a learned soft mask chooses k channels of every layer while training, and hardens"
    paper = "Ditschuneit and Otterbach, Auto-Compressing Subset Pruning for Semantic Image Segmentation, 2022"
    needs_training = True
    decides = True

    sparsity: float = field(default=0.5, metadata={"help": "share of every layer that goes, where no budget says it"})
    min_remaining: int = field(default=8, metadata={"help": "channels that every layer keeps, where no budget says it"})
    mask: str = field(
        default="before_norm", metadata={"help": "before_norm (as published: on the convolution) or after_norm"}
    )
    start_epoch: int = field(default=0, metadata={"help": "up to this epoch the temperature is 1"})
    end_epoch: int | None = field(
        default=None, metadata={"help": "from this epoch on the masks are hard; by default after two thirds of all"}
    )
    lr: float = field(default=0.01, metadata={"help": "learning rate of the masks, where the training tells none"})
    seed: int = field(default=0, metadata={"help": "of the masks' first values"})

    def __post_init__(self) -> None:
        share_between("sparsity", self.sparsity)
        if self.mask not in MASKS:
            raise MethodError(f"mask {self.mask!r}; {nearest(str(self.mask), MASKS)}")
        if self.min_remaining < 1:
            raise MethodError(f"min_remaining {self.min_remaining}: at least 1 channel must stay")
        if self.start_epoch < 0 or not self.lr > 0:
            raise MethodError(
                f"start_epoch {self.start_epoch}, lr {self.lr}: the first can't be negative, the second must be above 0"
            )
        if self.end_epoch is not None:
            self._check_order(self.end_epoch)
        self._epochs = 0  # of the training, as far as it was told
        self._layers: list[Multiplier] = []

    # -- what is masked -----------------------------------------------------------------------------------------------

    def start(self, graph: Graph) -> None:
        layers, eligible = removable(graph, after_norm=self.mask == "after_norm")
        if not eligible.any():
            raise MethodError(
                f"{type(graph.model).__name__} has no convolution or linear layer whose output channels can be masked "
                "and removed; see print(secateur.trace(model, inputs))"
            )
        self._graph, self._epoch, self._hard, self._undecided = graph, 0, False, 0.0
        self._gone = np.zeros(graph.units, dtype=bool)
        self._groups = np.unique(graph.solution.group_of[eligible])
        self._sizes = np.array([len(graph.groups[g]) for g in self._groups])
        # where the weight of every unit is, in rows of groups; the place behind the last is that of all others
        row = np.searchsorted(self._groups, graph.solution.group_of[eligible])
        column = np.concatenate([np.arange(size) for size in self._sizes])
        shape = (len(self._groups), int(self._sizes.max()))
        self._seat = np.full(graph.units + 1, np.prod(shape), dtype=np.int64)
        self._seat[:-1][eligible] = row * shape[1] + column
        draws = torch.randn(graph.units, generator=torch.Generator().manual_seed(self.seed), dtype=layers[0].dtype)
        weights = torch.zeros(shape, dtype=draws.dtype)
        weights[row, column] = draws[torch.from_numpy(eligible)]
        self._beside = Beside([nn.Parameter(weights)], self.lr)
        self._layers = layers
        for layer in layers:
            layer.attach(graph.model)
        self.aim(kept_of(graph, self.sparsity, self.min_remaining))

    def aim(self, kept: NDArray[np.int64]) -> None:
        self._kept = kept
        self._settle()
        self._mask()

    def _settle(self) -> None:
        """Have everything where the network is."""
        device = self._layers[0].device
        self._beside.to([device])
        sizes = torch.from_numpy(self._sizes)[:, None]
        self._there = (torch.arange(self._weights.shape[1]) < sizes).to(device)
        self._k = torch.from_numpy(self._kept[self._groups])[:, None].to(device)
        self._parts = [Gathered.of(layer, self._seat, device) for layer in self._layers]

    @property
    def _weights(self) -> nn.Parameter:
        return self._beside.parameters[0]

    @torch.no_grad()
    def _masks(self) -> Tensor:
        """(G, C): m, and ones where nothing is masked."""
        if not self._hard:
            return soft_masks(self._weights, self._there, self._k, self._temperature)
        hard = np.ones(self._there.numel(), dtype=bool)
        hard[self._seat[:-1][self._gone]] = False
        return torch.from_numpy(hard).to(self._weights).view_as(self._weights)

    def _mask(self) -> None:
        """Multiply by the masks as they are."""
        flat = torch.cat([self._masks().flatten(), self._weights.new_ones(1)])
        for part in self._parts:
            part.layer.factor = flat[part.seats]

    # -- training -----------------------------------------------------------------------------------------------------

    def begin(self, training: Training) -> None:
        self._epochs = training.epochs
        self._beside.begin(training)
        self._settle()  # it may have been moved since the start
        if self._epochs:
            self._check_order(self._end)

    @property
    def _end(self) -> int:
        """The epoch in which the masks are hard, at the latest that after the last."""
        if self.end_epoch is not None:
            return min(self.end_epoch, self._epochs) if self._epochs else self.end_epoch
        if not self._epochs:
            raise MethodError(
                "method acosp lowers a temperature from epoch to epoch: tell the number of epochs, "
                "pruner.begin(steps=..., lr_sum=..., epochs=...), or give the option end_epoch"
            )
        return max(1, round(2 * self._epochs / 3))

    def _check_order(self, end: int) -> None:
        if self.start_epoch >= end:
            raise MethodError(
                f"start_epoch {self.start_epoch} is not before the end of the pruning, epoch {end}; "
                "give a smaller start_epoch, or a larger end_epoch within the training"
            )

    @property
    def _temperature(self) -> float:
        if self._hard:
            return COLDEST
        return temperature(self._epoch, self.start_epoch, self._end) if self._epoch else HOTTEST

    @torch.no_grad()
    def after_backward(self) -> None:
        if self._hard:
            return
        self._check_order(self._end)
        if self._weights.device != self._layers[0].device:
            self._settle()
        total = self._weights.new_zeros(self._weights.numel() + 1)
        for part in self._parts:
            part.add_sums(total)
        # these are the sums m dL/dm, and dL/dw_norm = dL/dm m (1 - m) / tau
        gradient = total[:-1].view_as(self._weights) * (1 - self._masks()) / self._temperature
        normed, std = normalised(self._weights, self._there)
        self._weights.grad = normalised_backward(gradient, normed, std, self._there)

    def after_step(self, lr: float | None = None) -> None:
        if not self._hard and self._weights.grad is not None:
            self._beside.step(lr)
            self._mask()

    def after_epoch(self, epoch: int) -> None:
        if self._hard:
            return
        undecided, self._epoch = self.log()["undecided"], epoch + 1
        if self._epoch >= self._end:
            self._gone = weakest(self._graph, self.scores(self._graph), self._kept)
            self._hard, self._undecided = True, undecided
        self._mask()

    def log(self) -> dict[str, float]:
        return {"temperature": self._temperature, **shares(self._masks()[self._there])}

    def layers(self) -> dict[str, dict[str, float]]:
        """Group by group what `log` tells of all, and how many channels are to stay of how many."""
        masks, groups = self._masks(), self._graph.groups
        return {
            groups[g].name: {
                "temperature": self._temperature,
                **shares(masks[row, : len(groups[g])]),
                "kept": float(self._kept[g]),
                "channels": float(len(groups[g])),
            }
            for row, g in enumerate(self._groups)
        }

    def warnings(self, graph: Graph, removed: NDArray[np.bool_]) -> list[str]:
        if self._undecided <= 0.1:
            return []
        return [
            f"{self._undecided:.0%} of the masks were between 0.01 and 0.99 in the last epoch before they became hard: "
            "expect a drop; more epochs between start_epoch and end_epoch soften it"
        ]

    # -- cutting ------------------------------------------------------------------------------------------------------

    def scores(self, graph: Graph) -> Scores:
        """How far w_norm is above the threshold of its group; +inf for what has no mask."""
        normed, _ = normalised(self._weights.detach(), self._there)
        above = (normed - thresholds(normed, self._there, self._k)).flatten().double().cpu().numpy()
        return np.append(above, np.inf)[self._seat[:-1]]

    def decided(self, graph: Graph) -> NDArray[np.bool_]:
        if not self._hard:
            raise MethodError(
                f"the masks of method acosp are still soft, {self._epoch} epochs being over: call "
                "pruner.after_epoch(epoch) in your loop up to the end, or give a smaller end_epoch"
            )
        return self._gone

    def stop(self) -> None:
        for layer in self._layers:
            if layer.factor is not None:
                layer.fold(layer.factor)
            layer.detach()

    def fold(self, graph: Graph, plan: Plan) -> Compensated | None:
        silent = {name for layer in self._layers for name in (*layer.modules, *layer.sites)}
        speaking = {t.name for t in graph.tensors if len(t.shape) == 1 and t.name.rpartition(".")[0] not in silent}
        return fold_constants(graph.model, graph, plan, borders="accept") if speaking & plan.slices.keys() else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "masks": self._beside.state_dict(),
            **chosen_state(self._kept, self._gone),
            "epoch": self._epoch,
            "epochs": self._epochs,
            "hard": self._hard,
            "undecided": self._undecided,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._beside.load_state_dict(state["masks"])
        kept, self._gone = chosen_from(state)
        self._epoch, self._epochs = int(state["epoch"]), int(state["epochs"])
        self._hard, self._undecided = bool(state["hard"]), float(state["undecided"])
        self.aim(kept)
