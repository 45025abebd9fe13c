"""The latency of a network and of everything that can be cut from it: predicted from measured times, then measured.

Every convolution and matrix product of the traced network is timed alone at a small grid of kept channels, and
interpolated between. All the rest scales with the number of elements, as one element-by-element operation was measured
to do; norms, pooling, resizing and the like, which take longer than that, are timed once at full size. The sum is
scaled to the measured latency of the whole network. This ranks and proposes; whether a budget is met is decided by
cutting the network and measuring it against the original.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from secateur.costs.count import units_along
from secateur.costs.latency_table import LatencyTable
from secateur.costs.operator import Operator, Shaped
from secateur.costs.settle import fewest, settle
from secateur.costs.stopwatch import device_of, machine
from secateur.errors import BudgetError, ModelError, SecateurError
from secateur.graph import Flow, Graph, tensors_in
from secateur.graph.capture import Node, Ref, first_line
from secateur.graph.operators import BATCH_NORMS, CONVOLUTIONS

log = logging.getLogger("secateur")

_SHARES = (1 / 8, 1 / 2, 1)  # of the channels, at which an operator is timed
_ALIGNED = 8  # kernels are made for multiples of this
_SMALLEST, _RATIO = 4**4, 4  # numbers of elements at which the rest is timed: 256, 1024, 4096 ...
_HEAVY = (
    *BATCH_NORMS, "native_group_norm", "native_layer_norm", "_softmax", "sigmoid", "tanh", "silu", "gelu", "hardswish",
    "max_pool", "max_unpool", "avg_pool", "_adaptive_avg_pool", "adaptive_max_pool", "upsample_",
)  # fmt: skip

Units = NDArray[np.int64]
_SHARED = LatencyTable()


def table_of(table: LatencyTable | Path | str | None) -> LatencyTable:
    """A table, the table in a file, or that of this process."""
    if table is None:
        return _SHARED
    return table if isinstance(table, LatencyTable) else LatencyTable(table)


class Grid:
    """Values at the points of a grid, multilinear between them and linear beyond.

    Along an axis with a single point the value is proportional to the coordinate.

    Args:
        axes: the coordinates of the points, each rising.
        values: at every point, above 0; shape: the axes' lengths.
    """

    def __init__(self, axes: Sequence[Sequence[int]], values: ArrayLike) -> None:
        self.axes = [np.asarray(axis, dtype=np.float64) for axis in axes]
        self.values = np.asarray(values, dtype=np.float64)

    def __call__(self, *at: ArrayLike) -> NDArray[np.float64]:
        """The value at coordinates (arrays broadcast), never below a tenth of the smallest at a point."""
        coordinates = np.broadcast_arrays(*(np.asarray(a, dtype=np.float64) for a in at))
        corners: list[tuple[NDArray[np.float64], tuple[Units, ...]]] = [(np.ones(coordinates[0].shape), ())]
        for axis, x in zip(self.axes, coordinates, strict=True):
            if len(axis) == 1:
                corners = [(w * x / axis[0], (*i, np.zeros(x.shape, dtype=np.int64))) for w, i in corners]
                continue
            left = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2)
            share = (x - axis[left]) / (axis[left + 1] - axis[left])
            corners = [
                (w * part, (*i, left + step))
                for w, i in corners
                for step, part in ((0, 1 - share), (1, share))
            ]  # fmt: skip
        total = sum((w * self.values[i] for w, i in corners), np.zeros(coordinates[0].shape))
        return np.maximum(total, self.values.min() / 10)


@dataclass(frozen=True)
class _Call:
    """One call in the network, and how it is timed.

    Attributes:
        sides: for every coordinate of the grid, the dimensions whose sizes make it (their product): unit of every
            index, FIXED where none.
        points: the coordinates of the grid.
        at: the operator at a point.
        whole: an operator whose time at full size is known; the operators at the points then only say in what
            proportion the time goes down.
    """

    sides: tuple[tuple[Units, ...], ...]
    points: tuple[tuple[int, ...], ...]
    at: Callable[..., Operator]
    whole: Operator | None = None

    def grid(self, times: Mapping[Operator, float]) -> Grid:
        """Its time by the sizes of its sides; noise must not make fewer channels take longer."""
        values = np.array([times[operator] for operator in self.operators]).reshape([len(axis) for axis in self.points])
        for axis in range(values.ndim):
            values = np.maximum.accumulate(values, axis=axis)
        grid = Grid(self.points, values)
        if self.whole is None:
            return grid
        return Grid(self.points, values * times[self.whole] / grid(*(math.prod(map(len, side)) for side in self.sides)))

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """The operator at every point, the last coordinate running fastest."""
        return tuple(self.at(*point) for point in itertools.product(*self.points))


class LatencyModel:
    """The latency in milliseconds on the example inputs, of a traced network and of what can be cut from it.

    In eval mode, with the example inputs as they are (batch, memory format), on the network's device.

    Args:
        graph: the traced network.
        table: measured times of operators.

    Raises:
        ModelError: the network does not run on the example inputs.
    """

    def __init__(self, graph: Graph, table: LatencyTable) -> None:
        self.graph, self.stopwatch = graph, table.stopwatch
        device = device_of(graph.model)
        self.machine = machine(device)
        floats = (t for t in (*graph.model.parameters(), *graph.model.buffers()) if t.is_floating_point())
        dtype = next((t.dtype for t in floats), torch.float32)
        calls = list(_calls(graph))
        wanted = (operator for call in calls for operator in (*call.operators, call.whole) if operator is not None)
        times = table.times(wanted, device, dtype)
        alike: dict[Any, list[_Call]] = {}
        for call in calls:
            alike.setdefault((call.operators, call.whole), []).append(call)
        self.terms = [(same[0].grid(times), [call.sides for call in same]) for same in alike.values()]
        self.scale = 1.0
        try:
            self.whole = self.stopwatch.network(graph.model, graph.example_inputs)
        except Exception as error:  # whatever somebody's forward raises
            raise ModelError(
                f"{type(graph.model).__name__} on {device} can't be run to measure its latency "
                f"({type(error).__name__}: {first_line(error)}); trace it with example inputs of its device and type"
            ) from error
        self.scale = self.whole / self.total()

    def total(self, column: str = "latency", removed: NDArray[np.bool_] | None = None) -> float:
        """The predicted latency without the given units (bool per unit); there is one column."""
        gone = np.zeros(self.graph.units, dtype=bool) if removed is None else removed

        def kept(units: Units) -> int:
            return len(units) - int((gone[units] & (units >= 0)).sum())

        total = 0.0
        for grid, calls in self.terms:
            at = np.array([[math.prod(map(kept, side)) for side in sides] for sides in calls])
            total += float(grid(*at.T).sum())
        return self.scale * max(total, 1e-6)

    def saved(self, column: str = "latency") -> NDArray[np.float64]:
        """What a single unit saves by leaving the whole network, predicted, (units,)."""
        count = self.graph.units
        out = np.zeros(count)
        for grid, calls in self.terms:
            for sides in calls:
                without = [np.ones(count) for _ in sides]
                for left, side in zip(without, sides, strict=True):
                    for units in side:
                        left *= len(units) - np.bincount(units[units >= 0], minlength=count)
                out += grid(*(math.prod(map(len, side)) for side in sides)) - grid(*without)
        return self.scale * np.maximum(out, 0.0)

    def meet(
        self,
        limit: float,
        relative: bool,
        order: Callable[[int], NDArray[np.bool_]],
        cut: Callable[[NDArray[np.bool_]], nn.Module],
        first: int,
        last: int,
    ) -> tuple[int, float]:
        """How many chunks have to go for the cut network to be measured within a limit.

        Args:
            limit: milliseconds.
            relative: the limit was asked as a share of the original's latency: what counts is then the cut network's
                share of the original measured in turns with it, times `whole`, and not the cut network's milliseconds.
            order: number of chunks -> units removed (bool per unit).
            cut: units removed -> the network without them.
            first, last: the least and the most chunks that may go.

        Returns:
            The number of chunks, and milliseconds as the last measurement gave them.

        Raises:
            BudgetError: even with all chunks gone, more is measured.
        """
        if self.whole <= limit and not order(first).any():
            return first, self.whole

        @cache
        def predict(chunks: int) -> float:
            return self.total(removed=order(chunks))

        def measure(chunks: int, carefully: bool) -> float:
            removed = order(chunks)
            if not removed.any():
                return self.whole
            timing = self._compared(cut(removed), carefully)
            return timing.share * self.whole if relative else timing.ms

        try:
            chunks, taken = settle(predict, measure, first, last, limit)
        except _DoesNotRunError as error:
            log.warning(
                "a network that was cut to be measured does not run (%s): the latency is predicted, not measured", error
            )
            chunks = fewest(lambda count: predict(count) <= limit, first, last)
            return chunks, predict(chunks)
        if taken > limit:
            raise BudgetError(
                f"the budget is out of reach: latency {self._shown(limit)} was asked, {self._shown(taken)} is the "
                f"least that min_keep, round_to and what is pinned or protected allow, measured on {self.machine}"
            )
        return chunks, taken

    def _compared(self, small: nn.Module, carefully: bool) -> Any:
        try:
            return self.stopwatch.compare(small, self.graph.model, self.graph.example_inputs, carefully)
        except SecateurError:
            raise
        except Exception as error:  # whatever somebody's forward raises after a cut that the verification will refuse
            raise _DoesNotRunError(f"{type(error).__name__}: {first_line(error)}") from error

    def _shown(self, ms: float) -> str:
        return f"{ms:,.4g} ms ({ms / self.whole:.1%})"


class _DoesNotRunError(Exception):
    """A cut network fails in its forward pass."""


def _calls(graph: Graph) -> Iterator[_Call]:
    """The calls of the run in eval mode that take time; views don't."""
    flow = graph.flows[0]
    channels_last = _channels_last(graph)
    rest: list[tuple[tuple[Units, ...], Operator | None]] = []
    for node in flow.capture.nodes:
        if not node.outputs or node.outputs[0] is None:
            continue
        if node.op in CONVOLUTIONS and len(node.args) >= 9:
            yield _convolution(graph, flow, node, channels_last)
        elif node.op in ("mm", "addmm", "bmm", "baddbmm"):
            yield _product(graph, flow, node)
        elif _computes(node):
            refs = [ref for ref in (*node.inputs(), *node.outputs) if ref is not None]
            largest = max(refs, key=lambda ref: math.prod(flow.shape(ref)))
            sides = tuple(units_along(graph, flow, largest, dim) for dim in range(len(flow.shape(largest))))
            if all(map(len, sides)):
                rest.append((sides, _heavy(flow, node, flow.shape(largest), channels_last)))
    most = max((math.prod(map(len, sides)) for sides, _ in rest), default=0)
    points = [_SMALLEST, _RATIO * _SMALLEST]
    while points[-1] * _RATIO <= most:
        points.append(points[-1] * _RATIO)
    for sides, whole in rest:
        yield _Call((sides,), (tuple(points),), lambda elements: Operator("elementwise", (elements,)), whole)


