"""Where a constant that removed channels contributed can be kept: in a bias, or in a batch norm's running mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.graph import Graph, state_of
from secateur.graph.capture import Node, Ref
from secateur.graph.operators import BATCH_NORMS
from secateur.surgery.consumers import FORWARDS, Consumer
from secateur.surgery.walk import Walk


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a constant added to a consumer's output can be kept.

    Attributes:
        bias: it goes into the consumer's bias, which is made if there is none.
        norms: names of the batch norms from whose running means it is subtracted instead.
        problem: why there is no place for it.
        cancelled: none is needed: the batch norm behind always subtracts the batch's own mean.
    """

    bias: bool = False
    norms: tuple[str, ...] = ()
    problem: str = ""
    cancelled: str = ""

    @property
    def why_not(self) -> str:
        """Why nothing is changed for a constant; "" if something is."""
        return self.problem or self.cancelled


def seat_of(graph: Graph, consumer: Consumer) -> Seat:
    """Where a constant added to a consumer's output can be kept.

    With a bias of its own, there. Without one, a batch norm that alone reads the output takes it: in eval mode
    (y + d - mean) = (y - (mean - d)), and in train mode the batch's mean cancels any constant, while `mean - d` is what
    the running mean tends to. So nothing is added to the network. Elsewhere a bias is made.
    """
    walk = Walk(graph.flows[0])
    module, names = consumer.module, walk.flow.capture.names
    prefix = f"{consumer.name}." if consumer.name else ""
    returned = {values[0] for name, values in walk.flow.capture.calls if name == consumer.name and values}
    readers = [node for value in returned for node in walk.readers.get(value, [])]
    norms = [node for node in readers if node.op in BATCH_NORMS and node.args[0].value in returned]
    alone = bool(norms) and len(norms) == len(readers) and not returned & set(walk.flow.capture.outputs)
    if alone and not any(isinstance(node.args[3], Ref) for node in norms):
        return Seat(cancelled=f"{norms[0].module} subtracts the batch's own mean in every mode")
    if module.bias is not None:
        value = names.get(f"{prefix}bias")
        others = [node for node in walk.readers.get(value, []) if node.module != consumer.name] if value else []
        if value is None or others:
            used = f"is used by {others[0].module or others[0].place} as well" if others else "is computed"
            return Seat(problem=f"its bias {used}")
        return Seat(bias=True)
    if alone and (found := _running_means(graph, walk, norms, returned)):
        return Seat(norms=found)
    if type(module).forward not in FORWARDS:
        return Seat(problem=f"it has no bias, and {type(module).__name__}, with a forward of its own, may not use one")
    return Seat(bias=True)


def _running_means(graph: Graph, walk: Walk, norms: Iterable[Node], returned: set[int]) -> tuple[str, ...]:
    """The modules whose running means those are, if they normalise nothing else."""
    modules, names = dict(graph.model.named_modules()), walk.flow.capture.names
    found = []
    for node in norms:
        mean = names.get(f"{node.module}.running_mean")
        mine = isinstance(node.args[3], Ref) and node.args[3].value == mean
        if not mine or not isinstance(modules.get(node.module), _BatchNorm):
            return ()
        if any(reader.args[0].value not in returned for reader in walk.readers[node.args[3].value]):
            return ()
        found.append(node.module)
    return tuple(dict.fromkeys(found))


def carried_constant(
    small: nn.Module, consumer: Consumer, seat: Seat, constant: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the cut network that take a constant, and their values in float64.

    Args:
        small: the cut network; a bias is made in it where the seat asks for one.
        constant: float64 (kept outputs,), what is to be added to the consumer's output.
    """
    state, prefix = state_of(small), f"{consumer.name}." if consumer.name else ""
    if seat.bias:
        module: Any = small.get_submodule(consumer.name)
        if module.bias is None:
            module.bias = nn.Parameter(torch.zeros_like(constant, dtype=module.weight.dtype).to(module.weight.device))
            state[f"{prefix}bias"] = module.bias
        yield f"{prefix}bias", state[f"{prefix}bias"].detach().double() + constant.to(module.weight.device)
    for norm in seat.norms:
        mean = state[f"{norm}.running_mean"]
        yield f"{norm}.running_mean", mean.detach().double() - constant.to(mean.device)


def write(small: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put values into a network's tensors, in their own types."""
    state = state_of(small)
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)
