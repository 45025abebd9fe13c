"""Who reads the channels that a plan removes, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.graph import Flow, Graph
from secateur.graph.capture import Node
from secateur.graph.operators import CONVOLUTIONS
from secateur.plan import Plan
from secateur.surgery.walk import PADS, Walk, channels_gone, is_product, operands

# Forwards that are known to use `bias` if there is one.
FORWARDS = {cls.forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
                                    nn.ConvTranspose3d, nn.Linear)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of one consumer of removed channels.

    Attributes:
        consumer: the module's name, or where the operator is that no module stands for.
        channels: its input channels (features) that went.
        into: names of the tensors, in the cut network, that carry what they did; none if it was left alone.
        note: why it was left alone, or what is not exact.
    """

    consumer: str
    channels: int
    into: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        what = f"carried into {', '.join(self.into)}" if self.into else "left alone"
        return f"{self.consumer} (without {self.channels} inputs): {what}" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Compensated:
    """A cut network whose remaining weights carry what the removed channels did.

    Attributes:
        model: the network, a plain module of the original's class in the plan's shapes.
        plan: what was removed.
        consumers: every convolution and linear layer that lost inputs that contributed something.
        refused: group -> (how many of its planned units were not removed, why).

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
        >>> data = [torch.randn(4, 3, 8, 8) for _ in range(2)]
        >>> graph = secateur.trace(net, data[0])
        >>> plan = secateur.select(graph, secateur.score(graph, "l1"), pruning_ratio=0.5)
        >>> made = secateur.compensate(net, graph, plan, data, mode="least_squares")
        >>> made.model[0].out_channels, made.plan == plan
        (4, True)
        >>> [(carried.consumer, carried.channels, carried.into) for carried in made.consumers]
        [('2', 4, ('2.weight', '2.bias'))]
    """

    model: nn.Module
    plan: Plan
    consumers: tuple[Carried, ...]
    refused: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def left_alone(self) -> tuple[Carried, ...]:
        """The consumers in which nothing was changed."""
        return tuple(c for c in self.consumers if not c.into)

    def __str__(self) -> str:
        kept = [f"{group} ({count} units) not removed: {why}" for group, (count, why) in self.refused.items()]
        return "\n".join([*map(str, self.consumers), *kept]) or "nothing to carry over"


