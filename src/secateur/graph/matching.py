"""Groups by name: what a user means by a module, a parameter or a pattern."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from secateur.errors import MethodError, nearest
from secateur.graph.attributes import output_dim
from secateur.graph.inside import named_modules_of
from secateur.graph.network import Graph


def match_groups(graph: Graph, patterns: str | Iterable[str], what: str) -> dict[str, list[int]]:
    """The groups that each pattern names.

    A pattern is the name of a group, a module or a parameter, or one with `*` and `?`. It means the channels that are
    made there, not those that are read there: "layer4.0.conv1" is that convolution's outputs, "layer4" those of
    everything in it.

    Args:
        graph: the traced network.
        patterns: names or patterns; a single one may be given as it is.
        what: the argument they were given as, for the error.

    Returns:
        pattern -> group numbers.

    Raises:
        MethodError: a pattern names no group's channels.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not patterns:
        return {}
    modules = dict(named_modules_of(graph.model))
    names = [
        {group.name}.union(*(_prefixes(tensor) for tensor, dim in group.members if dim == output_dim(modules, tensor)))
        for group in graph.groups
    ]
    found = {}
    for pattern in patterns:
        found[pattern] = [i for i, known in enumerate(names) if any(fnmatchcase(name, pattern) for name in known)]
        if not found[pattern]:
            made = modules.keys() & set().union(*names)
            raise MethodError(f"{what} {pattern!r} names no channels; {nearest(pattern, made, shown=12)}")
    return found


def _prefixes(tensor: str) -> set[str]:
    """The tensor's name and those of all modules it is in: a.b.weight, a.b, a."""
    parts = tensor.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
