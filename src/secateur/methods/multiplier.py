"""Factors on the channels that convolutions, linear layers and batch norms put out, and their gradients.

With y = f * conv(x; w, b) the output hangs on f only through f w and f b, channel by channel, so that

    f_j * dL/df_j  =  sum over the filter (w_j * dL/dw_j)  +  b_j * dL/db_j

and likewise with gamma and beta for a batch norm. That is exact, wherever and however often the layer is called. What
autograd has worked out for the network's own parameters is therefore all that is needed: nothing is saved for a factor,
the product is made in place (neither convolutions nor batch norms need their own output backwards), and what stands in
`.grad` is averaged over processes and unscaled already. Where several layers make a channel together, the sum over them
is that of the channel.

What the identity can't see: a parameter that something else reads as well (such layers get no factor), and terms that a
user's loss has of the weights themselves. An optimizer's weight decay is none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.graph import Graph, state_of
from secateur.graph.operators import BATCH_NORMS, CONVOLUTIONS
from secateur.methods.sites import Site, sites_of
from secateur.surgery.walk import Walk, is_product, operands


@dataclass(eq=False)
class Multiplier:
    """One factor per channel that a layer puts out.

    Attributes:
        modules: names of the modules whose output is multiplied; several where they share a weight.
        sites: names of the convolutions and linear layers that make these channels: the modules themselves, or those in
            front of a batch norm.
        units: int64 (C), the unit of every channel, -1 where there is none.
        parameters: those that could take the factors: weight (as `site` lays it out) and biases, or gamma and beta.
        site: the layer, one of several alike.
        factor: (C); None for ones.
    """

    modules: tuple[str, ...]
    sites: tuple[str, ...]
    units: NDArray[np.int64]
    parameters: tuple[nn.Parameter, ...]
    site: Site
    spatial: int  # dimensions of the output behind the channels
    factor: Tensor | None = None
    _handles: list[RemovableHandle] = field(default_factory=list)

    def attach(self, model: nn.Module) -> None:
        """Multiply from now on, in train and eval mode."""
        self._handles = [model.get_submodule(name).register_forward_hook(self) for name in self.modules]

    def detach(self) -> None:
        """Multiply no more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.factor = [], None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook. On the meta device networks are traced, as for their cost."""
        if self.factor is not None and isinstance(output, Tensor) and not output.is_meta:
            output.mul_(self.factor.to(output.device, output.dtype).view(-1, *[1] * self.spatial))

    def __deepcopy__(self, memo: Any) -> Multiplier:
        return self  # the hooks of a copied network multiply by the same factors

    @torch.no_grad()
    def sums(self) -> Tensor:
        """f * dL/df from the gradients that are there, (C), in float32 at least."""
        total = torch.zeros(len(self.units), device=self.device, dtype=self.dtype)
        for parameter in self.parameters:
            if parameter.grad is not None:
                product = parameter.to(total.dtype) * parameter.grad
                total += product if product.dim() == 1 else self.site.filters(product).sum(1)
        return total

    @torch.no_grad()
    def fold(self, factor: Tensor) -> None:
        """Put a factor (C) into the parameters, so that the network computes the same without it."""
        for parameter in self.parameters:
            filters, shape = parameter, [-1, *[1] * (parameter.dim() - 1)]
            if parameter.dim() > 1 and self.site.transposed:  # (inputs, outputs / groups, ...)
                filters = parameter.unflatten(0, (self.site.groups, -1))
                shape = [self.site.groups, 1, -1, *[1] * (parameter.dim() - 2)]
            filters.mul_(factor.to(parameter.device, parameter.dtype).view(shape))

    @property
    def device(self) -> torch.device:
        """Where the layer is, now."""
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Of factors and sums: the layer's, or float32 if that is finer."""
        return torch.promote_types(self.parameters[0].dtype, torch.float32)


