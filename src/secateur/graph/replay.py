"""What a cut network does, operator by operator, beside what the labels foretell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.graph.capture import Node, Place
from secateur.graph.flow import FREE, Dim, Flow
from secateur.graph.meta import call

Shape = tuple[int, ...]

# All outputs of these are channels of their input; of others the first is what counts.
_SEVERAL = ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "tensor_split", "unbind")


# Called by torch itself, in one run and not in the other: a reshape copies or not, as the strides allow.
_INCIDENTAL = ("aten::detach", "aten::alias", "aten::lift_fresh", "aten::clone")
_VIEWS = ("aten::view", "aten::expand", "aten::squeeze", "aten::unsqueeze", "aten::as_strided")
_SAME = {"aten::_unsafe_view": "aten::view", "aten::_reshape_alias": "aten::view"}
# Their numbers may be one number for each dimension, and are none that follow channels.
_GEOMETRY = {"roll": (1,), "convolution": (3, 4, 5, 7), "avg_pool1d": (1, 2, 3), "avg_pool2d": (1, 2, 3),
             "avg_pool3d": (1, 2, 3), "max_pool2d_with_indices": (1, 2, 3, 4),
             "max_pool3d_with_indices": (1, 2, 3, 4)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Failure:
    """What the network said to a trial, and where."""

    text: str
    place: Place

    def __str__(self) -> str:
        return f"{self.text}{self.place.where}"


class Step(NamedTuple):
    """An operator's name, the plain numbers that it got, and the shapes that it made."""

    name: str
    numbers: tuple[Any, ...]
    shapes: tuple[Shape, ...]


class Replay(TorchDispatchMode):
    """Writes down what the network does in another run."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = call(func, args, kwargs)
        made = out if isinstance(out, (list, tuple)) else (out,)
        shapes = tuple(tuple(item.shape) for item in made if isinstance(item, Tensor))
        if func._schema.name not in _INCIDENTAL:
            self.steps.append(Step(_name(func), _numbers(func, args), shapes))
        return out

    def differs(self, flow: Flow, gone: NDArray[np.bool_], before: Replay | None = None) -> Failure | None:
        """The first operator that does something else than the labels foretell, or another one.

        Args:
            flow: the labelled capture.
            gone: bool per atom.
            before: the run whose shapes are to shrink; the capture if absent.
        """
        nodes = [node for node in flow.capture.nodes if node.target._schema.name not in _INCIDENTAL]
        steps = self.steps
        if [_name(node.target) for node in nodes] != [step.name for step in steps]:
            # Dimensions of one need no views: what is left must be the same.
            nodes = [node for node in nodes if _name(node.target) not in _VIEWS]
            steps = [step for step in steps if step.name not in _VIEWS]
        if before is not None and [step.name for step in before.steps] != [_name(node.target) for node in nodes]:
            return None  # where it goes depends on values
        left = _Left(gone)
        if len(steps) < len(nodes):
            return Failure(f"{nodes[len(steps)].op} isn't called any more", nodes[len(steps)].place)
        for i, (node, step) in enumerate(zip(nodes, steps, strict=False)):
            if _name(node.target) != step.name:
                return Failure(f"{step.name} is called instead of {node.op}", node.place)
            numbers = _numbers(node.target, node.args)
            if numbers != step.numbers:
                pairs = zip_longest(numbers, step.numbers, fillvalue=float("nan"))
                old, new = next((a, b) for a, b in pairs if a != b)
                return Failure(f"{node.op} with {new:.6g} for {old:.6g}, which was computed from the size", node.place)
            shapes = _made(flow, node) if before is None else before.steps[i].shapes
            refs = [out for out in node.outputs if out is not None]
            if len(step.shapes) != len(shapes):
                return Failure(f"{node.op} makes {len(step.shapes)} parts of what were {len(shapes)}", node.place)
            for ref, shape, got in list(zip(refs, shapes, step.shapes, strict=True))[: _counted(node)]:
                layout = flow.layouts.get(ref.value)
                if layout is None or not len(layout) == len(shape) == len(got):  # another rank since, in place
                    continue
                wanted = [left.of(dim, size) for dim, size in zip(layout, shape, strict=True)]
                if any(n not in (m, None) for n, m in zip(wanted, got, strict=True)):
                    return Failure(f"{node.op} gives {got} where {tuple(wanted)} is left of {shape}", node.place)
        return None


class _Left:
    """How much of a dimension is left when atoms go; remembered, since views share tracks."""

    def __init__(self, gone: NDArray[np.bool_]) -> None:
        self.gone = gone
        self.known: dict[tuple[int, ...], tuple[Dim, int | None]] = {}

    def of(self, dim: Dim, size: int) -> int | None:
        """None if it can't be told: what was filled on the fly follows whatever it meets."""
        if not dim:
            return size
        key = tuple(map(id, dim))
        if key not in self.known:
            self.known[key] = (dim, self._count(dim))
        return self.known[key][1]

    def _count(self, dim: Dim) -> int | None:
        if any((track.atoms == FREE).any() for track in dim):
            return None
        lost = np.zeros(len(dim[0].atoms), dtype=bool)
        for track in dim:
            lost |= (track.atoms >= 0) & self.gone[track.atoms]
        return len(lost) - int(lost.sum())


def _name(func: Any) -> str:
    return _SAME.get(func._schema.name, func._schema.name)


def _counted(node: Node) -> int | None:
    return None if node.op in _SEVERAL else 1


def _made(flow: Flow, node: Node) -> list[Shape]:
    return [flow.shape(out) for out in node.outputs if out is not None]


def _numbers(func: Any, args: Sequence[Any]) -> tuple[Any, ...]:
    """The plain numbers among an operator's arguments that stand for values or distances, not for sizes or places."""
    plain = [args[i] for i in _positions(func) if i < len(args) and type(args[i]) in (int, float)]
    name = func._schema.name.rpartition("::")[2]
    return (*plain, *(n for i in _GEOMETRY.get(name, ()) if i < len(args) for n in args[i]))


@cache
def _positions(func: Any) -> tuple[int, ...]:
    arguments = func._schema.arguments
    if not arguments or str(arguments[0].type) != "Tensor":  # makes a tensor: its numbers are sizes and ends of ranges
        return ()
    kinds = ("Tensor", "number", "float", "Optional[number]", "Optional[float]")
    return tuple(i for i, argument in enumerate(arguments) if i > 0 and str(argument.type) in kinds)
