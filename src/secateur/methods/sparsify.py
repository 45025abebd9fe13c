"""An L1 pull on scaling factors while training: by its subgradient, or decoupled from the optimizer by its proximal
step.

What moves a scale is the total pull, lambda * sum over steps of lr / (1 - momentum). A strength can be given either as
lambda, the paper's way, or as that total. An optimizer such as Adam rescales gradients and the subgradient with them;
the proximal step (a soft threshold after every optimizer step, in proportion to that step's learning rate) does not
pass through the optimizer, and reaches exact zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.errors import MethodError, nearest
from secateur.graph import Graph
from secateur.methods.protocol import Scores, Training

UPDATES = ("subgradient", "proximal")


def soft_threshold(gamma: Tensor, threshold: Tensor | float) -> Tensor:
    """sign(gamma) * max(|gamma| - threshold, 0): the proximal operator of threshold * |gamma|."""
    return gamma.sign() * (gamma.abs() - threshold).clamp_min(0)


@dataclass
class Puller:
    """Applies one strength per step, in one of two ways.

    Attributes:
        update: "subgradient" (added to the gradient before the optimizer's step) or "proximal" (applied to the scale
            after it).
        training: the schedule, once it is known.
    """

    update: str
    training: Training | None = None

    def __post_init__(self) -> None:
        if self.update not in UPDATES:
            raise MethodError(f"update {self.update!r}; {nearest(self.update, UPDATES)}")

    def gradient_strength(self, lam: float, pull: float | None) -> float:
        """lambda of the subgradient.

        Raises:
            MethodError: it depends on the schedule, and `begin` has not told it.
        """
        facts = self.training
        if pull is None:
            return lam
        if facts is None or facts.lr_sum <= 0:
            raise MethodError(
                "a total pull is spread over a schedule: call pruner.begin(steps=..., lr_sum=..., momentum=...) first"
            )
        return pull * (1 - facts.momentum) / facts.lr_sum

    def threshold(self, lam: float, pull: float | None, lr: float | None) -> float:
        """The soft threshold of one step: the total, shared out by learning rate, or evenly where that is not told.

        Where the learning rate fades, the pull has to fade with it: the loss can only defend a scale as fast as the
        optimizer moves it.

        Raises:
            MethodError: it depends on the schedule, and `begin` has not told it.
        """
        facts = self.training
        if facts is None or facts.steps <= 0:
            raise MethodError(
                "the proximal update is spread over a schedule: call pruner.begin(steps=..., lr_sum=...) first"
            )
        total = pull if pull is not None else lam * facts.lr_sum / (1 - facts.momentum)
        return total * (lr / facts.lr_sum if lr is not None and facts.lr_sum > 0 else 1 / facts.steps)

    @torch.no_grad()
    def before_step(self, gamma: nn.Parameter, strength: float, weight: Tensor | float = 1.0) -> None:
        """The subgradient of strength * weight * |gamma|, added to its gradient."""
        if gamma.grad is not None:
            gamma.grad.add_(gamma.sign() * weight, alpha=strength)

    @torch.no_grad()
    def after_step(self, gamma: nn.Parameter, strength: float, weight: Tensor | float = 1.0) -> None:
        """The soft threshold strength * weight."""
        gamma.copy_(soft_threshold(gamma, strength * weight))


def warn_if_not_small(graph: Graph, scales: Scores, removed: NDArray[np.bool_], used: str) -> list[str]:
    """The warning that belongs before a cut of scales that are not small.

    What counts is what every layer loses of its own scales, as a share of their sum of squares: later layers see
    nothing else. In our runs, up to 5 % on average over the layers left a network nearly as it was once its BN
    statistics were re-estimated; 8 % and more did not.
    """
    squares = np.asarray(scales, dtype=np.float64) ** 2
    shares = []
    for group in graph.groups:
        units = np.asarray(group.units)
        whole = squares[units].sum()
        if group.pinned is None and np.isfinite(whole) and whole > 0:
            shares.append(float(squares[units][removed[units]].sum() / whole))
    share = float(np.mean(shares)) if shares else 0.0
    if share <= 0.07:
        return []
    return [
        f"the scales that go hold {share:.0%} of a layer's sum of squares on average: the sparsity training has hardly "
        f"acted on them ({used}); expect a large drop at the cut; train longer, give a stronger pull, or remove less"
    ]
