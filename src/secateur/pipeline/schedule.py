"""What each of several cuts asks for on the way to a recipe's budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from secateur.allocate import schedule
from secateur.recipe import CutSchedule

__all__ = ["Asked", "on_the_way"]


class Asked(NamedTuple):
    """How much is to go, as `Pruner.step` takes it."""

    pruning_ratio: float | None
    budget: Mapping[str, float] | None
    ratios: Mapping[str, float]


def on_the_way(final: Asked, settings: CutSchedule, step: int, whole: Callable[[str], float]) -> Asked:
    """What one of the cuts asks for, as shares of the unpruned network.

    Args:
        final: what the last cut asks for; a budget may be absolute.
        settings: the recipe's.
        step: which cut; 1 is the first.
        whole: what the unpruned network has of a resource that is limited absolutely.

    Raises:
        MethodError: this kind of schedule can't lead there.
    """

    def after(remains: float) -> float:
        return schedule(remains, settings.steps, settings.kind)[step - 1]

    def share(resource: str, limit: float) -> float:
        return limit if limit <= 1 else min(1.0, limit / whole(resource))

    return Asked(
        None if final.pruning_ratio is None else 1 - after(1 - final.pruning_ratio),
        None if final.budget is None else {name: after(share(name, limit)) for name, limit in final.budget.items()},
        {pattern: 1 - after(1 - gone) for pattern, gone in final.ratios.items()},
    )
