"""Taylor: remove the channels without which the loss changes least, to first order.

form="activation": Molchanov, Tyree, Karras, Aila and Kautz, Pruning Convolutional Neural Networks for Resource
Efficient Inference, ICLR 2017 (arXiv:1611.06440), section 2.2: |mean over batch and space of a * dL/da|, a the output
of a convolution, added up over batches; scores are divided by the L2 norm of their layer's.
form="scales": Molchanov, Mallya, Tyree, Frosio and Kautz, Importance Estimation for Neural Network Pruning, CVPR 2019
(arXiv:1906.10771), eq. 8 at the gates of batch norms: (gamma * dL/dgamma + beta * dL/dbeta)^2, added up over batches,
as it is for all layers.

Choices:
- *Where from.* With `data` and `loss`, a pass of its own in eval mode when scores are asked for. Without, the gradients
  that the training leaves between `backward` and the optimizer's step, of its last epoch.
- *Batch norm in train mode* undoes any scaling of its input, so that a * dL/da in front of it sums to zero over batch
  and space but for rounding and the norm's eps, whatever the channel is worth. While training it is therefore taken
  behind every batch norm that a channel runs through, and at convolutions that no batch norm alone reads; in a pass,
  behind norms without running statistics (instance norms) as well.
- *Batches.* The absolute value is that of a batch's mean; the 2017 paper takes it of every image's.
- *Coupled channels.* The terms of all layers that make the channels of a unit are added up, as their effects on the
  loss add up to first order (`reduce`). The L2 norm is that of a group, which is a layer where nothing is coupled.
- *Several losses* (several tasks) count as their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from secateur.errors import MethodError, nearest
from secateur.graph import Graph, state_of
from secateur.methods.channels import REDUCTIONS, per_unit
from secateur.methods.contributions import from_gradients, only_these_learn, own_statistics, readings, tapped
from secateur.methods.material import call, evaluating
from secateur.methods.protocol import Method, Scores
from secateur.methods.scales import Scale, scales_of
from secateur.methods.sites import sites_of

FORMS = ("activation", "scales")


class Source(NamedTuple):
    """Where a channel's terms are read off gradients: the parameters of one layer.

    Attributes:
        name: of its weight.
        units: int64 (C).
        read: -> sum over batch and space of a * dL/da of the layer's output, (C), or None where it has no gradient.
        positions: height times width of the output.
    """

    name: str
    units: NDArray[np.int64]
    read: Callable[[], Tensor | None]
    positions: int


@dataclass
class Taylor(Method):
    """What the loss would change by without a unit, to first order."""

    name = "taylor"
    summary = "activation times gradient: what the loss would change by without a channel, to first order"
    paper = "Molchanov et al., Pruning CNNs for Resource Efficient Inference, ICLR 2017; and CVPR 2019 (form=scales)"
    takes_data = True

    form: str = field(
        default="activation",
        metadata={"help": "activation (2017, at convolutions) or scales (2019, at gamma and beta of batch norms)"},
    )
    batches: int | None = field(
        default=None, metadata={"help": "how many batches of the data the pass takes; null: all"}
    )
    normalise: bool | None = field(
        default=None, metadata={"help": "divide a group's scores by their L2 norm; null: for form activation"}
    )
    reduce: str = field(
        default="sum", metadata={"help": "how a unit's several layers are put together: mean, sum, max, min"}
    )

    def __post_init__(self) -> None:
        for option, value, known in (("form", self.form, FORMS), ("reduce", self.reduce, REDUCTIONS)):
            if value not in known:
                raise MethodError(f"{option} {value!r}; {nearest(value, known)}")
        if self.batches is not None and self.batches < 1:
            raise MethodError(f"batches {self.batches}: at least 1 was expected, or null for all")
        self._sources: list[Source] = []
        self._sums: dict[str, Tensor] = {}  # of the epoch's steps so far
        self._stale = False  # they are of an epoch that is over

    def start(self, graph: Graph) -> None:
        self._sums, self._stale = {}, False  # of a network that was cut since, they have other shapes
        self._sources = [] if self.material.data is not None else list(self._while_training(graph))

    def _while_training(self, graph: Graph) -> Iterator[Source]:
        """Behind the norms; and, for form "activation", at the layers that no batch norm alone reads."""
        if self.form == "scales":
            yield from map(_at_scale, scales_of(graph))
            return
        state, modules = state_of(graph.model), dict(graph.model.named_modules())
        bare = [name for name, module in modules.items() if isinstance(module, _NormBase) and module.weight is None]
        if bare:
            raise MethodError(
                f"norms without scales ({', '.join(bare[:3])}{' ...' if len(bare) > 3 else ''}) undo any scaling of "
                "their input, so that the gradients of a training say nothing of the channels in front of them; give "
                "method taylor data= and loss= for a pass of its own"
            )
        if any(isinstance(module, _BatchNorm) for module in modules.values()):
            yield from map(_at_scale, scales_of(graph))
        for norm in own_statistics(graph):
            if not isinstance(module := modules[norm.module], _BatchNorm):
                read = partial(from_gradients, module.weight, module.bias)
                yield Source(norm.module, norm.units, read, norm.positions)
        by_weight = {site.weight: site for site in sites_of(graph) if not site.norm}
        for site in by_weight.values():  # once for every weight: its gradient is the sum over all layers that share it
            weight, bias = state[site.weight], state.get(site.bias)
            read = partial(from_gradients, weight, bias, site.filters)  # type: ignore[arg-type]
            yield Source(site.weight, site.units, read, site.positions)

    def after_backward(self) -> None:
        terms = {source.name: self._of_batch(source) for source in self._sources}
        found = {name: term for name, term in terms.items() if term is not None}
        if not found:
            return
        if self._stale:
            self._sums, self._stale = {}, False
        # a step whose gradients are not finite is one that a gradient scaler skips; no waiting for the device here
        finite = torch.stack([term.isfinite().all() for term in found.values()]).all()
        for name, term in found.items():
            term = torch.where(finite, term, 0)
            self._sums[name] = term if name not in self._sums else self._sums[name].to(term.device) + term

    def _of_batch(self, source: Source) -> Tensor | None:
        """A batch's summand of the scores, (C); of form "activation" up to the size of the batch."""
        term = source.read()
        if term is None:
            return None
        return term.square() if self.form == "scales" else term.abs() / source.positions

    def after_epoch(self, epoch: int) -> None:
        self._stale = True

    def scores(self, graph: Graph) -> Scores:
        if self.material.data is not None:
            passed = self._pass_at_scales(graph) if self.form == "scales" else self._pass_at_outputs(graph)
        elif self._sums:
            passed = [(s.units, self._sums[s.name]) for s in self._sources if s.name in self._sums]
        else:
            raise MethodError(
                "method taylor has seen no gradients: give data= (batches (input, target)) and loss= "
                "((output, target) -> scalar) for a pass of its own, or train with a secateur.Pruner and call "
                "pruner.after_backward() behind loss.backward()"
            )
        scores = per_unit(graph, [(units, sums.double().cpu().numpy()) for units, sums in passed], self.reduce)
        normalise = self.form == "activation" if self.normalise is None else self.normalise
        return by_group_norm(graph, scores) if normalise else scores

    def _pass_at_outputs(self, graph: Graph) -> list[tuple[NDArray[np.int64], Tensor]]:
        """sum over batches of |mean over batch and space of a * dL/da|."""
        at, sums = readings(graph), dict[str, Tensor]()
        with tapped(graph.model, at) as taps:
            for inputs, target in self.material.batches(graph.model, self.batches):
                taps.forget()
                for name, mean in taps.means(self._loss(graph.model, inputs, target)).items():
                    sums[name] = mean.abs() + sums.get(name, 0)
        return [(reading.units, sums[reading.module]) for reading in at if reading.module in sums]

    def _pass_at_scales(self, graph: Graph) -> list[tuple[NDArray[np.int64], Tensor]]:
        """sum over batches of (gamma * dL/dgamma + beta * dL/dbeta)^2 at every batch norm."""
        scales, sums = scales_of(graph), dict[str, Tensor]()
        learning = [parameter for s in scales for parameter in (s.gamma, s.beta) if parameter is not None]
        with evaluating(graph.model), only_these_learn(graph.model, learning):
            for inputs, target in self.material.batches(graph.model, self.batches):
                for parameter in learning:
                    parameter.grad = None
                self._loss(graph.model, inputs, target).backward()
                for scale in scales:
                    term = _at_scale(scale).read()
                    if term is not None:
                        sums[scale.name] = term.square() + sums.get(scale.name, 0)
        return [(scale.units, sums[scale.name]) for scale in scales if scale.name in sums]

    def _loss(self, model: nn.Module, inputs: Any, target: Any) -> Tensor:
        losses = self.material.losses(call(model, inputs), target)
        total = torch.stack([loss.reshape(()) for loss in losses.values()]).sum()
        if not total.requires_grad:
            raise MethodError(
                f"the loss ({', '.join(losses)}) hangs on nothing that can be scored: expected is one that is computed "
                "from the network's output, without detach() or no_grad() on the way"
            )
        return total

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "stale": self._stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums, self._stale = dict(state["sums"]), bool(state["stale"])


def by_group_norm(graph: Graph, scores: Scores) -> Scores:
    """Every group's scores divided by their L2 norm (2017 paper, eq. 10); +inf stays."""
    squares = np.where(np.isfinite(scores), scores, 0.0) ** 2
    norms = np.sqrt(np.bincount(graph.solution.group_of, squares, minlength=len(graph.groups)))
    return scores / np.where(norms > 0, norms, 1.0)[graph.solution.group_of]


def _at_scale(scale: Scale) -> Source:
    return Source(scale.name, scale.units, partial(from_gradients, scale.gamma, scale.beta), scale.positions)
