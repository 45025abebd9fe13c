"""Sensitivity: what the scores fall to when one group alone loses its least important units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from secateur.allocate.allocation import Allocation
from secateur.allocate.choice import checked_scores
from secateur.allocate.order import chunks_of, leaving, within
from secateur.errors import MethodError, NothingPrunableError
from secateur.graph import Graph, match_groups
from secateur.plan import plan_of
from secateur.surgery import apply

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Curve:
    """One group's curve.

    Attributes:
        group: its name.
        units: how many it has.
        points: (share of its units removed, scores by name): nothing removed, then one for every ratio.
    """

    group: str
    units: int
    points: tuple[tuple[float, Mapping[str, float]], ...]

    def drop(self, score: str) -> float:
        """The largest fall of a score along the curve."""
        return max(self.points[0][1][score] - scores[score] for _, scores in self.points)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        points = [{"removed": share, **scores} for share, scores in self.points]
        return {"group": self.group, "units": self.units, "points": points}


def sensitivity(
    graph: Graph,
    scores: ArrayLike,
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    *,
    ratios: Sequence[float] = RATIOS,
    groups: Sequence[str] = (),
    say: Callable[[Curve], None] | None = None,
) -> list[Curve]:
    """Cut each group by itself, more and more of it, and evaluate.

    Args:
        graph: the traced network.
        scores: per unit, as for `select`; those of smallest score go first.
        evaluate: a network -> scores by name, such as mIoU and the IoU of every class; it must leave the weights alone.
        ratios: shares of the group to remove, 0 to 1; at least one unit stays.
        groups: names or patterns of groups or modules; all that can be cut by default.
        say: called with every finished curve.

    Returns:
        A curve for every group, in the order of the network.

    Raises:
        MethodError: a ratio is out of range, or a pattern matches no group.
        NothingPrunableError: no group can be cut.

    Examples:
        >>> import torch, secateur
        >>> conv, relu = torch.nn.Conv2d, torch.nn.ReLU
        >>> net = torch.nn.Sequential(conv(3, 8, 3), relu(), conv(8, 4, 3), relu(), conv(4, 2, 1))
        >>> graph = secateur.trace(net, torch.randn(1, 3, 16, 16))
        >>> def evaluate(model):
        ...     return {"channels": float(model[0].out_channels + model[2].out_channels)}
        >>> for curve in secateur.sensitivity(graph, secateur.score(graph, "l1"), evaluate, ratios=(0.25, 0.5)):
        ...     print(curve.group, [(share, scores["channels"]) for share, scores in curve.points])
        0 [(0.0, 12.0), (0.25, 10.0), (0.5, 8.0)]
        2 [(0.0, 12.0), (0.25, 11.0), (0.5, 10.0)]
    """
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise MethodError(f"ratio {ratio}: the share of a group to remove, above 0 and up to 1, was expected")
    values, nothing = checked_scores(graph, scores), np.zeros(graph.units, dtype=bool)
    chunks = chunks_of(graph, values, Allocation(pruning_ratio=1.0, min_keep=0.0), nothing, None)
    matched = {group for found in match_groups(graph, groups, "groups").values() for group in found}
    wanted = [group for group in chunks if chunks[group] and (not groups or group in matched)]
    if not wanted:
        raise NothingPrunableError("none of these groups can be cut; `secateur inspect` tells why")
    base = dict(evaluate(apply(graph.model, plan_of(graph, nothing))))
    curves = []
    for group in wanted:
        size, points = len(graph.groups[group]), [(0.0, base)]
        for ratio in sorted(set(ratios)):
            removed = leaving(graph, within(chunks[group], round(ratio * size)))
            share, (last, found) = float(removed.sum() / size), points[-1]
            if share > last:
                found = dict(evaluate(apply(graph.model, plan_of(graph, removed))))
            points.append((share, found))
        curves.append(Curve(graph.groups[group].name, size, tuple(points)))
        if say is not None:
            say(curves[-1])
    return curves