def _computes(node: Node) -> bool:
    """Whether an operator touches values: it has tensors to read, and what it returns is no view."""
    returns = node.target._schema.returns
    views = [r.alias_info is not None and not r.alias_info.is_write for r in returns]
    return any(node.inputs()) and not all(views) and node.op != "_unsafe_view"


def _heavy(flow: Flow, node: Node, shape: tuple[int, ...], channels_last: bool) -> Operator | None:
    """The operator itself, as it was called, if it takes long for its size."""
    if not node.op.startswith(_HEAVY) or node.kwargs:
        return None

    def frozen(argument: Any, position: int) -> Any:
        if isinstance(argument, Ref):
            return Shaped(flow.shape(argument), indices=node.op.startswith("max_unpool") and position == 1)
        return tuple(argument) if isinstance(argument, list) else argument

    arguments = tuple(frozen(argument, position) for position, argument in enumerate(node.args))
    return Operator(node.op, shape, channels_last=channels_last, target=node.target, arguments=arguments)


def _convolution(graph: Graph, flow: Flow, node: Node, channels_last: bool) -> _Call:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args[:9]
    shape, kernel = flow.shape(x), flow.shape(weight)[2:]
    into, out = units_along(graph, flow, x, 1), units_along(graph, flow, node.outputs[0], 1)  # type: ignore[arg-type]
    rank = len(kernel)

    def every(sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(size) for size in sizes) * (rank if len(sizes) == 1 else 1)

    whole = Operator(
        "transposed convolution" if transposed else "convolution",
        shape,
        len(out),
        kernel,
        every(stride),
        every(padding),
        every(dilation),
        every(output_padding),
        int(groups),
        bias is not None,
        channels_last,
    )
    if groups > 1 and groups == shape[1]:  # depthwise: whole groups go, each with its input and its outputs
        each = len(out) // groups

        def depthwise(channels: int) -> Operator:
            return replace(whole, shape=(shape[0], channels, *shape[2:]), out=channels * each, groups=channels)

        return _Call(((into,),), (_points(graph, into),), depthwise)

    def dense(inputs: int, outputs: int) -> Operator:
        return replace(whole, shape=(shape[0], inputs, *shape[2:]), out=outputs)

    return _Call(((into,), (out,)), (_points(graph, into, int(groups)), _points(graph, out, int(groups))), dense)


