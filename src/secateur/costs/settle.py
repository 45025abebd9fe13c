"""Find how much has to go when only a rough prediction is cheap and every measurement costs seconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

MARGIN = 0.02  # aimed this far below the limit: another measurement will say something else
STEPS = 12
ESTIMATED = 4  # steps that trust the corrected prediction; the others halve what is left


def settle(
    predict: Callable[[int], float],
    measure: Callable[[int, bool], float],
    first: int,
    last: int,
    limit: float,
) -> tuple[int, float]:
    """The fewest steps that are measured to meet a limit, and what the confirming measurement said.

    The prediction, corrected by what was measured so far, proposes; measurements close in from both sides. What comes
    to within two margins of the limit, or can't be undercut by less, is measured once more, carefully, and that one
    decides.

    Args:
        predict: the predicted value after so many steps; it falls, and may be off by a factor that changes slowly.
        measure: the value measured after so many steps, carefully or not.
        first, last: the range of steps.
        limit: what the value may be.

    Returns:
        Steps and value; the value is above the limit only where even `last` steps are too few.
    """
    factors: dict[int, float] = {}  # measured / predicted
    quick: set[int] = set()  # steps that met the limit in a quick measurement
    above, below = first - 1, last + 1  # too few steps, and enough, as far as is known

    def estimate(steps: int) -> float:
        at = sorted(factors)
        return predict(steps) * (float(np.interp(steps, at, [factors[i] for i in at])) if at else 1.0)

    def measured(steps: int, carefully: bool) -> float:
        value = measure(steps, carefully)
        factors[steps] = value / predict(steps)
        return value

    for done in itertools.count():
        carefully = below - above == 1 or done >= STEPS
        if carefully and (below <= last or above == last):
            steps = min(below, last)
        elif ESTIMATED <= done < STEPS:
            steps = (above + below) // 2
        else:  # in the end with less and less ambition, so that there is an end
            aim = (1 - MARGIN * max(1, done - STEPS + 2)) * limit
            steps = fewest(lambda n, aim=aim: estimate(n) <= aim, above + 1, min(below - 1, last))  # type: ignore[misc]
        value = measured(steps, carefully)
        if not carefully and (1 - 2 * MARGIN) * limit <= value <= limit:
            value, carefully = measured(steps, True), True
        if carefully and (value <= limit or steps == last):
            return steps, value
        if value <= limit:
            below = steps
            quick.add(steps)
        else:
            above = steps
            below = min((i for i in quick if i > steps), default=last + 1)
    raise AssertionError("unreachable")


def fewest(enough: Callable[[int], bool], first: int, last: int) -> int:
    """The smallest number from `first` to `last` that is enough; `last` if none is."""
    while first < last:
        middle = (first + last) // 2
        if enough(middle):
            last = middle
        else:
            first = middle + 1
    return last
