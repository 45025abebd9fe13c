"""How far one layer can be cut until a task's loss exceeds its limit: ratio by ratio, or the same with less work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.methods.oracle import Candidate, Losses, Oracle, exceeds, total

SAMPLE = 8  # one batch in so many tells roughly where the limit lies
CLEAR = 0.05  # relative distance to a limit at which a few batches are believed


@dataclass(frozen=True)
class Tried:
    """One ratio that was tried: its losses' sums over so many batches, and whether all were within their limits."""

    number: int
    losses: Losses
    batches: int
    passed: bool


@dataclass(frozen=True)
class Found:
    """The last candidate before the first that fails, -1 for none; its losses, None for none; and what was tried."""

    last: int
    losses: Losses | None
    tried: tuple[Tried, ...]


def literally(oracle: Oracle, candidates: Sequence[Candidate], limits: Losses, batches: int) -> Found:
    """As in the paper: every ratio in its order, on a cut copy and all of the data, until one fails."""
    tried: list[Tried] = []
    for number, candidate in enumerate(candidates):
        losses = oracle.literally(candidate)
        tried.append(Tried(number, losses, batches, not exceeds(losses, limits)))
        if not tried[-1].passed:
            break
    passed = [each for each in tried if each.passed]
    return Found(len(passed) - 1, passed[-1].losses if passed else None, tuple(tried))


def with_less_work(oracle: Oracle, candidates: Sequence[Candidate], limits: Losses, base: Sequence[Losses]) -> Found:
    """The same answer where a few batches can tell which ratios are far below the limits.

    They tell roughly where the limit lies; the ratios around it are tried on all of them, and by bisection. Every ratio
    that was skipped is looked at on the few: what they foretell, the loss of the next larger one that was tried times
    the ratio of the two on these batches, has to be below the limit by `CLEAR`; otherwise it is tried as well. Where
    losses grow with the ratio this finds nothing.

    Args:
        oracle: it stands at the network in front of this layer's cut.
        candidates: of growing ratios, each of which removes all that the one before does, and more.
        limits: task -> the sum over all batches that it may not exceed.
        base: every task's loss of every batch, of the unpruned network.
    """
    if not candidates:
        return Found(-1, None, ())
    search = _Search(oracle, candidates, limits, base)
    last = search.bracket(len(candidates), search.guess() if len(base) >= SAMPLE else None)
    while True:
        doubtful = search.doubtful(last)
        if doubtful is None:
            break
        if not search.passes(doubtful):
            last = search.bracket(doubtful, None)
    tried = [search.tried[number] for number in sorted(search.tried)]
    return Found(last, search.tried[last].losses if last >= 0 else None, tuple(tried))


class _Search:
    def __init__(
        self,
        oracle: Oracle,
        candidates: Sequence[Candidate],
        limits: Losses,
        base: Sequence[Losses],
    ) -> None:
        self.oracle, self.candidates, self.limits, self.base = oracle, candidates, limits, base
        self.reach = tuple(candidates[-1].plan.removed)
        self.tried: dict[int, Tried] = {}

    def passes(self, number: int) -> bool:
        """Whether a candidate's losses are within their limits on all batches."""
        if number in self.tried:
            return self.tried[number].passed
        candidate, count = self.candidates[number], len(self.base)
        losses = self.oracle.evaluated(candidate, count, self.limits, self.reach)
        done, candidate.model = len(candidate.batches), None
        passed = done == count and not exceeds(losses, self.limits)
        self.tried[number] = Tried(number, losses, done, passed)
        return passed

    def guess(self) -> int:
        """The last candidate that passes on some of the batches, by bisection; -1 for none."""
        count = len(self.base) // SAMPLE
        some, whole = total(self.base[:count]), total(self.base)
        limits = {t: limit * some[t] / whole[t] if whole[t] else limit for t, limit in self.limits.items()}

        def passes(number: int) -> bool:
            candidate = self.candidates[number]
            self.oracle.evaluated(candidate, count, self.limits, self.reach)
            return not exceeds(total(candidate.batches[:count]), limits)

        return bisected(passes, -1, len(self.candidates))

    def bracket(self, fails: int, guess: int | None) -> int:
        """The last candidate in front of the first failing one, where all before it pass; -1 for none.

        Args:
            fails: a candidate that fails, or one behind the last.
            guess: where to begin; None: nothing is known.
        """
        low, high, step = max((n for n, t in self.tried.items() if t.passed and n < fails), default=-1), fails, 1
        if guess is None:
            return bisected(self.passes, low, high)
        probe = max(guess, 0)
        while high - low > 1:
            if not low < probe < high:
                probe = (low + high) // 2
            if self.passes(probe):
                low, probe = probe, probe + step
            else:
                high, probe = probe, probe - step
            step *= 2
        return low

    def doubtful(self, last: int) -> int | None:
        """A candidate in front of the last that may fail although it was skipped; the largest of them."""
        nearest = last
        for number in range(last, -1, -1):
            if number in self.tried:
                nearest = number
            elif not self._clear(number, nearest):
                return number
        return None

    def _clear(self, number: int, other: int) -> bool:
        """By a few batches a candidate passes well, beside another one that was run on all of them."""
        count = max(1, len(self.base) // SAMPLE)
        self.oracle.evaluated(self.candidates[number], count, self.limits, self.reach)
        mine, its = (total(self.candidates[n].batches[:count]) for n in (number, other))
        whole = self.tried[other].losses
        foretold = {t: whole[t] * mine[t] / its[t] if its[t] > 0 else mine[t] * len(self.base) for t in self.limits}
        return all(foretold[task] * (1 + CLEAR) <= limit for task, limit in self.limits.items() if limit > 0) and all(
            foretold[task] <= 0 for task, limit in self.limits.items() if limit == 0
        )


def bisected(passes: Callable[[int], bool], low: int, high: int) -> int:
    """The last number that passes, between one that does (or one before the first) and one that does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low
