"""Gradual pruning: how much remains after each of several cuts."""

from __future__ import annotations

from collections.abc import Callable

from secateur.errors import MethodError, nearest

# (what remains in the end, share of the steps done) -> what remains
KINDS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda end, done: 1 - (1 - end) * done,
    "geometric": lambda end, done: end**done,
    "cubic": lambda end, done: end + (1 - end) * (1 - done) ** 3,
}


def schedule(remains: float, steps: int, kind: str = "linear") -> tuple[float, ...]:
    """What remains of the original network after each of several cuts, for `Pruner.step`.

    Args:
        remains: after the last one, as a share of the original: a budget, or 1 - pruning_ratio.
        steps: how many cuts, at least 1.
        kind: "linear" removes as much at every step; "geometric" the same share of what is left; "cubic" most at the
            beginning, while much is redundant, and little in the end (Zhu, Gupta, "To prune, or not to prune", 2017).

    Returns:
        As many shares as steps, falling, the last one `remains`.

    Raises:
        MethodError: an argument is out of range or unknown.

    Examples:
        >>> import secateur
        >>> secateur.schedule(0.4, steps=3)
        (0.8, 0.6, 0.4)
        >>> secateur.schedule(0.125, steps=3, kind="geometric")
        (0.5, 0.25, 0.125)
        >>> secateur.schedule(0.0, steps=2, kind="cubic")
        (0.125, 0.0)
    """
    if kind not in KINDS:
        raise MethodError(f"kind {kind!r}; {nearest(str(kind), KINDS)}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise MethodError(f"steps {steps}: a whole number of cuts, at least 1, was expected")
    if not 0 <= remains <= 1:
        raise MethodError(f"remains {remains}: a share of the original, between 0 and 1, was expected")
    if remains == 0 and kind == "geometric":
        raise MethodError("a geometric schedule never comes to nothing: let more remain, or take linear or cubic")
    return (*(round(KINDS[kind](remains, step / steps), 12) for step in range(1, steps)), remains)
