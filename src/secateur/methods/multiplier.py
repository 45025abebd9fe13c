"""Factors on the channels that convolutions, linear layers and norms put out, and their gradients.

With y = f * conv(x; w, b) the output hangs on f only through f w and f b, channel by channel. So the layer is called
with f w and f b in place of w and b (with f gamma and f beta, for a norm): the product is one of the size of the
parameters, and no activation is kept for it. And so

    f_j * dL/df_j  =  sum over the filter (w_j * dL/dw_j)  +  b_j * dL/db_j

which is exact, wherever and however often the layer is called. What autograd has worked out for the network's own
parameters is all that is needed; what stands in their `.grad` is averaged over processes and unscaled already. Where
several layers make a channel together, the sum over them is that of the channel.

What the identity can't see: a parameter that something else reads as well (such layers get no factor), and terms that a
user's loss has of the weights themselves. An optimizer's weight decay is none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.graph import Graph, state_of
from secateur.graph.operators import BATCH_NORMS, CONVOLUTIONS
from secateur.methods.channels import units_along
from secateur.methods.contributions import from_gradients
from secateur.methods.sites import Site, sites_of
from secateur.surgery import unfoldable
from secateur.surgery.walk import Walk, is_product, operands

_OWN = "_parameters_without_factors"  # of a module while it runs


@dataclass(eq=False)
class Multiplier:
    """One factor per channel that a layer puts out.

    Attributes:
        modules: names of the modules whose output is multiplied; several where they share a weight.
        sites: names of the convolutions and linear layers whose channels these are: the modules themselves, or those
            that the norm alone reads.
        units: int64 (C), the unit of every channel, -1 where there is none.
        parameters: those that take the factors: weight and biases, or gamma and beta.
        layout: a site that tells how the weight is laid out; None for norms.
        factor: (C); None for ones.
    """

    modules: tuple[str, ...]
    sites: tuple[str, ...]
    units: NDArray[np.int64]
    parameters: tuple[nn.Parameter, ...]
    layout: Site | None
    factor: Tensor | None = None
    _handles: list[RemovableHandle] = field(default_factory=list)

    def attach(self, model: nn.Module) -> None:
        """Multiply from now on, in train and eval mode."""
        for name in self.modules:
            module = model.get_submodule(name)
            enter = partial(self._enter, _keys_of(module, self.parameters))
            self._handles += [
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(_leave, always_call=True),
            ]

    def detach(self) -> None:
        """Multiply no more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.factor = [], None

    def _enter(self, keys: Sequence[str], module: nn.Module, args: Any) -> None:
        """In front of a forward pass; but on the meta device networks are traced, as for their cost."""
        own = {key: p for key in keys if (p := module._parameters[key]) is not None}
        if self.factor is not None and not any(parameter.is_meta for parameter in own.values()):
            vars(module)[_OWN] = own
            module._parameters.update({key: self._times(p, self.factor) for key, p in own.items()})  # type: ignore[misc]

    def _times(self, parameter: Tensor, factor: Tensor) -> Tensor:
        """A parameter, channel by channel times a factor (C)."""
        factor, ones = factor.to(parameter.device, parameter.dtype), [1] * (parameter.dim() - 1)
        if parameter.dim() > 1 and self.layout is not None and self.layout.transposed:
            groups = self.layout.groups  # (inputs, outputs / groups, ...)
            return (parameter.unflatten(0, (groups, -1)) * factor.view(groups, 1, -1, *ones[1:])).flatten(0, 1)
        return parameter * factor.view(-1, *ones)

    def __deepcopy__(self, memo: Any) -> Multiplier:
        return self  # the hooks of a copied network multiply by the same factors

    def sums(self) -> Tensor:
        """f * dL/df from the gradients that are there, (C), in float32 at least."""
        weight, *vectors = self.parameters
        rows = None if self.layout is None else self.layout.filters
        parts = [from_gradients(weight, None, rows), *(from_gradients(vector, None) for vector in vectors)]
        zero = torch.zeros(len(self.units), device=self.device, dtype=self.dtype)
        return sum((part for part in parts if part is not None), zero)

    @torch.no_grad()
    def fold(self, factor: Tensor) -> None:
        """Put a factor (C) into the parameters, so that the network computes the same without it."""
        for parameter in self.parameters:
            parameter.copy_(self._times(parameter, factor))

    @property
    def device(self) -> torch.device:
        """Where the layer is, now."""
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Of factors and sums: the layer's, or float32 if that is finer."""
        return torch.promote_types(self.parameters[0].dtype, torch.float32)