@dataclass(slots=True)
class Consumer:
    """A convolution or linear layer that loses inputs.

    Attributes:
        name: its module's name, or where the operator is.
        module: the module in the network that was passed in; None if there is none.
        tensor: its weight's name, as plans call it.
        removed: bool per input channel of one group.
        problem: why nothing can be carried into it; "" if it can.
        shared: another module that uses the same weight; "" if there is none.
        nodes: numbers of its operators in the eval run.
    """

    name: str
    module: Any
    tensor: str
    removed: NDArray[np.bool_]
    problem: str = ""
    shared: str = ""
    nodes: list[int] = field(default_factory=list)

    @property
    def groups(self) -> int:
        return int(getattr(self.module, "groups", 1))

    @property
    def transposed(self) -> bool:
        return isinstance(self.module, _ConvTransposeNd)

    @property
    def channels(self) -> int:
        """How many inputs it loses."""
        return int(self.removed.sum()) * self.groups

    @property
    def outputs_of_a_tap(self) -> int:
        """Of so many neighbouring outputs each kernel tap reaches one: more than one where a transposed convolution
        has a stride."""
        return int(np.prod(self.module.stride)) if self.transposed else 1

    def kernel(self, weight: Tensor) -> Tensor:
        """A weight as float64 (groups, outputs / groups, inputs / groups, taps), on the CPU."""
        weight = weight.detach().to("cpu", torch.float64)
        if self.transposed:
            return weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(3).contiguous()
        return weight.reshape(self.groups, -1, *weight.shape[1:]).reshape(
            self.groups, weight.shape[0] // self.groups, weight.shape[1], -1
        )

    def weight(self, kernel: Tensor) -> Tensor:
        """The inverse of `kernel`."""
        size = self.module.weight.shape[2:]
        if self.transposed:
            return kernel.transpose(1, 2).reshape(-1, kernel.shape[1], *size)
        return kernel.reshape(-1, kernel.shape[2], *size)

    def kept_outputs(self, plan: Plan) -> Tensor:
        """bool (groups, outputs / groups): the plan leaves them."""
        dims = plan.removed.get(self.tensor, {})
        kernel = self.module.weight
        kept = torch.ones(self.groups, kernel.shape[1] if self.transposed else kernel.shape[0] // self.groups).bool()
        gone = list(dims.get(1 if self.transposed else 0, ()))
        if self.transposed:
            kept[:, gone] = False
        else:
            kept.view(-1)[gone] = False
        return kept


def consumers_of(graph: Graph, model: nn.Module, gone: NDArray[np.bool_]) -> list[Consumer]:
    """Every convolution and matrix product that sums over removed channels, in the order of the network.

    A depthwise convolution is none: its outputs go with its inputs. `gone` is bool per atom.
    """
    modules = dict(model.named_modules())
    found: dict[str, Consumer] = {}
    for flow in graph.flows:
        walk = Walk(flow)
        for at, node in enumerate(walk.nodes):
            removed = _summed_over(flow, node, gone)
            if removed is None or not removed.any():
                continue
            module = _module_of(node, modules)
            name = node.module if module is not None else str(node.place)
            consumer = found.get(name)
            if consumer is None:
                consumer = found[name] = Consumer(name, module, walk.parameter(operands(node)[1]), removed)
                consumer.problem = _problem(walk, node, module)
            if flow is graph.flows[0]:
                consumer.nodes.append(at)
                consumer.shared = consumer.shared or _shared(walk, node)
    for consumer in found.values():
        if not consumer.nodes and not consumer.problem:
            consumer.problem = "it does not run in eval mode"
    return list(found.values())


def _summed_over(flow: Flow, node: Node, gone: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    if not is_product(node):
        return None
    data, weight = operands(node)
    if node.op not in CONVOLUTIONS:
        rank = len(flow.shape(weight))
        return channels_gone(flow, data, -1, gone) | channels_gone(flow, weight, max(0, rank - 2), gone)
    groups = int(node.args[8])
    if flow.shape(data)[1] == groups:
        return None
    if not node.args[6]:
        return channels_gone(flow, weight, 1, gone)
    return channels_gone(flow, weight, 0, gone).reshape(groups, -1)[0]  # the i-th of every group go together


def _module_of(node: Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The convolution or linear layer that the operator is the work of."""
    module = modules.get(node.module)
    kind = _ConvNd if node.op in CONVOLUTIONS else nn.Linear
    return module if isinstance(module, kind) else None


def _problem(walk: Walk, node: Node, module: Any) -> str:
    """Why nothing can be carried into the weights behind an operator; "" if it can."""
    if module is None:
        return f"{node.op} is called as a function, and no convolution or linear module stands for it"
    names, prefix = walk.flow.capture.names, f"{node.module}." if node.module else ""
    data, weight = operands(node)
    mine = walk.parameter(weight)
    if not mine or names.get(mine) != names.get(f"{prefix}weight"):
        return "its weight is computed from other tensors"
    if type(module).forward in FORWARDS:
        return ""
    maker = walk.maker.get(data.value)
    while maker is not None and maker.module == node.module and maker.op in PADS:
        maker = walk.maker.get(maker.args[0].value)
    bias = node.args[2] if node.op in CONVOLUTIONS else None
    uses_bias = bias is None if module.bias is None else walk.parameter(bias) != ""
    if node.op in CONVOLUTIONS and uses_bias and (maker is None or maker.module != node.module):
        return ""
    return f"{type(module).__name__} has a forward of its own that does more than pad and convolve"


def _shared(walk: Walk, node: Node) -> str:
    """Another place that reads the weight of an operator: what is folded into it would show there as well."""
    name = walk.parameter(operands(node)[1])
    value = walk.flow.capture.names.get(name)
    readers = walk.readers.get(value, []) if value is not None else []
    return next((other.module or str(other.place) for other in readers if other.module != node.module), "")