def _product(graph: Graph, flow: Flow, node: Node) -> _Call:
    added = node.op in ("addmm", "baddbmm")
    a, b = node.args[1:3] if added else node.args[:2]
    left, right = flow.shape(a), flow.shape(b)
    rows = tuple(units_along(graph, flow, a, dim) for dim in range(len(left) - 1))
    inner, columns = units_along(graph, flow, a, len(left) - 1), units_along(graph, flow, b, len(right) - 1)
    batch = left[0] if len(left) == 3 else 1

    def product(rows: int, inner: int, columns: int) -> Operator:
        return Operator("product", (batch, rows // batch, inner), columns, bias=added)

    points = ((math.prod(left[:-1]),), _points(graph, inner), _points(graph, columns))
    return _Call((rows, (inner,), (columns,)), points, product)


def _points(graph: Graph, units: Units, step: int = 1) -> tuple[int, ...]:
    """Sizes of a dimension at which an operator is timed: multiples of `step`, up to the whole."""
    size = len(units)
    if not graph.prunable[units[units >= 0]].any():
        return (size,)
    unit = math.lcm(step, _ALIGNED) if size * _SHARES[0] >= math.lcm(step, _ALIGNED) else step
    return tuple(sorted({min(size, max(unit, round(size * share / unit) * unit)) for share in _SHARES} | {size}))


def _channels_last(graph: Graph) -> bool:
    """Whether convolutions see this memory format: where an input or a weight has it, it stays till the end."""

    def so(tensor: Tensor) -> bool:
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        format = formats.get(tensor.dim())
        return format is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=format)

    return any(map(so, (*tensors_in(graph.example_inputs), *graph.model.parameters())))
