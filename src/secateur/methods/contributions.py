"""What every channel contributes to a loss, to first order: the sum over batch and space of its activation a times the
gradient of the loss there, sum a * dL/da. What the loss would change by without the channel is about minus that.

It can be read without keeping an activation by hand:

- In a pass of its own: the output of a layer is multiplied by one number per channel, all ones; the gradient of the
  loss with respect to these ones is sum a * dL/da, and no gradient of any weight is computed (`tapped`).
- In anybody's training, from the gradients that are there: a convolution's output is linear in its weight w and bias b,
  so that sum a_j * dL/da_j = sum over the filter (w_j * dL/dw_j) + b_j * dL/db_j; likewise with gamma and beta of a
  norm, whose output is linear in these (`from_gradients`). Gradients of parameters are averaged over processes and
  unscaled already.

A norm that takes its statistics from the batch or the image itself undoes any scaling of its input, so that the sum in
front of it is zero but for rounding and the norm's eps: behind it, it has to be read as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateur.errors import MethodError
from secateur.graph import Graph, state_of
from secateur.graph.capture import Ref
from secateur.methods.material import evaluating
from secateur.methods.sites import sites_of


@dataclass(frozen=True, slots=True)
class Reading:
    """A module whose output's channels are read.

    Attributes:
        module: its name.
        units: int64 (C), the unit of every channel, -1 where there is none.
        spatial: how many dimensions lie behind that of the channels.
        positions: height times width in the traced run.
    """

    module: str
    units: NDArray[np.int64]
    spatial: int
    positions: int


def readings(graph: Graph) -> list[Reading]:
    """Every convolution and linear layer, and every norm that takes its statistics from its input in eval mode, too.

    Raises:
        MethodError: there is none.
    """
    state = state_of(graph.model)
    found = [Reading(s.module, s.units, state[s.weight].dim() - 2, s.positions) for s in sites_of(graph)]
    if not found:
        raise MethodError(
            f"{type(graph.model).__name__} has no convolution or linear layer whose output a module returns; "
            "use a method that scores weights, such as l1"
        )
    return found + list(own_statistics(graph))


def own_statistics(graph: Graph) -> Iterator[Reading]:
    """Instance norms, and batch norms without running statistics.

    Raises:
        MethodError: one of them normalises the channels of several layers.
    """
    for name, module in graph.model.named_modules():
        if not isinstance(module, _NormBase) or module.running_mean is not None:
            continue
        flow = graph.flows[0]
        outputs = [Ref(values[0]) for called, values in flow.capture.calls if called == name and values]
        units = [_units_of_channels(graph, ref) for ref in outputs]
        if any(len(other) != len(units[0]) or (other != units[0]).any() for other in units):
            raise MethodError(
                f"{name} normalises the outputs of several layers by their own statistics; activation * gradient can't "
                "be told for each of them: give every layer a norm of its own, or use another method"
            )
        if units:
            shape = flow.shape(outputs[0])
            yield Reading(name, units[0], len(shape) - 2, prod(shape[2:]))


def _units_of_channels(graph: Graph, ref: Ref) -> NDArray[np.int64]:
    """int64 (C): the unit of every channel of a value, -1 where there is none."""
    tracks = graph.flows[0].get(ref)[1]
    if len(tracks) != 1:
        return np.full(graph.flows[0].shape(ref)[1], -1, dtype=np.int64)
    atoms = tracks[0].atoms
    return np.where(atoms >= 0, graph.solution.of_atom[atoms], -1)


@torch.no_grad()
def from_gradients(
    weight: nn.Parameter, bias: nn.Parameter | None, rows: Callable[[Tensor], Tensor] | None = None
) -> Tensor | None:
    """sum a * dL/da of every channel of a layer from its parameters' gradients, (C), in float32 at least.

    Args:
        weight, bias: of a convolution or linear layer; or of a norm.
        rows: lays the layer's weight out as (C, elements).

    Returns:
        None where the weight has no gradient: it is frozen, or took no part.
    """
    if weight.grad is None:
        return None
    dtype = torch.promote_types(weight.dtype, torch.float32)
    products = weight.to(dtype) * weight.grad
    total = products if rows is None else rows(products).sum(1)
    return total if bias is None or bias.grad is None else total + bias.to(dtype) * bias.grad


class Taps:
    """One number per channel of every reading, all ones, that its module's output is multiplied by."""

    def __init__(self, at: Sequence[Reading]) -> None:
        self._shapes = {reading.module: [len(reading.units), *[1] * reading.spatial] for reading in at}
        self._ones: dict[str, Tensor] = {}
        self._values: dict[str, int] = {}  # of one channel: batch times space, over all calls of the module

    def multiply(self, name: str, output: Tensor) -> Tensor:
        """The module's forward hook."""
        shape = self._shapes[name]
        if name not in self._ones:
            self._ones[name] = torch.ones(shape, dtype=output.dtype, device=output.device, requires_grad=True)
        self._values[name] = self._values.get(name, 0) + output.numel() // shape[0]
        return output * self._ones[name]

    def means(self, of: Tensor, gradient: Tensor | None = None, again: bool = False) -> dict[str, Tensor]:
        """The mean over batch and space of a * dL/da, (C) for every module that took part since `forget`.

        Args:
            of: the loss; or a tensor on the way to it, with the loss's `gradient` there.
            again: there will be another backward pass over the same forward pass.
        """
        found = torch.autograd.grad(of, list(self._ones.values()), gradient, retain_graph=again, allow_unused=True)
        return {
            name: (torch.zeros_like(ones) if sums is None else sums).flatten() / self._values[name]
            for (name, ones), sums in zip(self._ones.items(), found, strict=True)
        }

    def forget(self) -> None:
        """Before another forward pass."""
        self._ones.clear()
        self._values.clear()


@contextmanager
def tapped(model: nn.Module, at: Sequence[Reading]) -> Iterator[Taps]:
    """The network in eval mode, with taps and without gradients for its parameters; afterwards as it was."""
    taps, hooks = Taps(at), []

    def tap(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda module, args, output: taps.multiply(name, output)

    with evaluating(model), only_these_learn(model, ()):
        try:
            for reading in at:
                hooks.append(model.get_submodule(reading.module).register_forward_hook(tap(reading.module)))
            yield taps
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def only_these_learn(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients for these parameters, frozen ones as well, and for no others; afterwards as it was."""
    wanted = {id(parameter) for parameter in parameters}
    changed = [p for p in model.parameters() if p.requires_grad != (id(p) in wanted)]
    try:
        for parameter in changed:
            parameter.requires_grad_(not parameter.requires_grad)
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(not parameter.requires_grad)
