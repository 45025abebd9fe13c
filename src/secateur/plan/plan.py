"""A plan: which slices of which tensors go. Data only: names, shapes and indices."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import lt
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from secateur.errors import PlanError, nearest
from secateur.graph import Graph

VERSION = 1
# Read plans are refused beyond this, since parsing takes many times the text; networks of 100 million parameters
# have plans of a few megabytes.
LONGEST = 16 * 2**20
_KEYS = ("removed", "shapes", "numbers", "unsaved")

Removed = Mapping[str, Mapping[int, tuple[int, ...]]]


@dataclass(frozen=True)
class Plan:
    """The channels to remove from a network.

    Attributes:
        removed: tensor name in the state dict -> dimension -> sorted indices; the whole truth about what goes.
        shapes: tensor name -> its shape before, for every tensor of which something goes.
        numbers: module name -> attribute -> its value after (`out_channels`, `groups` ...).
        unsaved: as `removed`, for buffers that a state dict does not hold (`persistent=False`): they shrink along.

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1, bias=False), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
        >>> graph = secateur.trace(net, torch.zeros(1, 1, 8, 8))
        >>> plan = secateur.select(graph, [3.0, 1.0, 4.0, 2.0, 0.0, 0.0], pruning_ratio=0.5)
        >>> for tensor, dims in plan.removed.items():
        ...     print(tensor, dict(dims), plan.shapes[tensor], "->", plan.after(tensor))
        0.weight {0: (1, 3)} (4, 1, 1, 1) -> (2, 1, 1, 1)
        2.weight {1: (1, 3)} (2, 4, 1, 1) -> (2, 2, 1, 1)
        >>> dict(plan.numbers["2"])
        {'in_channels': 2}
    """

    removed: Removed
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unsaved: Removed = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "removed", _frozen(self.removed))
        object.__setattr__(self, "unsaved", _frozen(self.unsaved))
        object.__setattr__(self, "shapes", MappingProxyType({t: tuple(map(int, s)) for t, s in self.shapes.items()}))
        object.__setattr__(
            self, "numbers", MappingProxyType({m: MappingProxyType(dict(v)) for m, v in self.numbers.items()})
        )
        self._check()

    @property
    def slices(self) -> Removed:
        """All that goes: of the tensors in the state dict and of those that are not."""
        return {**self.removed, **self.unsaved}

    def _check(self) -> None:
        twice = self.removed.keys() & self.unsaved.keys()
        if twice:
            raise PlanError(f"plan: {shown(min(twice))} can't be both in the state dict and not in it")
        for tensor, sizes in self.shapes.items():
            if any(size < 0 for size in sizes):
                raise PlanError(f"plan: {shown(tensor)}: the shape {shown(sizes)} has negative sizes")
        sorted_ = set[int]()  # ids of indices: those of one group are often the same object
        for tensor, dims in self.slices.items():
            shape = self.shapes.get(tensor)
            for dim, indices in dims.items():
                where = f"plan: {shown(tensor)} dim {dim}"
                if id(indices) not in sorted_ and (indices[0] < 0 or not all(map(lt, indices, indices[1:]))):
                    raise PlanError(f"{where}: indices must be distinct, sorted and not negative")
                sorted_.add(id(indices))
                if shape is None:
                    continue
                if not 0 <= dim < len(shape):
                    raise PlanError(f"{where}: the tensor has {len(shape)} dimensions")
                if indices[-1] >= shape[dim]:
                    raise PlanError(f"{where}: index {indices[-1]} is beyond its size {shape[dim]}")
                if len(indices) >= shape[dim]:
                    raise PlanError(f"{where}: removes all {shape[dim]} indices; at least one must stay")

    def __len__(self) -> int:
        """Number of slices that go."""
        return sum(len(indices) for dims in self.slices.values() for indices in dims.values())

    def _of(self, tensor: str) -> Mapping[int, tuple[int, ...]]:
        return self.removed.get(tensor) or self.unsaved.get(tensor, {})

    def _split(self, slices: Removed, other: Plan) -> tuple[Removed, Removed]:
        """What two plans made of each other's slices, parted again: in the state dict, not in it."""
        unsaved = self.unsaved.keys() | other.unsaved.keys()
        return (
            {tensor: dims for tensor, dims in slices.items() if tensor not in unsaved},
            {tensor: dims for tensor, dims in slices.items() if tensor in unsaved},
        )

    def kept(self, tensor: str, dim: int) -> NDArray[np.int64]:
        """The indices of a dimension that stay; the plan must know the tensor's shape."""
        gone = self._of(tensor).get(dim, ())
        stays = np.ones(self.shapes[tensor][dim], dtype=bool)
        stays[np.asarray(gone, dtype=np.int64)] = False
        return np.flatnonzero(stays)

    def after(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of a tensor once this is removed; None if the plan does not tell its shape."""
        shape, dims = self.shapes.get(tensor), self._of(tensor)
        return None if shape is None else tuple(size - len(dims.get(d, ())) for d, size in enumerate(shape))

    def then(self, later: Plan) -> Plan:
        """The one plan that removes at once what this one removes first and `later` removes of what is left.

        Args:
            later: a plan for the network that this one leaves.

        Raises:
            PlanError: `later` was made for a network of other shapes.

        Examples:
            >>> from secateur import Plan
            >>> first = Plan({"conv.weight": {0: (1,)}}, {"conv.weight": (4, 3)})
            >>> later = Plan({"conv.weight": {0: (0, 1)}}, {"conv.weight": (3, 3)})
            >>> dict(first.then(later).removed["conv.weight"])
            {0: (0, 1, 2)}
        """
        for tensor in self.slices.keys() & later.slices.keys():
            if self.after(tensor) is None or self.after(tensor) != later.shapes.get(tensor):
                raise PlanError(
                    f"the second plan does not follow the first: {shown(tensor)} has the shape "
                    f"{shown(self.after(tensor))} after the first, the second was made for "
                    f"{shown(later.shapes.get(tensor))}"
                )
        slices = {tensor: dict(dims) for tensor, dims in self.slices.items()}
        for tensor, dims in later.slices.items():
            mine = slices.setdefault(tensor, {})
            for dim, indices in dims.items():
                original = self.kept(tensor, dim)[list(indices)].tolist() if self._of(tensor) else indices
                mine[dim] = tuple(sorted((*mine.get(dim, ()), *original)))
        numbers = {module: dict(values) for module, values in self.numbers.items()}
        for module, values in later.numbers.items():
            numbers.setdefault(module, {}).update(values)
        removed, unsaved = self._split(slices, later)
        return Plan(removed, {**later.shapes, **self.shapes}, numbers, unsaved)

    def since(self, earlier: Plan) -> Plan:
        """What is left to remove where `earlier` was removed already: `earlier.then(plan.since(earlier)) == plan`.

        Raises:
            PlanError: `earlier` removes what this plan keeps, or one of them does not tell the shapes.
        """
        slices: dict[str, dict[int, tuple[int, ...]]] = {}
        for tensor in {**self.slices, **earlier.slices}:
            if earlier._of(tensor) and (self.shapes.get(tensor) or 0) != earlier.shapes.get(tensor):
                raise PlanError(f"the earlier plan is of another network: {shown(tensor)} has another shape there")
            for dim in {*self._of(tensor), *earlier._of(tensor)}:
                mine, before = (plan._of(tensor).get(dim, ()) for plan in (self, earlier))
                if not set(before) <= set(mine):
                    raise PlanError(f"the earlier plan removes parts of {shown(tensor)} that this plan keeps")
                left = np.setdiff1d(mine, before).astype(np.int64)
                slices.setdefault(tensor, {})[dim] = tuple((left - np.searchsorted(before, left)).tolist())
        touched = {tensor for tensor, dims in slices.items() if any(dims.values())}
        removed, unsaved = self._split(slices, earlier)
        return Plan(
            removed,
            {t: shape for t in self.shapes if t in touched and (shape := earlier.after(t) or self.shapes[t])},
            {
                module: new
                for module, values in self.numbers.items()
                if (new := {k: v for k, v in values.items() if earlier.numbers.get(module, {}).get(k) != v})
            },
            unsaved,
        )

    def to_json(self) -> str:
        """The plan as JSON text, the same for equal plans; `from_json` reads it back.

        Examples:
            >>> import secateur
            >>> plan = secateur.Plan({"head.bias": {0: (1, 3)}}, {"head.bias": (4,)})
            >>> print(plan.to_json())
            {"numbers": {}, "removed": {"head.bias": {"0": [1, 3]}}, "secateur_plan": 1, "shapes": {"head.bias": [4]}}
        """
        data = {
            "secateur_plan": VERSION,
            "removed": _listed(self.removed),
            "shapes": {t: list(s) for t, s in self.shapes.items()},
            "numbers": {m: dict(v) for m, v in self.numbers.items()},
        }
        if self.unsaved:
            data["unsaved"] = _listed(self.unsaved)
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan; the text may come from anybody.

        Raises:
            PlanError: the text is no plan, or one of a version that this release does not know.

        Examples:
            >>> import secateur
            >>> plan = secateur.Plan({"conv.weight": {0: (1, 3)}}, {"conv.weight": (4, 3)})
            >>> secateur.Plan.from_json(plan.to_json()) == plan
            True
            >>> secateur.Plan.from_json('{"removed": {"conv.weight": {"0": [3, 1]}}}')
            Traceback (most recent call last):
            ...
            secateur.errors.PlanError: plan: conv.weight dim 0: indices must be distinct, sorted and not negative
        """
        if len(text) > LONGEST:
            raise PlanError(f"not a plan: {len(text):,} characters; plans of at most {LONGEST:,} are read")
        try:
            data = strict_json(text)
        except ValueError as error:
            raise PlanError(f"not a plan: the text is not JSON as Plan.to_json writes it ({error})") from error
        if not isinstance(data, dict) or "removed" not in data:
            raise PlanError("not a plan: a JSON object with the key 'removed' was expected")
        version = data.pop("secateur_plan", VERSION)
        if type(version) is not int or version != VERSION:
            raise PlanError(f"a plan of version {shown(version)}; this release reads version {VERSION}")
        for key in data:
            if key not in _KEYS:
                raise PlanError(f"not a plan: the key {shown(key)}; {nearest(shown(key), _KEYS)}")
        removed, shapes, numbers, unsaved = (_object(data.get(key, {}), key) for key in _KEYS)
        return cls(
            _read(removed),
            {t: _whole(shape, f"the shape of {shown(t)}") for t, shape in shapes.items()},
            {m: _named(values, f"the numbers of {shown(m)}") for m, values in numbers.items()},
            _read(unsaved),
        )


def _frozen(slices: Removed) -> Removed:
    whole: dict[int, tuple[Any, tuple[int, ...]]] = {}  # by id: many tensors share one object

    def frozen(indices: Any) -> tuple[int, ...]:
        if id(indices) not in whole:
            whole[id(indices)] = indices, tuple(map(int, indices))
        return whole[id(indices)][1]

    every = {
        tensor: MappingProxyType({int(dim): frozen(indices) for dim, indices in dims.items() if len(indices)})
        for tensor, dims in slices.items()
    }
    return MappingProxyType({tensor: dims for tensor, dims in every.items() if dims})


def _listed(slices: Removed) -> dict[str, dict[str, list[int]]]:
    return {tensor: {str(dim): list(indices) for dim, indices in dims.items()} for tensor, dims in slices.items()}


def _read(slices: dict[str, Any]) -> dict[str, dict[int, tuple[int, ...]]]:
    return {
        t: {_dim(d, t): _whole(i, f"{shown(t)} dim {d}") for d, i in _object(dims, shown(t)).items()}
        for t, dims in slices.items()
    }


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"not a plan: {what}: an object was expected, not {shown(value)}")
    return value