def multipliers(graph: Graph, behind_norm: Collection[str] = ()) -> list[Multiplier]:
    """One for every layer that makes channels and whose parameters train and are read by nothing else.

    Args:
        graph: the traced network.
        behind_norm: names of convolutions whose channels are multiplied behind the batch norm that alone reads them,
            where there is one.
    """
    state, walks = state_of(graph.model), [Walk(flow) for flow in graph.flows]
    alike: dict[str, list[Site]] = {}
    for site in sites_of(graph):
        behind = site.module in behind_norm and site.norm != ""
        alike.setdefault(f"norm {site.norm}" if behind else site.weight, []).append(site)
    found = []
    for key, sites in alike.items():
        first, sizes = sites[0], {len(site.units) for site in sites}
        modules: tuple[str, ...]
        if key.startswith("norm "):
            modules, names = (first.norm,), _affine(walks, first.norm)
        else:
            modules = tuple(dict.fromkeys(site.module for site in sites))
            names = tuple(dict.fromkeys([first.weight, *(site.bias for site in sites if site.bias)]))
            if len({(site.transposed, site.groups) for site in sites}) > 1:
                continue
        parameters = tuple(state.get(name) for name in names)
        if (
            len(sizes) == 1
            and all((site.units == first.units).all() for site in sites)
            and all(isinstance(p, nn.Parameter) and p.requires_grad for p in parameters)
            and _read_by_none_else(walks, names, modules)
        ):
            spatial = state[first.weight].dim() - 2
            own = tuple(site.module for site in sites)
            found.append(Multiplier(modules, own, first.units, parameters, first, spatial))  # type: ignore[arg-type]
    return found


def _affine(walks: Sequence[Walk], norm: str) -> tuple[str, ...]:
    """The names of a batch norm's gamma and beta; "" for one that is computed."""
    found = dict.fromkeys(
        walk.parameter(ref)
        for walk in walks
        for node in walk.nodes
        if node.module == norm and node.op in BATCH_NORMS
        for ref in node.args[1:3]
        if ref is not None
    )
    return tuple(found)


def _read_by_none_else(walks: Sequence[Walk], names: Sequence[str], modules: Collection[str]) -> bool:
    return all(
        node.module in modules
        for walk in walks
        for name in names
        for node in walk.readers.get(walk.flow.capture.names[name], ())
    )


def covered(graph: Graph, found: Sequence[Multiplier]) -> NDArray[np.bool_]:
    """bool per unit: prunable, and every layer that makes its channels has a factor, so that zeros silence them."""
    made, elsewhere = np.zeros(graph.units, dtype=bool), np.zeros(graph.units, dtype=bool)
    sites = {name for multiplier in found for name in multiplier.sites}
    for multiplier in found:
        made[multiplier.units[multiplier.units >= 0]] = True
    for flow in graph.flows:
        walk = Walk(flow)
        for node in walk.nodes:
            out = node.outputs[0] if node.outputs else None
            if out is None or not is_product(node) or node.module in sites:
                continue
            convolution = node.op in CONVOLUTIONS
            if convolution or walk.parameter(operands(node)[1]):  # products of two maps pass zeros on
                for track in flow.get(out)[1 if convolution else -1]:
                    elsewhere[graph.solution.of_atom[track.atoms[track.atoms >= 0]]] = True
    return graph.prunable & made & ~elsewhere


@dataclass(eq=False)
class Gathered:
    """A layer's factors that come from a table with one place for every unit, and one more for channels without.

    Attributes:
        layer: what is multiplied.
        seats: int64 (C), every channel's place.
        targets: int64 (U), the places that occur.
        channels: int64 (U, M), the channels of each, filled up with C.
    """

    layer: Multiplier
    seats: Tensor
    targets: Tensor
    channels: Tensor

    @classmethod
    def of(cls, layer: Multiplier, seat_of: NDArray[np.int64], device: torch.device) -> Gathered:
        """`seat_of` is int64 per unit, with one more at the end for channels without a unit."""
        seats = seat_of[layer.units]
        targets = np.unique(seats)
        channels = [np.flatnonzero(seats == seat) for seat in targets]
        table = np.full((len(targets), max(map(len, channels))), len(seats))
        for row, mine in zip(table, channels, strict=True):
            row[: len(mine)] = mine
        return cls(layer, *(torch.from_numpy(a).to(device) for a in (seats, targets, table)))

    def add_sums(self, total: Tensor) -> None:
        """Add f * dL/df of every unit to the table, in the same order every time, on every process."""
        sums = torch.cat([self.layer.sums().to(total), total.new_zeros(1)])
        total[self.targets] += sums[self.channels].sum(1)
