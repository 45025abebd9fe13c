"""DCFP, distribution calibrated filter pruning: ranks batch-norm scales by those gradients only that would shrink them.

DCFP: Distribution Calibrated Filter Pruning for Lightweight and Accurate Long-tail Semantic Segmentation, IEEE TCSVT
34(7), 2024 (doi 10.1109/TCSVT.2023.3344099); formula and defaults from the authors' code, github.com/wzx99/DCFP. In the
abstract's words, the equalization importance criterion (EIC) makes for a "class-balanced pruning procedure" and "avoids
the bias on head classes by discarding the imbalanced positive gradients".

In every step of a short training, with g = dL/dgamma of every batch-norm scale,

    e <- r e + (1 - r) |g|    where g * gamma > 0
    e <- e                    elsewhere

from e = 0, r = 0.999 (4000 steps there). The channels of smallest e go, in one ranking; what several layers make
together goes when all of them let it go.

Choices, and where this differs:
- *One ranking* over the whole network: the authors rank the trunk and the head apart, by the names of their layers.
- *Removal.* The authors carry relu(bias) of removed channels into the layers that read them; in a recipe,
  `compensate.mode` does more than that.
- *Fine-tuning.* Their geometric-semantic re-balanced loss, and the resampling of images by class that it builds on, are
  parts of the training and not here.
- *A step without finite gradients*, as a gradient scaler skips them, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.errors import MethodError, nearest
from secateur.graph import Graph
from secateur.methods.channels import REDUCTIONS, per_unit
from secateur.methods.protocol import Method, Scores
from secateur.methods.scales import Scale, scales_of


@torch.no_grad()
def equalized(importance: Tensor, gamma: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """The importance e after a step, (C)."""
    shrinking = (gradient * gamma > 0) & gradient.isfinite()
    return torch.where(shrinking, rate * importance + (1 - rate) * gradient.abs(), importance)


@dataclass
class DCFP(Method):
    """A moving average of the scales' gradients, of those that would shrink them."""

    name = "dcfp"
    summary = "gradients of batch-norm scales while training, only those that would shrink them"
    paper = "DCFP: Distribution Calibrated Filter Pruning for Long-tail Semantic Segmentation, IEEE TCSVT 2024"
    needs_training = True

    rate: float = field(default=0.999, metadata={"help": "r, of the moving average: 0.999 looks back 1000 steps"})
    reduce: str = field(
        default="max", metadata={"help": "how a unit's several scales are put together: mean, sum, max, min"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise MethodError(f"rate {self.rate}: a number from 0 to below 1 was expected")
        if self.reduce not in REDUCTIONS:
            raise MethodError(f"reduce {self.reduce!r}; {nearest(self.reduce, REDUCTIONS)}")
        self._scales: list[Scale] = []
        self._importance: list[Tensor] = []
        self._steps = 0

    def start(self, graph: Graph) -> None:
        self._scales, self._steps = scales_of(graph), 0
        dtypes = [torch.promote_types(s.gamma.dtype, torch.float32) for s in self._scales]
        self._importance = [
            torch.zeros_like(s.gamma, dtype=dtype, requires_grad=False)
            for s, dtype in zip(self._scales, dtypes, strict=True)
        ]

    def after_backward(self) -> None:
        self._steps += 1
        for i, scale in enumerate(self._scales):
            if scale.gamma.grad is not None:
                before = self._importance[i].to(scale.gamma.device)
                self._importance[i] = equalized(before, scale.gamma, scale.gamma.grad.to(before), self.rate)

    def log(self) -> dict[str, float]:
        values = torch.cat([e.flatten().cpu() for e in self._importance])
        return {"eic_median": float(values.median()), "eic_zero": float((values == 0).float().mean())}

    def warnings(self, graph: Graph, removed: NDArray[np.bool_]) -> list[str]:
        if self._steps * (1 - self.rate) >= 1:
            return []
        return [
            f"the importance is the average of {self._steps} steps only; rate={self.rate:g} is meant for "
            f"{1 / (1 - self.rate):.0f} and more: train longer, or give a smaller rate"
        ]

    def scores(self, graph: Graph) -> Scores:
        if not self._scales:
            raise MethodError(
                "method dcfp has seen no gradients: train with a secateur.Pruner and call pruner.after_backward() "
                "behind loss.backward()"
            )
        parts = [(s.units, e.double().cpu().numpy()) for s, e in zip(self._scales, self._importance, strict=True)]
        return per_unit(graph, parts, self.reduce)

    def state_dict(self) -> dict[str, Any]:
        return {"importance": [e.clone() for e in self._importance], "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._importance, self._steps = list(state["importance"]), int(state["steps"])
