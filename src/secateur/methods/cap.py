"""CAP: context-aware pruning for semantic segmentation.

He, Wu, Liang and Lam, CAP: Context-Aware Pruning for Semantic Segmentation, WACV 2021, pp. 960-969. No code was
    published.

Implemented: CAGM (eqs. 1, 2), CAGS (eq. 6), the global ranking of |gamma| (section 4.4). The floor of 10 % per layer is
    `select`'s default.
Defaults: lambda1 = 1e-4, lambda2 = 1e-3 (section 4.3).

Choices where the paper is silent or ambiguous:
- *Batch.* 'Min-max normalization along the batch dimension': beta is computed per sample, averaged over the batch, and
  min-max normalised over the channels again, so that it spans [0, 1] for a batch of one as well.
- *Linear form.* s_j = sum_k P_j . P_k = P_j . (sum_k P_k): C N operations instead of C^2 N, and no C x C matrix.
- *Degenerate maps.* All s equal gives beta = 0.
- *Where.* The feature map behind the activation of the first convolution block after each pooling, found from the graph
  (`position`, `side`); in a network that pools one feature map to several sizes, as PSPNet and ICNet do, in that
  pyramid alone. Names and "all" (the paper's Table 2) are options.
- *Residual sums* are protected, 'the last convolution layer and downsampling layers are preserved'.
- *Pseudo scaling factors*, for networks without batch norms: see `pseudo_scales`.
- *Strength.* `pull` gives both strengths as totals over the schedule, and `update="proximal"` decouples them from the
  optimizer (ours).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.errors import MethodError
from secateur.graph import Graph
from secateur.methods.guided import Place, places
from secateur.methods.protocol import Method, Scores, Training
from secateur.methods.pseudo_scales import HELP, PseudoScales
from secateur.methods.scales import Scale, scale_scores, scales_of, sparsity
from secateur.methods.sparsify import Puller, warn_if_not_small


def row_sums(features: Tensor) -> Tensor:
    """Row sums of the channel affinity matrix (eq. 1), without the matrix.

    Args:
        features: (N, C, ...) feature map.

    Returns:
        (N, C): s_j = P_j . (sum over k of P_k) for every sample.
    """
    n, c = features.shape[:2]
    if features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last):
        pixels = features.permute(0, 2, 3, 1).reshape(n, -1, c)  # (N, HW, C), a view
        return torch.bmm(pixels.sum(2).unsqueeze(1), pixels).squeeze(1)
    maps = features.flatten(2)
    return torch.bmm(maps, maps.sum(1).unsqueeze(2)).squeeze(2)


def min_max(values: Tensor) -> Tensor:
    """(..., C) to [0, 1] over the last dimension; zeros where all are equal."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    span = high - low
    return torch.where(
        span > 0, (values - low) / span.clamp_min(torch.finfo(values.dtype).tiny), torch.zeros_like(values)
    )


