"""SIRFP, spatial-aware information redundancy filter pruning: keeps channels whose maps are unlike each other, place by
place.

Wu, Guo, Yu, Sang and Gao, Structural Pruning via Spatial-aware Information Redundancy for Semantic Segmentation, AAAI
2025 (arXiv:2412.12672): which channels stay is a maximum edge weight clique problem, solved greedily. The formulas are
those of the authors' code, github.com/dywu98/SIRFP (`graph_edge_pruning` and `GraphEdgePruner`, as its script for
Cityscapes runs them).

While training, for the output of every batch norm, x_j the map of channel j, flattened,

    x^_j = x_j / (|x_j|_1 + 1e-5)          R_jk = x^_j . x^_k, mean over the batch
    R    <- r R + (1 - r) R of the step    from 0, r = 0.999

and, where `detail` is not 0, likewise D_j, the standard deviation over the map of the length of its Sobel gradient,
mean over the batch. Then of every layer, until none is left: the channel with the largest sum of |R_jk| over the
channels k that are left (itself included) is taken away, and

    score_j = detail * D_j - that sum

The channels of smallest score go, in one ranking; what several layers make together goes when all of them let it go.

Choices, and what is not certain:
- *detail.* The abstract knows of redundancy only. The code adds 0.4 D in the trunk ("can be adjusted for different
  datasets", 0.2 is also named) and 0 in the head, told apart by names of layers; in a second round, 0.4 times DCFP's
  criterion instead. D is of the size of the batch norm's scale, the sums are of the order of channels / positions: with
  0.4 it decides nearly alone. Here it is 0 by default, the same for all layers.
- *One ranking* over the whole network; the authors rank the trunk and the head apart.
- *Maps of one position* (global pooling) have no places that could differ; they have no score, and stay.
- *Rounds.* The authors prune in two rounds with training between: `schedule.steps=2` in a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.errors import MethodError, nearest
from secateur.graph import Graph
from secateur.methods.channels import REDUCTIONS, per_unit
from secateur.methods.protocol import Method, Scores
from secateur.methods.scales import Scale, scales_of


def redundancy(features: Tensor) -> Tensor:
    """sum over samples of x^_j . x^_k: (N, C, ...) -> (C, C). Sample by sample, so that no copy is larger than one."""
    total = features.new_zeros(features.shape[1], features.shape[1])
    for sample in features.flatten(2):
        normed = sample / (sample.abs().sum(1, keepdim=True) + 1e-5)
        total += normed @ normed.T
    return total


def detail_of(features: Tensor) -> Tensor:
    """sum over samples of the standard deviation over the map of its Sobel gradient's length: (N, C, H, W) -> (C)."""
    across = features.new_tensor([[-0.5, 0.0, 0.5], [-1.0, 0.0, 1.0], [-0.5, 0.0, 0.5]])
    kernels = torch.stack([across, across.T])[:, None]
    total = features.new_zeros(features.shape[1])
    for sample in features:
        lengths = F.conv2d(sample[:, None], kernels, padding=1).square().sum(1).sqrt()
        total += lengths.flatten(1).std(1, correction=0)
    return total


