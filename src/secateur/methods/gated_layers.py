"""Layers whose output channels are gated: which they are, the hooks that gate them, which units fall silent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.errors import MethodError, nearest
from secateur.graph import Graph, state_of
from secateur.graph.capture import Ref
from secateur.graph.operators import CONVOLUTIONS
from secateur.methods.gates import Gate
from secateur.methods.sites import Site, sites_of
from secateur.surgery.walk import Walk, is_product, operands


@dataclass(eq=False)
class GatedLayer:
    """A convolution whose output channels are multiplied by gates, behind its batch norm where it has one.

    Attributes:
        site: the convolution.
        gate: makes the logits from what the convolution reads.
        decide: (this layer, what it reads, whether it trains) -> gates (N, C).
        opened: which gates were open, bool (N, C) for every call, while that is counted.
    """

    site: Site
    gate: Gate
    decide: Callable[[GatedLayer, Tensor, bool], Tensor]
    opened: list[Tensor] | None = None
    _waiting: Tensor | None = None  # from the convolution to its norm
    _handles: list[RemovableHandle] = field(default_factory=list)

    def attach(self, model: nn.Module) -> None:
        """Gate from now on, in train and eval mode."""
        convolution = model.get_submodule(self.site.module)
        target = model.get_submodule(self.site.norm) if self.site.norm else convolution
        self._handles = [
            convolution.register_forward_hook(self._look, with_kwargs=True),
            target.register_forward_hook(self._multiply),
        ]

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def detach(self) -> None:
        """Gate no more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._waiting = [], None

    def _look(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        features = args[0] if args else kwargs["input"]
        if not all(isinstance(parameter, nn.Parameter) for parameter in module.parameters(recurse=False)):
            return  # on other tensors in their place networks are traced, as for their cost
        self._waiting = self.decide(self, features, module.training)
        if self.opened is not None:
            self.opened.append(self._waiting.detach() > 0)

    def _multiply(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        gates, self._waiting = self._waiting, None
        if gates is None:
            return None
        return output * gates.to(output.dtype).view(*gates.shape, *[1] * (output.dim() - 2))

    def __deepcopy__(self, memo: Any) -> GatedLayer:
        return self  # the hooks of a copied network ask the same gates


def sites_to_gate(graph: Graph, layers: str | Sequence[str]) -> list[Site]:
    """The convolutions to gate.

    Args:
        graph: the traced network.
        layers: "blocks": the first convolution of every branch of a residual sum whose own channels take part in none;
            where there are no such, "all": every convolution without groups, of more than one position, whose channels
            could be removed. Or names of these or of modules that hold them.

    Raises:
        MethodError: there is no such convolution.
    """
    state = state_of(graph.model)
    eligible = [
        site
        for site in sites_of(graph)
        if state[site.weight].dim() > 2 and site.groups == 1 and site.positions > 1
        and (site.units >= 0).all() and graph.prunable[site.units].all()
    ]  # fmt: skip
    if not eligible:
        raise MethodError(
            f"{type(graph.model).__name__} has no convolution whose output channels could be left out; see "
            "print(secateur.trace(model, inputs))"
        )
    if layers == "blocks":
        first = first_in_branches(graph)
        return [s for s in eligible if s.module in first and not graph.residual[s.units].any()] or eligible
    if layers == "all":
        return eligible
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        if not any(_within(site.module, name) for site in eligible):
            known = nearest(name, [*(site.module for site in eligible), "blocks", "all"])
            raise MethodError(f"layers {name!r} names no convolution that can be gated; {known}")
    return [site for site in eligible if any(_within(site.module, name) for name in names)]


def _within(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def first_in_branches(graph: Graph) -> set[str]:
    """The modules of those convolutions that come first in a branch of a sum of two maps: behind what both have in
    common."""
    walk = Walk(graph.flows[0])
    before: dict[int, int] = {}  # value -> the nodes that it hangs on, one bit each
    behind: dict[int, int] = {}  # convolution -> the convolutions that it hangs on
    convolutions, found = 0, set[str]()
    for at, node in enumerate(walk.nodes):
        data = [ref for ref in node.inputs() if not walk.parameter(ref)]
        reached = 0
        for ref in data:
            reached |= before.get(ref.value, 0)
        if node.op in CONVOLUTIONS:
            behind[at] = reached & convolutions
            convolutions |= 1 << at
        elif node.op in ("add", "add_") and len(data) == 2 and _same_channels(walk, data):
            left, right = (before.get(ref.value, 0) for ref in data)
            for branch in (left & ~right, right & ~left):
                ours = (i for i in behind if branch >> i & 1)
                found.update(walk.nodes[i].module for i in ours if not behind[i] & branch)
        for out in node.outputs:
            if out is not None:
                before[out.value] = reached | 1 << at
    return found


def _same_channels(walk: Walk, refs: Sequence[Ref]) -> bool:
    left, right = (walk.flow.shape(ref) for ref in refs)
    return len(left) == len(right) > 2 and left[1] == right[1]


def made_only_by(graph: Graph, modules: Collection[str]) -> NDArray[np.bool_]:
    """bool per unit: the convolutions of these modules make it, and nothing else does. A depthwise convolution makes
    nothing of its own."""
    made, elsewhere = np.zeros(graph.units, dtype=bool), np.zeros(graph.units, dtype=bool)
    for flow in graph.flows:
        walk = Walk(flow)
        for node in walk.nodes:
            out = node.outputs[0] if node.outputs else None
            if out is None or not is_product(node) or not walk.parameter(operands(node)[1]):
                continue
            convolution = node.op in CONVOLUTIONS
            if convolution and int(node.args[8]) > 1 and flow.shape(operands(node)[1])[1] == 1:
                continue
            for track in flow.get(out)[1 if convolution else -1]:
                units = graph.solution.of_atom[track.atoms[track.atoms >= 0]]
                (made if node.module in modules else elsewhere)[units[units >= 0]] = True
    return made & ~elsewhere


def silent_units(layers: Sequence[GatedLayer], units: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool (samples, units): of these units (bool per unit), those all of whose gates were closed since the layers
    began to keep `opened`.

    A layer that was called several times had a gate open if it was in any of the calls; what a layer makes that was not
    called counts as computed.
    """
    samples = max(len(calls[0]) for calls in (layer.opened for layer in layers) if calls)
    computed = np.tile(~units, (samples, 1))
    for layer in layers:
        opened = torch.stack(layer.opened).any(0).cpu().numpy() if layer.opened else np.ones((samples, 1), dtype=bool)
        np.logical_or.at(computed.T, layer.site.units, opened.T)
    return ~computed
