"""How much goes, and what may: the settings that `select`, `prune` and `Pruner` share, checked in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.costs import COLUMNS, LatencyTable
from secateur.errors import MethodError, nearest

if TYPE_CHECKING:
    from secateur.allocate.guard import Guard

BUDGETS = (*COLUMNS, "latency")
SCOPES = ("global", "group", "cost")


@dataclass(frozen=True)
class Allocation:
    """How much goes, and what may. The attributes are the arguments of `select`, which explains them.

    Raises:
        MethodError: one of them is out of range, or they contradict each other.
    """

    pruning_ratio: float | None = None
    budget: Mapping[str, float] | None = None
    scope: str = "global"
    min_keep: float = 0.1
    round_to: int = 1
    protect: Iterable[str] = ()
    ratios: Mapping[str, float] | None = None
    latency_table: LatencyTable | Path | str | None = None
    guard: Guard | None = None

    def __post_init__(self) -> None:
        # patterns are matched more than once, and may have come from a generator
        protect = (self.protect,) if isinstance(self.protect, str) else tuple(self.protect)
        object.__setattr__(self, "protect", protect)
        self._check_amount()
        if self.scope not in SCOPES:
            raise MethodError(f"scope {self.scope!r}; {nearest(self.scope, SCOPES)}")
        if self.scope == "cost" and self.budget is None:
            raise MethodError(
                "scope 'cost' ranks units by what they save of a budget: give budget=... instead of pruning_ratio, "
                "or scope='global'"
            )
        if not 0 <= self.min_keep <= 1:
            raise MethodError(f"min_keep {self.min_keep}: a share between 0 and 1 was expected")
        if self.round_to < 1:
            raise MethodError(f"round_to {self.round_to}: a whole number of channels, at least 1, was expected")

    def _check_amount(self) -> None:
        ratio, budget = self.pruning_ratio, self.budget
        if (ratio is not None and budget is not None) or (ratio is None and budget is None and not self.ratios):
            raise MethodError(
                "give either pruning_ratio (share removed) or budget (what remains), not both and not neither"
            )
        for pattern, share in (self.ratios or {}).items():
            if not 0 <= share <= 1:
                raise MethodError(f"ratios {pattern!r}: {share}; the share to remove, between 0 and 1, was expected")
        if ratio is not None and not 0 <= ratio <= 1:
            raise MethodError(f"pruning_ratio {ratio}: the share of units to remove, between 0 and 1, was expected")
        if budget is not None and not budget:
            raise MethodError(f"an empty budget; give one of {', '.join(BUDGETS)}")
        for name, value in (budget or {}).items():
            if name not in BUDGETS:
                raise MethodError(f"budget {name!r}; {nearest(name, BUDGETS)}")
            if not value > 0:
                raise MethodError(
                    f"budget {name} {value}: a fraction of the original (0 to 1) or an absolute number was expected"
                )
