"""Which of many things fail together: bisection, with hints where to look first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Said = TypeVar("Said")


def find_guilty(
    groups: Sequence[int],
    said: Callable[[Sequence[int]], Said | None],
    guilty: dict[int, Said],
    suspects: Callable[[Said, Sequence[int]], Sequence[int]] = lambda message, groups: (),
    kin: Callable[[int, Said], Mapping[int, Said]] = lambda group, message: {},
) -> list[int]:
    """Part groups into those that can't go, which are added to `guilty`, and the ones that can all go together.

    Every part is tried together with what is already known to be good, so that groups which only fail in company are
    found as well.

    Args:
        groups: the numbers to part.
        said: None if a set of groups can go, a message if not.
        guilty: takes what is found, with the message.
        suspects: given a message and the groups it came of, those to set aside first; nothing if it tells nothing.
        kin: given a guilty group and its message, others that must be just as guilty, with theirs.

    Returns:
        The groups that can all go.
    """
    good, aside = list(groups), []
    while good and (message := said(good)) is not None:
        named = set(suspects(message, good)).intersection(good)
        if not named or len(named) == len(good):
            aside.append(good)
            good = []
        else:
            aside.append([group for group in good if group in named])
            good = [group for group in good if group not in named]
    # Of those set aside together the first goes first: its guilt is its kin's.
    pending = [part for groups in reversed(aside) for part in (groups[1:], groups[:1])]
    while pending:
        part = [group for group in pending.pop() if group not in guilty]
        if not part or (message := said([*good, *part])) is None:
            good.extend(part)
        elif len(part) == 1:
            guilty[part[0]] = message
            for other, its in kin(part[0], message).items():
                guilty.setdefault(other, its)
        else:
            half = len(part) // 2
            pending.extend([part[half:], part[:half]])
    return [group for group in good if group not in guilty]
