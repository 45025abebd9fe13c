"""Sizes that modules keep in attributes of their own (`self.num_heads`, `self.channels`) made to follow the channels.

A network that reads such a number in its forward pass can't run with fewer channels until the number is told. Which
attributes these are isn't written anywhere: an attribute with the value of a size at hand is tried, and taken only if
the network then runs, and does not run without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, islice

from torch import nn

from secateur.graph.attributes import Number
from secateur.graph.labels import Atoms
from secateur.graph.trial import Trial

_MOST_TRIED = 20  # choices of attributes


def following(trial: Trial, guilty: Mapping[int, object], groups: Sequence[int]) -> dict[int, list[Number]]:
    """The attributes that must follow for some guilty groups to go: group -> numbers.

    Args:
        trial: runs the network.
        guilty: all groups that can't go as it is.
        groups: those of them to try.
    """
    proposed = _proposals(trial, set(groups))
    company = [group for group in trial.free if group not in guilty]
    # Those of the outermost modules are the likeliest to match by chance.
    kinds = dict.fromkeys(_kind(trial, n) for n in sorted(_all(proposed), key=lambda number: number.module.count(".")))
    found: dict[int, list[Number]] = {}
    for absent in _subsets([*kinds]):
        left = {group: numbers for group, numbers in proposed.items() if group not in found}
        found.update(_running(trial, company, _without(trial, left, absent), found))
        if len(found) == len(proposed):
            break
    # Without the ones that are not needed.
    for kind in kinds:
        fewer = _without(trial, found, [kind])
        if fewer != found and not trial.guilty([*fewer], company, _all(fewer)):
            found = fewer
    return found


Kind = tuple[type[nn.Module], str]


def _subsets(kinds: Sequence[Kind]) -> Iterable[Sequence[Kind]]:
    """What to leave out: nothing, each, each two ..."""
    return islice((some for n in range(len(kinds)) for some in combinations(kinds, n)), _MOST_TRIED)


def _running(
    trial: Trial, company: Sequence[int], tried: dict[int, list[Number]], found: Mapping[int, list[Number]]
) -> dict[int, list[Number]]:
    """Those groups that the network runs without with these numbers told."""
    while tried:
        still = trial.guilty([*tried], [*company, *found], [*_all(tried), *_all(found)])
        if not still:
            return tried
        tried = {group: numbers for group, numbers in tried.items() if group not in still}
    return {}


def _without(trial: Trial, found: Mapping[int, list[Number]], kinds: Sequence[Kind]) -> dict[int, list[Number]]:
    return {group: [n for n in numbers if _kind(trial, n) not in kinds] for group, numbers in found.items()}


def _all(found: Mapping[int, Iterable[Number]]) -> list[Number]:
    return [number for numbers in found.values() for number in numbers]


def _kind(trial: Trial, number: Number) -> Kind:
    return type(trial.modules[number.module]), number.attribute


def _proposals(trial: Trial, groups: set[int]) -> dict[int, list[Number]]:
    """Attributes whose value is a size that a group's channels have in their module or inside it."""
    known = {(number.module, number.attribute) for number in trial.graph.numbers}
    found: dict[int, list[Number]] = {}
    owners: dict[tuple[str, str], set[int]] = {}
    for (group, module), sizes in _sizes(trial, groups).items():
        for attribute, value in vars(trial.modules[module]).items():
            if type(value) is int and value in sizes and (module, attribute) not in known:
                found.setdefault(group, []).append(Number(module, attribute, sizes[value]))
                owners.setdefault((module, attribute), set()).add(group)
    # A number that fits several groups can't follow them all.
    clear = {
        group: [number for number in numbers if len(owners[number.module, number.attribute]) == 1]
        for group, numbers in found.items()
    }
    return {group: numbers for group, numbers in clear.items() if numbers}


def _sizes(trial: Trial, groups: set[int]) -> dict[tuple[int, str], dict[int, Atoms]]:
    """(group, module) -> the lengths in which the group's channels come in this module or inside it, with the atoms."""
    solution, found = trial.graph.solution, dict[tuple[int, str], dict[int, Atoms]]()
    for flow in trial.graph.flows:
        for node in flow.capture.nodes:
            for ref in (*node.refs, *(out for out in node.outputs if out is not None)):
                for track in (track for dim in flow.get(ref) for track in dim if (track.atoms >= 0).all()):
                    units = solution.of_atom[track.atoms]
                    mine = set(solution.group_of[units].tolist()) if (units >= 0).all() else set()
                    if len(mine) == 1 and mine <= groups:
                        for module in _around(node.module):
                            found.setdefault((*mine, module), {}).setdefault(len(track.atoms), track.atoms)
    return found


def _around(module: str) -> list[str]:
    """The module and those that it is part of."""
    parts = module.split(".") if module else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]
