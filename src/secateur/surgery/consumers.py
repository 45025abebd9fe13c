"""Who reads the channels that a plan removes, and where a constant that they contributed can be kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.errors import PlanError
from secateur.graph import Flow, Graph, state_of
from secateur.graph.capture import Node, Ref
from secateur.graph.operators import BATCH_NORMS, CONVOLUTIONS
from secateur.plan import Plan, plan_of

PADS = ("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
        "replication_pad2d", "replication_pad3d")  # fmt: skip
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv")
# Forwards that are known to use `bias` if there is one.
_FORWARDS = {cls.forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
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


class Walk:
    """Who makes and who reads every value of a recorded run."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.nodes = flow.capture.nodes
        self.maker: dict[int, Node] = {}
        self.readers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for out in node.outputs:
                if out is not None:
                    self.maker.setdefault(out.value, node)
            for ref in node.inputs() if node.op != "detach" else ():  # autograd's own copies lead nowhere
                self.readers.setdefault(ref.value, []).append(node)
        self.name_of = {value: name for name, value in reversed(flow.capture.names.items())}

    def parameter(self, ref: Any) -> str:
        """The name of the parameter or buffer that a value is, as it is or transposed; "" if it is none."""
        if not isinstance(ref, Ref):
            return ""
        if ref.value not in self.name_of:
            maker = self.maker.get(ref.value)
            if maker is None or maker.op != "t":
                return ""
            ref = maker.args[0]
        return self.name_of.get(ref.value, "")


def gone_of(graph: Graph, plan: Plan) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """bool per unit and bool per atom: removed by the plan.

    Raises:
        PlanError: the plan was not made for this graph.
    """
    by_name = {t.name: t for t in graph.tensors}
    units = np.zeros(graph.units, dtype=bool)
    for name, dims in plan.removed.items():
        if name not in by_name or plan.shapes.get(name) != by_name[name].shape:
            raise PlanError(
                f"the plan removes slices of {name}, of which the traced {type(graph.model).__name__} has none of that "
                "shape; make the plan from the same graph: secateur.select(graph, ...)"
            )
        for dim, indices in dims.items():
            units[graph.solution.of_atom[by_name[name].first[dim] + np.asarray(indices)]] = True
    if plan_of(graph, units).removed != plan.removed:
        raise PlanError(
            "the plan removes parts of units of this graph; make the plan from the same graph: secateur.select(...)"
        )
    return units, graph.removed_atoms(units)


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


def channels_gone(flow: Flow, ref: Ref, dim: int, gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool per index of a value's dimension: it belongs to a removed atom."""
    marks = np.zeros(flow.shape(ref)[dim], dtype=bool)
    for track in flow.get(ref)[dim]:
        live = track.atoms >= 0
        marks[live] |= gone[track.atoms[live]]
    return marks


def operands(node: Node) -> tuple[Ref, Ref]:
    """What a convolution or a matrix product reads: the data and the weight."""
    first, second = node.args[1:3] if node.op in ("addmm", "baddbmm", "addmv") else node.args[:2]
    return first, second


def is_product(node: Node) -> bool:
    return node.op in CONVOLUTIONS or node.op in _PRODUCTS


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
    if type(module).forward in _FORWARDS:
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


# -- where a constant can be kept -------------------------------------------------------------------------------------


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
    if type(module).forward not in _FORWARDS:
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
