"""The layers that make channels, as methods see them: whose output, whose filters, which units, which norm behind."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.graph import Graph, state_of
from secateur.graph.operators import BATCH_NORMS, CONVOLUTIONS
from secateur.methods.channels import units_along
from secateur.surgery.walk import Walk


@dataclass(frozen=True, slots=True)
class Site:
    """One convolution or linear layer.

    Attributes:
        module: name of the module whose output its output is.
        weight, bias: names of its parameters; "" without a bias.
        transposed: the filters lie along the weight's dimension 1.
        groups: of the convolution.
        units: int64 (C), the unit of every output channel, -1 where there is none.
        positions: height times width of its output in the traced run.
        norm: name of the module of the batch norm that alone reads its output; "" if there is none.
    """

    module: str
    weight: str
    bias: str
    transposed: bool
    groups: int
    units: NDArray[np.int64]
    positions: int
    norm: str

    def filters(self, weight: Tensor) -> Tensor:
        """The weight, or anything of its shape, as (C, elements): one row per output channel."""
        if not self.transposed:
            return weight.flatten(1)
        # (inputs, outputs / groups, ...) -> (outputs, inputs / groups * ...)
        return weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1)


def sites_of(graph: Graph) -> list[Site]:
    """Every convolution and linear layer with a weight of its own that is a module, in the order of the network.

    Layers whose weight is computed (weight norm, standardised weights), that a module does not return as they are, or
    none of whose channels is a unit, are left out.
    """
    modules, infos = dict(graph.model.named_modules()), {t.name: t for t in graph.tensors}
    first_name = {alias: t.name for t in graph.tensors for alias in (t.name, *t.aliases)}
    state, found = state_of(graph.model), dict[str, Site]()
    for flow in graph.flows:
        walk = Walk(flow)
        returned = {(name, value) for name, values in flow.capture.calls for value in values}

        def named(ref: object, walk: Walk = walk) -> str:
            return first_name.get(walk.parameter(ref), "")

        for node in flow.capture.nodes:
            out = node.outputs[0] if node.outputs else None
            if node.op not in CONVOLUTIONS or out is None or (node.module, out.value) not in returned:
                continue
            weight, bias = named(node.args[1]), named(node.args[2])
            if not weight or node.module in found or not isinstance(state[weight], nn.Parameter):
                continue
            transposed, groups, readers = bool(node.args[6]), int(node.args[8]), walk.readers.get(out.value, [])
            units = np.tile(units_along(graph, infos[weight], int(transposed)), groups if transposed else 1)
            norm = ""
            if len(readers) == 1 and readers[0].op in BATCH_NORMS and named(readers[0].args[1]):
                after = readers[0].outputs[0]
                norm = readers[0].module if after and (readers[0].module, after.value) in returned else ""
            positions = prod(flow.shape(out)[2:])
            found[node.module] = Site(node.module, weight, bias, transposed, groups, units, positions, norm)
        for name, values in flow.capture.calls:
            module, weight = modules.get(name), first_name.get(f"{name}.weight" if name else "weight", "")
            if (
                name in found
                or not values
                or not isinstance(module, nn.Linear)
                or not isinstance(state.get(weight), nn.Parameter)
            ):
                continue
            bias = first_name.get(weight.removesuffix("weight") + "bias", "") if module.bias is not None else ""
            positions = prod(flow.capture.shapes[values[0]][1:-1])
            found[name] = Site(name, weight, bias, False, 1, units_along(graph, infos[weight], 0), positions, "")
    return [site for site in found.values() if (site.units >= 0).any()]
