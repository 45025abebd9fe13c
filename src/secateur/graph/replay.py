"""What a cut network does, operator by operator, beside what the labels foretell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.graph.capture import Capture, Place
from secateur.graph.flow import Flow
from secateur.graph.labels import FREE, Atoms, Dim, Layout
from secateur.graph.meta import Answering, Answers, call

Shape = tuple[int, ...]

# All outputs of these are channels of their input; of others the first is what counts.
_SEVERAL = ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "tensor_split", "unbind")


# Called by torch itself, in one run and not in the other: a reshape copies or not, as the strides allow.
_INCIDENTAL = ("aten::detach", "aten::alias", "aten::lift_fresh", "aten::clone")
_VIEWS = ("aten::view", "aten::expand", "aten::squeeze", "aten::unsqueeze", "aten::as_strided")
# Kinds of arguments that may be plain numbers.
_VALUES = ("Tensor", "number", "float", "Optional[number]", "Optional[float]")
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


def same_code(one: Capture, other: Capture, modules: Mapping[str, nn.Module]) -> bool:
    """Two runs called the same modules in the same order, and what is not in torch's modules called the same operators
    at the same lines: the network's own code does the same in both."""

    def own(run: Capture) -> list[tuple[str, str, str]]:
        calls = [(node.op, node.module, node.source) for node in run.nodes]
        return [call for call in calls if not type(modules[call[1]]).__module__.startswith("torch.nn.modules.")]

    return [name for name, _ in one.calls] == [name for name, _ in other.calls] and own(one) == own(other)


