"""Network Slimming: L1 on all batch-norm scales while training, then one global ranking of |gamma|.

Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017 (arXiv:1708.06519), eq. 1:
L = sum l(f(x, W), y) + lambda * sum over gamma of |gamma|. lambda = 1e-4 as in the paper's experiments and in CAP's
baseline.

Choices: residual sums are protected as in CAP, whose baseline this is; `pull` and the proximal update are ours, and so
are the scales of networks without batch norms (see `pseudo_scales`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.graph import Graph
from secateur.methods.protocol import Method, Scores, Training
from secateur.methods.pseudo_scales import HELP, PseudoScales
from secateur.methods.scales import Scale, scale_scores, scales_of, sparsity
from secateur.methods.sparsify import Puller, warn_if_not_small


@dataclass
class NetworkSlimming(Method):
    """L1 pull of one strength on every scale."""

    name = "network_slimming"
    summary = "L1 on every batch-norm scale while training, then |gamma|"
    paper = "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017"
    needs_training = True

    lam: float = field(default=1e-4, metadata={"help": "lambda, the strength of the L1 term"})
    pull: float | None = field(
        default=None, metadata={"help": "instead of lambda: the total pull on a scale over the whole schedule"}
    )
    update: str = field(
        default="subgradient", metadata={"help": "subgradient (the paper) or proximal (decoupled from the optimizer)"}
    )
    protect_residual: bool = field(default=True, metadata={"help": "keep channels that take part in a residual sum"})
    reduce: str = field(
        default="min", metadata={"help": "how a unit's several scales are put together: mean, sum, max, min"}
    )
    pseudo_scales: bool | str = field(default="auto", metadata={"help": HELP})

    def __post_init__(self) -> None:
        self._puller = Puller(self.update)
        self._pseudo = PseudoScales(self.pseudo_scales)
        self._scales: list[Scale] = []
        self._median = 0.0

    def start(self, graph: Graph) -> None:
        self._pseudo.start(graph)
        self._scales = scales_of(graph, self._pseudo.scales)
        self._median = sparsity(self._scales).median
        self._pseudo.attach(graph.model)

    def begin(self, training: Training) -> None:
        self._puller.training = training
        self._pseudo.begin(training)

    def after_backward(self) -> None:
        self._pseudo.after_backward()
        if self.update == "subgradient":
            strength = self._puller.gradient_strength(self.lam, self.pull)
            for scale in self._scales:
                self._puller.before_step(scale.gamma, strength)

    def after_step(self, lr: float | None = None) -> None:
        self._pseudo.after_step(lr)
        if self.update == "proximal":
            threshold = self._puller.threshold(self.lam, self.pull, lr)
            for scale in self._scales:
                self._puller.after_step(scale.gamma, threshold)
        self._pseudo.show()

    def log(self) -> dict[str, float]:
        now = sparsity(self._scales, self._median)
        return {"gamma_median": now.median, "gamma_small": now.small, "gamma_zero": now.zero}

    def warnings(self, graph: Graph, removed: NDArray[np.bool_]) -> list[str]:
        strength = f"pull {self.pull:g}" if self.pull is not None else f"lambda {self.lam:g}"
        return warn_if_not_small(graph, self.scores(graph), removed, f"{strength}, {self.update} update")

    def scores(self, graph: Graph) -> Scores:
        return scale_scores(graph, self.reduce, self.protect_residual, self._pseudo.scales)

    def stop(self) -> None:
        self._pseudo.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"median": self._median, "pseudo": self._pseudo.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._median = float(state["median"])
        self._pseudo.load_state_dict(state["pseudo"])