def taken_away(redundancies: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum at which every channel is taken away: (C, C) -> (C); ties by channel."""
    matrix = np.abs(redundancies)
    sums, left, out = matrix.sum(1), np.ones(len(matrix), dtype=bool), np.zeros(len(matrix))
    for _ in range(len(matrix)):
        going = int(np.where(left, sums, -np.inf).argmax())
        out[going] = sums[going]
        left[going] = False
        sums -= matrix[:, going]
    return out


@dataclass
class SIRFP(Method):
    """How redundant a channel's map is beside those that stay."""

    name = "sirfp"
    summary = "redundancy of a channel's map beside those of its layer, place by place, taken away greedily"
    paper = (
        "Wu et al., Structural Pruning via Spatial-aware Information Redundancy for Semantic Segmentation, AAAI 2025"
    )
    needs_training = True

    rate: float = field(default=0.999, metadata={"help": "r, of the moving average over the training's steps"})
    detail: float = field(
        default=0.0, metadata={"help": "weight of a map's detail (Sobel); the authors' code has 0.4 in the trunk"}
    )
    reduce: str = field(
        default="max", metadata={"help": "how a unit's several layers are put together: mean, sum, max, min"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1 or self.detail < 0:
            raise MethodError(f"rate {self.rate}, detail {self.detail}: expected are 0 <= rate < 1 and detail >= 0")
        if self.reduce not in REDUCTIONS:
            raise MethodError(f"reduce {self.reduce!r}; {nearest(self.reduce, REDUCTIONS)}")
        self._scales: list[Scale] = []
        self._hooks: list[RemovableHandle] = []
        self._averages: dict[str, Tensor] = {}  # (C, C + 1): R and D
        self._sums: dict[str, tuple[Tensor, int]] = {}  # of the samples since the last step, and their number

    def start(self, graph: Graph) -> None:
        self.stop()
        self._averages, self._sums = {}, {}
        self._scales = [scale for scale in scales_of(graph) if scale.positions > 1]
        modules = dict(graph.model.named_modules())
        self._hooks = [
            modules[scale.name.rpartition(".")[0]].register_forward_hook(partial(self._look, scale.name))
            for scale in self._scales
        ]

    def _look(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if not (module.training and torch.is_grad_enabled() and isinstance(output, Tensor)) or output.is_meta:
            return  # on the meta device networks are traced, as for their cost
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            features = output.detach().to(torch.promote_types(output.dtype, torch.float32))
            channels = features.shape[1]
            detail = detail_of(features) if self.detail and features.dim() == 4 else features.new_zeros(channels)
            both = torch.cat([redundancy(features), detail[:, None]], 1)
            total, count = self._sums.get(name, (torch.zeros_like(both), 0))
            self._sums[name] = (total + both, count + len(features))

    @torch.no_grad()
    def after_backward(self) -> None:
        sums, self._sums = _over_ranks(self._sums), {}
        for name, mean in sums.items():
            before = self._averages.get(name, torch.zeros_like(mean)).to(mean.device)
            now = self.rate * before + (1 - self.rate) * mean
            self._averages[name] = torch.where(mean.isfinite().all(), now, before)

    def scores(self, graph: Graph) -> Scores:
        if not self._scales:
            raise MethodError(
                "method sirfp has seen no maps: train with a secateur.Pruner and call pruner.after_backward() behind "
                "loss.backward()"
            )
        parts = []
        for scale in self._scales:
            values = np.zeros(len(scale.units))
            if scale.name in self._averages:
                average = self._averages[scale.name].double().cpu().numpy()
                values = self.detail * average[:, -1] - taken_away(average[:, :-1])
            parts.append((scale.units, values))
        return per_unit(graph, parts, self.reduce)

    def warnings(self, graph: Graph, removed: NDArray[np.bool_]) -> list[str]:
        unseen = [scale.name for scale in self._scales if scale.name not in self._averages]
        if not unseen:
            return []
        return [f"no map was seen while training behind {', '.join(unseen)}: what these scale is ranked blindly"]

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self) -> dict[str, Any]:
        return {
            "averages": dict(self._averages),
            "sums": {name: {"total": total, "count": count} for name, (total, count) in self._sums.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._averages = dict(state["averages"])
        self._sums = {name: (entry["total"], int(entry["count"])) for name, entry in state["sums"].items()}


def _over_ranks(sums: Mapping[str, tuple[Tensor, int]]) -> dict[str, Tensor]:
    """The means over all samples of the step, those of other processes included."""
    if not (dist.is_available() and dist.is_initialized()) or not sums:
        return {name: total / count for name, (total, count) in sums.items()}
    flat = torch.cat([torch.cat([total.flatten(), total.new_tensor([count])]) for total, count in sums.values()])
    dist.all_reduce(flat)
    parts = flat.split([total.numel() + 1 for total, _ in sums.values()])
    return {
        name: (part[:-1] / part[-1]).view_as(total)
        for (name, (total, _)), part in zip(sums.items(), parts, strict=True)
    }