def _keys_of(module: nn.Module, parameters: Sequence[nn.Parameter]) -> list[str]:
    """What a module calls those of the parameters that are its own."""
    return [key for key, own in module._parameters.items() if any(own is parameter for parameter in parameters)]


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    """Behind a forward pass, also one that failed: the module has its own parameters again."""
    module._parameters.update(vars(module).pop(_OWN, {}))


def multipliers(graph: Graph, behind_norm: Collection[str] = ()) -> list[Multiplier]:
    """One for every layer that makes channels and whose parameters train and are read by nothing else.

    Args:
        graph: the traced network.
        behind_norm: names of layers whose channels are multiplied at every batch or group norm that they come to; at
            the layer itself only where no batch norm alone reads it.
    """
    state, walks = state_of(graph.model), [Walk(flow) for flow in graph.flows]
    norms = _norms(graph, walks)
    found: list[Multiplier] = []

    def add(modules: Collection[str], names: Collection[str], sites: Sequence[Site], norm: _Norm | None = None) -> None:
        """Unless the parameters do not tell."""
        parameters = tuple(p for p in map(state.get, names) if isinstance(p, nn.Parameter) and p.requires_grad)
        units = norm.units if norm is not None else sites[0].units
        here = [graph.model.get_submodule(name) for name in modules]
        alike = {(len(site.units), site.transposed, site.groups) for site in (sites if norm is None else ())}
        if (
            len(alike) <= 1
            and all((site.units == units).all() for site in sites)
            and len(parameters) == len(names)
            and _read_by_none_else(walks, names, modules)
            and {id(p) for p in parameters} == {id(m._parameters[k]) for m in here for k in _keys_of(m, parameters)}
        ):
            own = tuple(site.module for site in sites)
            found.append(Multiplier(tuple(modules), own, units, parameters, sites[0] if norm is None else None))

    by_weight, by_norm, onwards = dict[str, list[Site]](), dict[str, list[Site]](), set[int]()
    for site in sites_of(graph):
        if site.module in behind_norm:
            onwards.update(site.units[site.units >= 0].tolist())
        if site.module in behind_norm and site.norm in norms:
            by_norm.setdefault(site.norm, []).append(site)
        else:
            by_weight.setdefault(site.weight, []).append(site)
    for weight, sites in by_weight.items():
        modules = dict.fromkeys(site.module for site in sites)
        add(modules, dict.fromkeys([weight, *(site.bias for site in sites if site.bias)]), sites)
    for module, norm in norms.items():
        if not onwards.isdisjoint(norm.units.tolist()):
            add([module], norm.names, by_norm.get(module, []), norm)
    return found


@dataclass(frozen=True, slots=True)
class _Norm:
    """A batch or group norm: the names of gamma and beta, and the units of its channels."""

    names: tuple[str, ...]
    units: NDArray[np.int64]


def _norms(graph: Graph, walks: Sequence[Walk]) -> dict[str, _Norm]:
    """By module, those whose parameters are used as they are."""
    infos = {name: t for t in graph.tensors for name in (t.name, *t.aliases)}
    found: dict[str, _Norm] = {}
    for walk in walks:
        for node in walk.nodes:
            if node.op in (*BATCH_NORMS, "native_group_norm"):
                names = tuple(walk.parameter(ref) for ref in node.args[1:3] if ref is not None)
                if names and all(names):
                    found.setdefault(node.module, _Norm(names, units_along(graph, infos[names[0]], 0)))
    return found


def _read_by_none_else(walks: Sequence[Walk], names: Collection[str], modules: Collection[str]) -> bool:
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


def removable(graph: Graph, *, after_norm: bool) -> tuple[list[Multiplier], NDArray[np.bool_]]:
    """Multipliers, and bool per unit: with factors of zero it is silent, and what its norms make of that can be carried
    over into the layers that read it.

    Where it could not be carried over, the factors are behind the norms, as they are everywhere with `after_norm`.
    """
    sites, groups = sites_of(graph), graph.solution.group_of
    behind = {site.module for site in sites} if after_norm else set[str]()
    while True:
        layers = multipliers(graph, behind)
        whole = ~np.isin(groups, groups[~covered(graph, layers)])
        factors = {id(p) for layer in layers for p in layer.parameters}
        zero = {name for name, tensor in state_of(graph.model).items() if id(tensor) in factors}
        first = np.append(True, groups[1:] != groups[:-1])  # of every group one stays
        refused = np.isin(groups, groups[list(unfoldable(graph, whole & ~first, zero))])
        more = {site.module for site in sites if refused[site.units[site.units >= 0]].any()} - behind
        if not more:
            eligible = whole & ~refused
            return [layer for layer in layers if eligible[layer.units[layer.units >= 0]].any()], eligible
        behind |= more


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
