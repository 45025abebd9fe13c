"""Groups whose sizes the code takes for one another: they must lose equally many, so their units are paired.

A state made by `torch.zeros(b, y.shape[1], ...)`, a reshape to the input's shape: no operator says whose channels these
are, only the sizes agree. What fails alone but runs when two groups shrink alike is tied, the i-th unit of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from secateur.graph.labels import Equality
from secateur.graph.trial import Failure, Trial

REASON = "sizes that agree only if both shrink alike"


def alike(trial: Trial, guilty: Mapping[int, Failure], groups: Sequence[int]) -> dict[int, list[Equality]]:
    """Ties that let guilty groups go: group -> equalities.

    Args:
        trial: runs the network.
        guilty: all groups that can't go as it is.
        groups: those of them to try.
    """
    graph, found = trial.graph, dict[int, list[Equality]]()
    together: dict[tuple[str, int], list[int]] = {}
    for group in groups:
        together.setdefault((guilty[group].place.module, len(graph.groups[group])), []).append(group)
    company = [group for group in trial.free if group not in guilty]
    for (module, size), members in together.items():
        others = [g for g in company if len(graph.groups[g]) == size and g in trial.running(module)]
        tried = [members] * (len(members) > 1) + [[*members, other] for other in others]
        tied = next((some for some in tried if trial.runs_tied(company, some)), None)
        if tied is not None:
            ties = [_tie(trial, a, b) for a, b in pairwise(tied)]
            found.update({group: ties if group == members[0] else [] for group in members})
            company.extend(members)
    return found


def _tie(trial: Trial, a: int, b: int) -> Equality:
    solution, groups = trial.graph.solution, trial.graph.groups
    first, second = (solution.atoms[solution.start[np.asarray(groups[group].units)]] for group in (a, b))
    return Equality(first, second, REASON, -1)