def _whole(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise PlanError(f"not a plan: {what}: a list of whole numbers was expected, not {shown(value)}")
    for item in value:
        if type(item) is not int:  # true and false are ints to Python
            raise PlanError(f"not a plan: {what}: a whole number was expected, not {shown(item)}")
    return tuple(value)


def _named(value: Any, what: str) -> dict[str, int]:
    named = _object(value, what)
    return dict(zip(named, _whole([*named.values()], what), strict=True))


def _dim(key: str, tensor: str) -> int:
    # one spelling per number, so that no dimension comes twice
    if not re.fullmatch("0|[1-9][0-9]?", key):
        raise PlanError(f"not a plan: {shown(tensor)}: a dimension was expected, not {shown(key)}")
    return int(key)


def shown(value: object, longest: int = 80) -> str:
    """Something from a file in an error message: one short line with nothing in it that a terminal obeys."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def strict_json(text: str | bytes) -> Any:
    """JSON from anybody; of numbers, whole ones only.

    Raises:
        ValueError: it is no JSON or not UTF-8, it is nested without end, or it holds a key twice, a fraction, NaN or a
            number of more than 18 digits.
    """
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_once,
            parse_int=_int,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} comes twice")
    return found


def _int(text: str) -> int:
    return int(text) if len(text) <= 18 else _no_number(text)  # reading digits takes quadratic time


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"a whole number was expected, not {shown(text)}")


def plan_of(graph: Graph, units: NDArray[np.bool_] | Iterable[int]) -> Plan:
    """The plan that removes the given units.

    Args:
        graph: the traced network.
        units: bool per unit, or unit ids.

    Raises:
        PlanError: one of them is pinned, or nothing of a group would be left.
    """
    removed = np.zeros(graph.units, dtype=bool)
    if isinstance(units, np.ndarray) and units.dtype == bool:
        removed |= units
    else:
        removed[list(units)] = True
    counts = np.bincount(graph.solution.group_of[removed], minlength=len(graph.groups))
    for group, gone in zip(graph.groups, counts.tolist(), strict=True):
        if gone and group.pinned:
            raise PlanError(f"{group.name} can't be removed; pinned: {group.pinned}")
        if gone == len(group.units) and gone:
            raise PlanError(f"{group.name}: all {gone} units would go; at least one must stay")
    slices = {graph.tensors[t]: dims for t, dims in graph.removed_slices(removed).items()}
    same: dict[bytes, tuple[int, ...]] = {}  # many tensors lose the same indices

    def listed(indices: NDArray[np.int64]) -> tuple[int, ...]:
        key = indices.tobytes()
        if key not in same:
            same[key] = tuple(indices.tolist())
        return same[key]

    saved, unsaved = (
        {t.name: {d: listed(i) for d, i in dims.items()} for t, dims in slices.items() if t.saved == wanted}
        for wanted in (True, False)
    )
    return Plan(saved, {t.name: t.shape for t in slices}, graph.numbers_after(removed), unsaved)


def units_of(graph: Graph, plan: Plan) -> NDArray[np.bool_]:
    """bool per unit: removed by the plan, which was made for this graph."""
    removed = np.zeros(graph.units, dtype=bool)
    by_name = {t.name: t for t in graph.tensors}
    for name, dims in plan.slices.items():
        for dim, indices in dims.items():
            removed[graph.solution.of_atom[by_name[name].first[dim] + np.asarray(indices)]] = True
    return removed