@torch.no_grad()
def guiding_factors(features: Tensor, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Guiding factors beta of every sample (eq. 2): (N, C, ...) -> (N, C) in [0, 1].

    Sample by sample, so that the activated copy of a map is never larger than one sample's.

    Args:
        features: a feature map; it is only read.
        activation: applied to it first.
    """
    sums = []
    for sample in features.detach().split(1):
        sample = sample if activation is None else activation(sample)
        sums.append(row_sums(sample.float() if sample.dtype in (torch.float16, torch.bfloat16) else sample))
    return min_max(torch.cat(sums))


def batch_beta(betas: Tensor) -> Tensor:
    """One beta for a mini-batch: the mean over its samples, min-max normalised over the channels. (N, C) -> (C)."""
    return min_max(betas.mean(0))


@dataclass
class CAP(Method):
    """Context-aware guided sparsification, then |gamma|."""

    name = "cap"
    summary = "L1 on batch-norm scales, weaker on channels that carry context, then |gamma|"
    paper = "He et al., CAP: Context-Aware Pruning for Semantic Segmentation, WACV 2021"
    needs_training = True

    lambda1: float = field(default=1e-4, metadata={"help": "strength on the scales that are not guided"})
    lambda2: float = field(default=1e-3, metadata={"help": "strength on the guided scales, multiplied by 1 - beta"})
    pull: tuple[float, float] | None = field(
        default=None, metadata={"help": "instead of the lambdas: the two total pulls over the whole schedule"}
    )
    update: str = field(
        default="subgradient", metadata={"help": "subgradient (the paper) or proximal (decoupled from the optimizer)"}
    )
    position: str | list[str] | tuple[str, ...] = field(
        default="adjacent", metadata={"help": "guided batch norms: adjacent (to a pooling), all, or a list of names"}
    )
    side: str = field(
        default="after", metadata={"help": "adjacent: only behind a pooling (after), or in front of it too (both)"}
    )
    protect_residual: bool = field(default=True, metadata={"help": "keep channels that take part in a residual sum"})
    reduce: str = field(
        default="min", metadata={"help": "how a unit's several scales are put together: mean, sum, max, min"}
    )
    pseudo_scales: bool | str = field(default="auto", metadata={"help": HELP})

    def __post_init__(self) -> None:
        if self.pull is not None and (not isinstance(self.pull, (tuple, list)) or len(self.pull) != 2):
            raise MethodError(
                f"pull {self.pull!r}: two numbers were expected, for the scales that are not guided and those that are"
            )
        self._puller = Puller(self.update)
        self._pseudo = PseudoScales(self.pseudo_scales)
        self._scales: list[Scale] = []
        self._places: dict[str, Place] = {}
        self._sums: dict[str, tuple[Tensor, int]] = {}  # betas of the samples since the last step: their sum and number
        self._beta: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self._median = 0.0

    @property
    def guided(self) -> tuple[str, ...]:
        """Names of the guided scales."""
        return tuple(self._places)

    @property
    def beta(self) -> Mapping[str, Tensor]:
        """The guiding factors of the last step, (C) for every guided scale."""
        return self._beta

    def start(self, graph: Graph) -> None:
        self._sums, self._beta = {}, {}  # of a network that was cut since, they have other shapes
        self._pseudo.start(graph)
        self._scales = scales_of(graph, self._pseudo.scales)
        self._median = sparsity(self._scales).median
        position = list(self.position) if isinstance(self.position, tuple) else self.position
        self._places = {place.scale: place for place in places(graph, position, self.side, self._pseudo.modules)}
        self._pseudo.attach(graph.model)  # first, so that what is read below is scaled
        modules = dict(graph.model.named_modules())
        self._hooks = [
            modules[place.module].register_forward_hook(partial(self._read, place)) for place in self._places.values()
        ]

    def _read(self, place: Place, module: nn.Module, args: Any, output: Any) -> None:
        if not (module.training and torch.is_grad_enabled() and isinstance(output, Tensor)) or output.is_meta:
            return  # on the meta device networks are traced, as for their cost
        with torch.no_grad():
            betas = guiding_factors(output, place.activation)
            total, count = self._sums.get(place.scale, (torch.zeros_like(betas[0]), 0))
            self._sums[place.scale] = (total + betas.sum(0), count + len(betas))

    def begin(self, training: Training) -> None:
        self._puller.training = training
        self._pseudo.begin(training)

    def _weighted(self, plain: float, guided: float) -> Iterator[tuple[nn.Parameter, float, Tensor | float]]:
        """(gamma, strength, weight) of every scale in this step (eq. 6)."""
        for scale in self._scales:
            if scale.name not in self._places:
                yield scale.gamma, plain, 1.0
            elif scale.name in self._beta:
                yield scale.gamma, guided, 1 - self._beta[scale.name].to(scale.gamma)

    def after_backward(self) -> None:
        for name, (total, count) in self._sums.items():
            self._beta[name] = min_max(_over_ranks(total, count))
        self._sums.clear()
        self._pseudo.after_backward()
        if self.update == "subgradient":
            first, second = self.pull if self.pull is not None else (None, None)
            strengths = (
                self._puller.gradient_strength(self.lambda1, first),
                self._puller.gradient_strength(self.lambda2, second),
            )
            for gamma, strength, weight in self._weighted(*strengths):
                self._puller.before_step(gamma, strength, weight)

    def after_step(self, lr: float | None = None) -> None:
        self._pseudo.after_step(lr)
        if self.update == "proximal":
            first, second = self.pull if self.pull is not None else (None, None)
            thresholds = (
                self._puller.threshold(self.lambda1, first, lr),
                self._puller.threshold(self.lambda2, second, lr),
            )
            for gamma, threshold, weight in self._weighted(*thresholds):
                self._puller.after_step(gamma, threshold, weight)
        self._pseudo.show()

    def log(self) -> dict[str, float]:
        now = sparsity(self._scales, self._median)
        out = {"gamma_median": now.median, "gamma_small": now.small, "gamma_zero": now.zero}
        if self._beta:
            out["beta_mean"] = float(torch.cat([b.flatten() for b in self._beta.values()]).mean())
        return out

    def warnings(self, graph: Graph, removed: NDArray[np.bool_]) -> list[str]:
        used = f"pulls {tuple(self.pull)}" if self.pull is not None else f"lambdas ({self.lambda1:g}, {self.lambda2:g})"
        return warn_if_not_small(graph, self.scores(graph), removed, f"{used}, {self.update} update")

    def scores(self, graph: Graph) -> Scores:
        return scale_scores(graph, self.reduce, self.protect_residual, self._pseudo.scales)

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._pseudo.stop()

    def state_dict(self) -> dict[str, Any]:
        return {
            "median": self._median,
            "pseudo": self._pseudo.state_dict(),
            "beta": dict(self._beta),
            "sums": {name: {"total": total, "count": count} for name, (total, count) in self._sums.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._median = float(state["median"])
        self._pseudo.load_state_dict(state["pseudo"])
        self._beta = dict(state["beta"])
        self._sums = {name: (entry["total"], int(entry["count"])) for name, entry in state["sums"].items()}


def _over_ranks(total: Tensor, count: int) -> Tensor:
    """The mean over all samples of the step, those of other processes included."""
    if dist.is_available() and dist.is_initialized():
        both = torch.cat([total, total.new_tensor([count])])
        dist.all_reduce(both)
        return both[:-1] / both[-1]
    return total / count