class _Facts(NamedTuple):
    """An operator's name, and where among its arguments plain numbers stand for values or distances."""

    name: str
    numbers: tuple[int, ...]
    geometry: tuple[int, ...]

    def of(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """Those numbers; none that stand for sizes or places."""
        if not (self.numbers or self.geometry):
            return ()
        plain = [args[i] for i in self.numbers if i < len(args) and type(args[i]) in (int, float)]
        for i in self.geometry:
            if i < len(args):
                plain.extend(args[i])
        return tuple(plain)


@cache
def _facts(func: Any) -> _Facts | None:
    """None of operators that do not count."""
    schema = func._schema
    if schema.name in _INCIDENTAL:
        return None
    numbers: tuple[int, ...] = ()
    geometry = _GEOMETRY.get(schema.name.rpartition("::")[2], ())
    arguments = schema.arguments
    if arguments and str(arguments[0].type) == "Tensor":  # of what makes a tensor, numbers are sizes and ends of ranges
        numbers = tuple(i for i, argument in enumerate(arguments) if i > 0 and str(argument.type) in _VALUES)
    return _Facts(_SAME.get(schema.name, schema.name), numbers, geometry)


class Replay(Answering):
    """Writes down what the network does in another run: of every operator the name, the numbers that it got, and the
    shapes that it made."""

    def __init__(self, known: Answers | None = None) -> None:
        super().__init__(known)
        self.names: list[str] = []
        self.numbers: list[tuple[Any, ...]] = []
        self.shapes: list[tuple[Shape, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = call(func, args, kwargs, self.known)
        facts = _facts(func)
        if facts is not None:
            self.names.append(facts.name)
            self.numbers.append(facts.of(args))
            if type(out) is Tensor:
                self.shapes.append((out.shape,))
            else:
                made = out if isinstance(out, (list, tuple)) else (out,)
                self.shapes.append(tuple([item.shape for item in made if isinstance(item, Tensor)]))
        return out


class _Result(NamedTuple):
    """What is known of an output of an operator: its rank, and which of its dimensions have which tracks."""

    rank: int
    tracked: Sequence[tuple[int, int]]  # (dimension, number among the foretold lengths)


class Foretold:
    """What the labels of a run foretell of another one, in which some atoms are gone.

    Args:
        flow: the labelled run.
    """

    def __init__(self, flow: Flow) -> None:
        known = [(node, facts) for node in flow.capture.nodes if (facts := _facts(node.target)) is not None]
        self.nodes = [node for node, _ in known]
        self.names = [facts.name for _, facts in known]
        self.numbers = [facts.of(node.args) for node, facts in known]
        self.lengths = _Lengths()
        outputs = [[out for out in node.outputs if out is not None] for node in self.nodes]
        self.shapes = [tuple([flow.shape(out) for out in outs]) for outs in outputs]
        self.results = [
            [self._result(flow.layouts.get(out.value)) for out in (outs if node.op in _SEVERAL else outs[:1])]
            for node, outs in zip(self.nodes, outputs, strict=True)
        ]

    def _result(self, layout: Layout | None) -> _Result | None:
        if layout is None:
            return None
        return _Result(len(layout), [(d, self.lengths.number(dim)) for d, dim in enumerate(layout) if dim])

    def broken(self, run: Replay, gone: NDArray[np.bool_], before: Replay | None = None) -> Failure | None:
        """The first operator of a run that does something else than the labels foretell, or another one.

        Args:
            run: without the atoms that are gone.
            gone: bool per atom.
            before: the run whose shapes are to shrink; the labelled one if absent.
        """
        mine, its = [*range(len(self.names))], [*range(len(run.names))]
        if self.names != run.names:  # dimensions of one need no views: what is left must be the same
            mine = [i for i in mine if self.names[i] not in _VIEWS]
            its = [i for i in its if run.names[i] not in _VIEWS]
        if before is not None and before.names != [self.names[i] for i in mine]:
            return None  # where it goes depends on values
        if len(its) < len(mine):
            node = self.nodes[mine[len(its)]]
            return Failure(f"{node.op} isn't called any more", node.place)
        left = self.lengths.after(gone)
        for step, (i, j) in enumerate(zip(mine, its, strict=False)):
            shapes = self.shapes[i] if before is None else before.shapes[step]
            text = self._other(i, run, j) or self._sizes(i, shapes, run.shapes[j], left)
            if text:
                return Failure(text, self.nodes[i].place)
        return None

    def _other(self, i: int, run: Replay, j: int) -> str:
        """How the j-th operator of a run is another one than the i-th of the labelled one; "" if it is the same."""
        if self.names[i] != run.names[j]:
            return f"{run.names[j]} is called instead of {self.nodes[i].op}"
        numbers, others = self.numbers[i], run.numbers[j]
        if numbers == others:
            return ""
        old, new = next((a, b) for a, b in zip_longest(numbers, others, fillvalue=float("nan")) if a != b)
        return f"{self.nodes[i].op} with {new:.6g} for {old:.6g}, which was computed from the size"

    def _sizes(self, i: int, shapes: Sequence[Shape], made: Sequence[Shape], left: Sequence[int | None]) -> str:
        """How the shapes that an operator made differ from what is left of the given ones; "" if they don't."""
        if len(made) != len(shapes):
            return f"{self.nodes[i].op} makes {len(made)} parts of what were {len(shapes)}"
        for result, shape, got in zip(self.results[i], shapes, made, strict=False):
            if result is None or not result.rank == len(shape) == len(got):  # another rank since, in place
                continue
            wanted: list[int | None] = [*shape]
            for d, number in result.tracked:
                wanted[d] = left[number]
            if wanted != [*got] and any(n not in (m, None) for n, m in zip(wanted, got, strict=True)):
                return f"{self.nodes[i].op} gives {tuple(got)} where {tuple(wanted)} is left of {tuple(shape)}"
        return ""


class _Lengths:
    """How much of dimensions is left when atoms go, of many at once."""

    def __init__(self) -> None:
        self.dims: list[Dim] = []
        self.numbers: dict[tuple[int, ...], int] = {}  # by the tracks' ids: views share tracks

    def number(self, dim: Dim) -> int:
        """The place of a dimension in what `after` gives."""
        key = tuple(map(id, dim))
        number = self.numbers.get(key)
        if number is None:
            number = self.numbers[key] = len(self.dims)
            self.dims.append(dim)
        return number

    def after(self, gone: NDArray[np.bool_]) -> list[int | None]:
        """The length of every dimension without the atoms that are gone (bool per atom).

        None where it can't be told: what was filled on the fly follows whatever it meets.
        """
        single, atoms, starts, free = self._single
        marks = np.append(gone, [False, False])  # FREE and FIXED are the last
        lost = np.add.reduceat(marks[atoms], starts, dtype=np.int64) if single else np.zeros(0, np.int64)
        left: list[int | None] = [None] * len(self.dims)
        for number, here, count in zip(single, free, lost.tolist(), strict=True):
            if not here:
                left[number] = len(self.dims[number][0].atoms) - count
        for number in {*range(len(left))}.difference(single):
            dim = self.dims[number]
            if not any((track.atoms == FREE).any() for track in dim):
                each = [marks[track.atoms] for track in dim]
                left[number] = len(each[0]) - int(np.logical_or.reduce(each).sum())
        return left

    @cached_property
    def _single(self) -> tuple[list[int], Atoms, Atoms, list[bool]]:
        """Dimensions of one track: their numbers, their atoms end to end, where each begins, which hold FREE."""
        single = [number for number, dim in enumerate(self.dims) if len(dim) == 1 and len(dim[0].atoms)]
        parts = [self.dims[number][0].atoms for number in single]
        atoms = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        starts = np.cumsum([0, *map(len, parts)])[:-1]
        free = np.logical_or.reduceat(atoms == FREE, starts).tolist() if parts else []
        return single, atoms, starts, free
