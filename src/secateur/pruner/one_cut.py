"""Prune in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.optim import Optimizer

from secateur.allocate import Allocation, Guard
from secateur.costs import LatencyTable
from secateur.errors import MethodError
from secateur.graph import Graph, trace
from secateur.methods import Material, Method, make_method, must_prune
from secateur.methods.material import Loss
from secateur.pruner.cutting import cut_verified
from secateur.pruner.progress import Progress
from secateur.pruner.result import Result

Criterion = Callable[[Graph], ArrayLike]


def score(
    graph: Graph,
    method: str | Method | Criterion,
    *,
    data: Iterable[tuple[Any, Any]] | None = None,
    loss: Loss | None = None,
    classes: Sequence[str] | int | None = None,
    **options: Any,
) -> NDArray[np.float64]:
    """One score per unit, the smallest least important; +inf for what must stay.

    Args:
        graph: the traced network.
        method: a method's name, a method object, or a function graph -> scores.
        data, loss, classes: for methods that make a pass over data: batches of (input, target), to be iterated as often
            as wanted; (output, target) -> a scalar or a dict of them; the classes' names or number.
        options: the method's options.

    Raises:
        MethodError: unknown method or option, or one that needs data or training.
        DataError: the data is empty, or no pairs.

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
        >>> with torch.no_grad():
        ...     net[0].weight[:] = torch.tensor([3.0, -1.0, 4.0, 2.0]).reshape(4, 1, 1, 1)
        >>> graph = secateur.trace(net, torch.zeros(1, 1, 8, 8))
        >>> secateur.score(graph, "l1").tolist()  # the output's two channels must stay
        [3.0, 1.0, 4.0, 2.0, inf, inf]
        >>> secateur.score(graph, lambda graph: range(graph.units)).tolist()
        [0.0, 1.0, 2.0, 3.0, inf, inf]
    """
    if not isinstance(method, (str, Method)) and callable(method):
        return np.where(graph.prunable, np.asarray(method(graph), dtype=np.float64), np.inf)
    made = make_method(method, Material(data, loss, classes), **options)
    must_prune(made)
    if made.decides:
        when = "while training" if made.needs_training else "by a search at the cut"
        raise MethodError(f"method {made.name} chooses channels {when}: secateur.Pruner(model, inputs, {made.name!r})")
    return scores_of(graph, made)


def scores_of(graph: Graph, method: Method) -> NDArray[np.float64]:
    """A method's scores, +inf for what is pinned."""
    return np.where(graph.prunable, method.scores(graph), np.inf)


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    method: str | Method | Criterion = "l1",
    pruning_ratio: float | None = None,
    budget: Mapping[str, float] | None = None,
    scope: str = "global",
    min_keep: float = 0.1,
    round_to: int = 1,
    protect: Iterable[str] = (),
    ratios: Mapping[str, float] | None = None,
    latency_table: LatencyTable | Path | str | None = None,
    guard: Guard | None = None,
    inplace: bool = False,
    verify: bool = True,
    optimizer: Optimizer | None = None,
    data: Iterable[tuple[Any, Any]] | None = None,
    loss: Loss | None = None,
    classes: Sequence[str] | int | None = None,
    **options: Any,
) -> Result:
    """Trace, score, select, apply and verify in one call.

    Args:
        model: any network; it is not changed unless `inplace`.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        method: the name of a method that needs no training, a method object, or a function graph -> scores.
        pruning_ratio, budget, scope, min_keep, round_to, protect, ratios, latency_table, guard: see `select`.
        inplace: cut the network itself.
        verify: compare the result with the silenced original before handing it over.
        optimizer: its state is cut along.
        data, loss, classes: for methods that make a pass over data, see `score`.
        options: the method's options.

    Raises:
        NothingPrunableError, BudgetError, MethodError, ModelError, VerificationError.

    Examples:
        >>> import torch, secateur
        >>> conv, relu = torch.nn.Conv2d, torch.nn.ReLU
        >>> net = torch.nn.Sequential(conv(3, 16, 3), relu(), conv(16, 16, 3), relu(), conv(16, 2, 1))
        >>> image = torch.randn(1, 3, 16, 16)
        >>> result = secateur.prune(net, image, method="l1", budget={"params": 0.5}, scope="group", round_to=4)
        >>> result.model[0], net[0].out_channels  # the network itself is as it was
        (Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1)), 16)
        >>> result.report.ok, result.model(image).shape == net(image).shape
        (True, True)
    """
    allocation = Allocation(pruning_ratio, budget, scope, min_keep, round_to, protect, ratios, latency_table, guard)
    at = Progress.beginning(trace(model, example_inputs))
    scores = score(at.now, method, data=data, loss=loss, classes=classes, **options)
    return cut_verified(at, scores, allocation, inplace=inplace, check=verify, optimizer=optimizer)
