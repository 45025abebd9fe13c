"""Pseudo scaling factors: scales for layers without batch norms, which train like a gamma and are folded away.

He et al., CAP: Context-Aware Pruning for Semantic Segmentation, WACV 2021: where a network has no normalisation layers,
"pseudo scaling factors" can be added. The paper says no more; choices:

- One scale per output channel of a convolution or linear layer, 1 at first, multiplied onto its output (see
  `multiplier`). Only layers some of whose channels can go and are scaled by no batch norm get one; not those whose
  output a norm without a gamma of the network's own reads at once, which would undo any scaling.
- They train beside the network: SGD with the training's momentum, or Adam where the training's optimizer is adaptive,
  at its learning rate, without weight decay.
- A scale of 0 is applied as 1e-20, so that it has a gradient, that from the positive side, and may recover; it is
  folded as 0. In half precision it is 0, and stays.
- After each of several cuts they start at 1 again: what they were is in the weights then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import MethodError
from secateur.graph import Graph
from secateur.graph.operators import BATCH_NORMS, CONVOLUTIONS
from secateur.methods.beside import Beside
from secateur.methods.multiplier import Multiplier, multipliers
from secateur.methods.protocol import Training
from secateur.methods.scales import Scale, batch_norm_scales
from secateur.surgery.walk import Walk

HELP = "scales for layers without batch norms: auto (if the network has no batch norm at all), true, false"
_LEAST = 1e-20
_NORMS = (*BATCH_NORMS, "native_group_norm", "native_layer_norm")


class PseudoScales:
    """The pseudo scales of a network; none, if it is to have none.

    Args:
        wanted: True, False, or "auto": if the network has no batch norm with a gamma.

    Attributes:
        scales: as those of batch norms.
        modules: convolution -> the name of its scale.

    Raises:
        MethodError: `wanted` is something else.
    """

    def __init__(self, wanted: bool | str) -> None:
        if not (isinstance(wanted, bool) or wanted == "auto"):
            raise MethodError(f"pseudo_scales {wanted!r}: true, false or auto was expected")
        self._wanted = wanted
        self._training: Training | None = None
        self._layers: list[Multiplier] = []
        self._folded: list[Tensor] = []  # the scales that the weights hold already
        self._beside = Beside([])
        self.scales: list[Scale] = []
        self.modules: dict[str, str] = {}

    def start(self, graph: Graph) -> None:
        """Find the layers; all scales are 1."""
        scales = batch_norm_scales(graph)
        wanted = self._wanted is True or (self._wanted == "auto" and not scales)
        self._layers = _unscaled(graph, scales) if wanted else []
        self._folded = [torch.ones(len(m.units), device=m.device, dtype=m.dtype) for m in self._layers]
        self._beside = Beside([nn.Parameter(ones.clone()) for ones in self._folded])
        if self._training is not None:
            self._beside.begin(self._training)
        self.scales, self.modules = [], {}
        for layer, scale in zip(self._layers, self._beside.parameters, strict=True):
            assert layer.layout is not None
            name = f"{layer.modules[0]}.pseudo_scale"
            self.scales.append(Scale(name, scale, layer.units, None, layer.layout.positions))
            self.modules.update(dict.fromkeys(layer.modules if layer.parameters[0].dim() > 2 else (), name))

    def attach(self, model: nn.Module) -> None:
        """Multiply from now on."""
        for layer in self._layers:
            layer.attach(model)
        self.show()

    def begin(self, training: Training) -> None:
        """Learn the schedule of the training to come."""
        self._training = training
        self._beside.begin(training)

    @torch.no_grad()
    def show(self) -> None:
        """Multiply by the scales as they are now."""
        for layer, scale, folded in zip(self._layers, self._beside.parameters, self._folded, strict=True):
            layer.factor = _applied(scale) / _divisor(folded, scale)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Give the scales their gradients."""
        self._beside.to([layer.device for layer in self._layers])
        for layer, scale in zip(self._layers, self._beside.parameters, strict=True):
            scale.grad = layer.sums() / _applied(scale)

    def after_step(self, lr: float | None) -> None:
        """Step with these gradients; then `show`."""
        self._beside.step(lr)

    @torch.no_grad()
    def stop(self) -> None:
        """Fold the scales into the weights."""
        for i, (layer, scale) in enumerate(zip(self._layers, self._beside.parameters, strict=True)):
            layer.fold(scale / _divisor(self._folded[i], scale))
            layer.detach()
            self._folded[i] = scale.detach().clone()

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on after an interruption."""
        return {**self._beside.state_dict(), "folded": [folded.clone() for folded in self._folded]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._beside.load_state_dict(state)
        self._folded = [
            f.to(s.device, copy=True) for f, s in zip(state["folded"], self._beside.parameters, strict=True)
        ]
        self.show()


def _applied(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, _LEAST, scale)


def _divisor(folded: Tensor, scale: Tensor) -> Tensor:
    """What the weights hold of the scale already; 1 where that is 0, and the weights with it."""
    return torch.where(folded == 0, 1, folded).to(scale.device)


def _unscaled(graph: Graph, scales: list[Scale]) -> list[Multiplier]:
    """The layers that make channels which can go and which no batch norm scales."""
    open_ = graph.prunable.copy()
    for scale in scales:
        open_[scale.units[scale.units >= 0]] = False
    undone = set[str]()
    for flow in graph.flows:
        walk = Walk(flow)
        for node in walk.nodes:
            maker = walk.maker.get(node.args[0].value) if node.op in _NORMS else None
            while maker is not None and maker.op in ("view", "_unsafe_view", "clone", "expand"):
                maker = walk.maker.get(maker.args[0].value)
            if maker is not None and maker.op in CONVOLUTIONS:
                undone.add(maker.module)
    return [m for m in multipliers(graph) if open_[m.units[m.units >= 0]].any() and undone.isdisjoint(m.modules)]
