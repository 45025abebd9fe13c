"""A plan: which slices of which tensors go. Data only: names, shapes and indices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import PlanError
from secateur.graph import Graph

VERSION = 1

Removed = Mapping[str, Mapping[int, tuple[int, ...]]]


@dataclass(frozen=True)
class Plan:
    """The channels to remove from a network.

    Attributes:
        removed: tensor name in the state dict -> dimension -> sorted indices; the whole truth about what goes.
        shapes: tensor name -> its shape before, for every tensor in `removed`.
        numbers: module name -> attribute -> its value after (`out_channels`, `groups` ...).
    """

    removed: Removed
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        removed = {
            tensor: MappingProxyType(
                {int(dim): tuple(int(i) for i in indices) for dim, indices in dims.items() if len(indices)}
            )
            for tensor, dims in self.removed.items()
        }
        object.__setattr__(self, "removed", MappingProxyType({t: dims for t, dims in removed.items() if dims}))
        object.__setattr__(self, "shapes", MappingProxyType({t: tuple(map(int, s)) for t, s in self.shapes.items()}))
        object.__setattr__(
            self, "numbers", MappingProxyType({m: MappingProxyType(dict(v)) for m, v in self.numbers.items()})
        )
        self._check()

    def _check(self) -> None:
        for tensor, dims in self.removed.items():
            shape = self.shapes.get(tensor)
            for dim, indices in dims.items():
                where = f"plan: {tensor} dim {dim}"
                if list(indices) != sorted(set(indices)) or indices[0] < 0:
                    raise PlanError(f"{where}: indices must be distinct, sorted and not negative")
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
        return sum(len(indices) for dims in self.removed.values() for indices in dims.values())

    def kept(self, tensor: str, dim: int) -> NDArray[np.int64]:
        """The indices of a dimension that stay; the plan must know the tensor's shape."""
        gone = self.removed.get(tensor, {}).get(dim, ())
        return np.setdiff1d(np.arange(self.shapes[tensor][dim]), np.asarray(gone, dtype=np.int64))

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` reads it back."""
        return json.dumps(
            {
                "secateur_plan": VERSION,
                "removed": {t: {str(d): list(i) for d, i in dims.items()} for t, dims in self.removed.items()},
                "shapes": {t: list(s) for t, s in self.shapes.items()},
                "numbers": {m: dict(v) for m, v in self.numbers.items()},
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan.

        Raises:
            PlanError: the text is no plan, or one of a version that this release does not know.
        """
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise PlanError(f"not a plan: the text is not JSON ({error})") from error
        if not isinstance(data, dict) or "removed" not in data:
            raise PlanError("not a plan: a JSON object with the key 'removed' was expected")
        version = data.get("secateur_plan", VERSION)
        if version != VERSION:
            raise PlanError(f"a plan of version {version!r}; this release reads version {VERSION}")
        try:
            return cls(
                {
                    str(t): {_whole(d): tuple(_whole(i) for i in v) for d, v in dims.items()}
                    for t, dims in data["removed"].items()
                },
                {str(t): tuple(_whole(n) for n in shape) for t, shape in data.get("shapes", {}).items()},
                {
                    str(m): {str(k): _whole(v) for k, v in values.items()}
                    for m, values in data.get("numbers", {}).items()
                },
            )
        except (AttributeError, TypeError, ValueError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"not a plan: {error}") from error


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"a whole number was expected, not {value!r}")
    return int(value)


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
    for group in graph.groups:
        gone = int(removed[list(group.units)].sum())
        if gone and group.pinned:
            raise PlanError(f"{group.name} can't be removed; pinned: {group.pinned}")
        if gone == len(group.units) and gone:
            raise PlanError(f"{group.name}: all {gone} units would go; at least one must stay")
    slices = graph.removed_slices(removed)
    return Plan(
        {graph.tensors[t].name: {d: tuple(i.tolist()) for d, i in dims.items()} for t, dims in slices.items()},
        {graph.tensors[t].name: graph.tensors[t].shape for t in slices},
        graph.numbers_after(removed),
    )
