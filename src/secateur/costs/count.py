"""What a network costs, counted from its graph: parameters, MACs, and the two FLOPs conventions of the literature.

    macs          multiply-accumulates of convolutions and matrix products, without bias, once each
    paper_flops   CAP's table: MACs, + 1 per output element where a convolution has a bias, 2 per element of a batch
                  norm, 1 per output element of a ReLU module, 1 per input element of a pooling module; the rest is free
    yolo_flops    YOLOv5's table: 2 (MACs + outputs), batch norms fused into their convolutions, which so have a bias

Every count is a constant times the numbers of channels that are left, so that the cost of any plan follows without
cutting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules import pooling

from secateur.graph import FIXED, Flow, Graph, trace
from secateur.graph.capture import Node, Ref, tensors_in
from secateur.graph.operators import BATCH_NORMS, CONVOLUTIONS

COLUMNS = ("params", "macs", "paper_flops", "yolo_flops")

_POOLS = tuple(getattr(pooling, name) for name in pooling.__all__ if "Unpool" not in name)
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "dot")


@dataclass(frozen=True)
class Cost:
    """Counts for the example inputs as given (their batch included).

    Attributes:
        params: trainable parameters, auxiliary heads included.
        macs, paper_flops, yolo_flops: see the module's docstring.
        modules: module name -> the same four numbers.

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
        >>> cost = secateur.cost(net, torch.zeros(1, 3, 8, 8))
        >>> cost
        Cost(params=242, macs=8352, paper_flops=9000, yolo_flops=17424)
        >>> cost.modules["2"]["params"], cost.modules["1"]["paper_flops"]
        (18, 288)
    """

    params: int
    macs: int
    paper_flops: int
    yolo_flops: int
    modules: Mapping[str, Mapping[str, int]] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COLUMNS}


@dataclass(frozen=True, slots=True)
class _Term:
    """constant * product of the kept counts of some dimensions, in one column, for one module."""

    column: str
    module: str
    constant: int
    dims: tuple[NDArray[np.int64], ...]  # unit of every index, FIXED where none


class CostModel:
    """The cost of a traced network and of everything that can be cut from it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.terms = [*_parameters(graph), *_operators(graph)]

    def __call__(self, removed: NDArray[np.bool_] | None = None) -> Cost:
        """The cost without the given units (bool per unit)."""
        totals = dict.fromkeys(COLUMNS, 0)
        modules: dict[str, dict[str, int]] = {}
        for term in self.terms:
            value = self._value(term, removed)
            totals[term.column] += value
            row = modules.setdefault(term.module, dict.fromkeys(COLUMNS, 0))
            row[term.column] += value
        return Cost(**totals, modules=modules)

    def total(self, column: str, removed: NDArray[np.bool_] | None = None) -> int:
        """One column's total."""
        return sum(self._value(term, removed) for term in self.terms if term.column == column)

    def saved(self, column: str) -> NDArray[np.int64]:
        """What one column loses when a single unit leaves the whole network, (units,)."""
        count = self.graph.units
        out = np.zeros(count, dtype=np.int64)
        for term in self.terms:
            if term.column == column:
                without = np.full(count, term.constant, dtype=np.int64)
                for units in term.dims:
                    without *= len(units) - np.bincount(units[units >= 0], minlength=count)
                out += self._value(term, None) - without
        return out

    @staticmethod
    def _value(term: _Term, removed: NDArray[np.bool_] | None) -> int:
        value = term.constant
        for units in term.dims:
            lost = 0 if removed is None else int((removed[units] & (units >= 0)).sum())
            value *= len(units) - lost
        return value


def cost(model: nn.Module, example_inputs: Any) -> Cost:
    """Parameters, MACs and FLOPs of a network on the example inputs, per module and in total.

    Raises:
        ModelError: the network does not run on the example inputs.

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Conv2d(3, 8, 3, padding=1)
        >>> secateur.cost(net, torch.zeros(1, 3, 10, 10)).macs == 10 * 10 * 3 * 8 * 3 * 3
        True
        >>> secateur.cost(net, torch.zeros(2, 3, 10, 10)).macs  # the whole batch
        43200
    """
    return CostModel(trace(model, example_inputs))()


def units_along(graph: Graph, flow: Flow, ref: Ref, dim: int) -> NDArray[np.int64]:
    """The unit of every index of a tensor's dimension."""
    tracks = flow.get(ref)[dim]
    size = flow.shape(ref)[dim]
    units = np.full(size, FIXED, dtype=np.int64)
    for track in tracks[:1]:
        units = np.where(track.atoms >= 0, graph.solution.of_atom[track.atoms], FIXED)
    return units


def _parameters(graph: Graph) -> Iterator[_Term]:
    trainable = {name for name, p in graph.model.named_parameters() if p.requires_grad}
    for info in graph.tensors:
        if info.parameter and info.name in trainable:
            dims = [
                graph.solution.of_atom[first : first + n] if first >= 0 else np.full(n, FIXED)
                for first, n in zip(info.first, info.shape, strict=True)
            ]
            yield _Term("params", info.name.rpartition(".")[0], 1, tuple(dims))


def _operators(graph: Graph) -> Iterator[_Term]:
    """The eval-mode run; of the train-mode run, what has parameters of its own (auxiliary heads that only training
    uses).
    """
    modules = dict(graph.model.named_modules())
    seen: set[str] = set()
    doubled = any(t.dim() >= 2 and len(t) == 1 for t in tensors_in(graph.example_inputs))
    for flow in graph.flows:
        names = {value: name for name, value in flow.capture.names.items()}
        training = flow.capture.training
        # What a batch norm reads: it will be fused into the convolution that makes it.
        normed = {node.args[0] for node in flow.capture.nodes if node.op in BATCH_NORMS}
        for node in flow.capture.nodes:
            owned = [names[ref.value] for ref in node.inputs() if ref.value in names]
            if training and (not owned or any(name in seen for name in owned)):
                continue
            if not training:
                seen.update(owned)
            for column, constant, dims in _count(graph, flow, node, modules.get(node.module), normed):
                if training and doubled:
                    constant, dims = _halved(constant, dims)
                yield _Term(column, node.module, constant, dims)


def _halved(constant: int, dims: tuple[NDArray[np.int64], ...]) -> tuple[int, tuple[NDArray[np.int64], ...]]:
    """Half of a term: in train mode a batch of one is run as two."""
    if constant % 2 == 0:
        return constant // 2, dims
    for i, units in enumerate(dims):  # the batch is the first that halves, and its indices are no units
        if len(units) % 2 == 0 and (units < 0).all():
            return constant, (*dims[:i], units[: len(units) // 2], *dims[i + 1 :])
    return constant, dims


def _count(
    graph: Graph, flow: Flow, node: Node, module: nn.Module | None, normed: set[Ref]
) -> Iterator[tuple[str, int, tuple[NDArray[np.int64], ...]]]:
    out = node.outputs[0] if node.outputs else None
    if out is None:
        return
    shape = flow.shape(out)
    if node.op in CONVOLUTIONS:
        x, weight, bias = node.args[:3]
        transposed = bool(node.args[6])
        kernel = flow.shape(weight)
        channels = units_along(graph, flow, out, 1)
        into = units_along(graph, flow, weight, 1)
        maps = shape[0] * math.prod(shape[2:])
        if transposed:  # every input element meets the whole kernel
            place = flow.shape(x)
            sizes = place[0] * math.prod(place[2:]) * math.prod(kernel[2:])
            dims: tuple[NDArray[np.int64], ...] = (units_along(graph, flow, weight, 0), into)
        else:
            sizes, dims = maps * math.prod(kernel[2:]), (channels, into)
        yield "macs", sizes, dims
        yield "paper_flops", sizes, dims
        yield "yolo_flops", 2 * sizes, dims
        if bias is not None:
            yield "paper_flops", maps, (channels,)
        if bias is not None or out in normed:
            yield "yolo_flops", 2 * maps, (channels,)
    elif node.op in _PRODUCTS:
        a, b = node.args[1:3] if node.op in ("addmm", "baddbmm") else node.args[:2]
        left, right = flow.shape(a), flow.shape(b)
        dims = tuple(units_along(graph, flow, a, d) for d in range(len(left)))
        dims += (units_along(graph, flow, b, len(right) - 1),) if len(right) > 1 else ()
        for column, times in (("macs", 1), ("paper_flops", 1), ("yolo_flops", 2)):
            yield column, times, dims
        if node.op == "addmm":
            every = tuple(units_along(graph, flow, out, d) for d in range(len(shape)))
            yield "paper_flops", 1, every
            yield "yolo_flops", 2, every
    elif node.op in BATCH_NORMS:
        yield "paper_flops", 2, tuple(units_along(graph, flow, out, d) for d in range(len(shape)))
    elif isinstance(module, nn.ReLU) and node.op in ("relu", "relu_"):
        yield "paper_flops", 1, tuple(units_along(graph, flow, out, d) for d in range(len(shape)))
    elif (isinstance(module, _POOLS) and "pool" in node.op) or (
        isinstance(module, pooling._AdaptiveAvgPoolNd) and node.op == "mean"
    ):
        x = node.args[0]
        yield "paper_flops", 1, tuple(units_along(graph, flow, x, d) for d in range(len(flow.shape(x))))
