"""The scaling factors (gamma) of batch norms: where they are, whose channel they scale, how an L1 pull acts on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secateur.errors import MethodError
from secateur.graph import Graph, state_of
from secateur.graph.capture import Ref
from secateur.graph.operators import BATCH_NORMS
from secateur.methods.channels import per_unit, units_along


@dataclass(frozen=True, slots=True)
class Scale:
    """The gamma of one batch norm, or a pseudo scale (see `pseudo_scales`).

    Attributes:
        name: the parameter's name; of a pseudo scale, the layer's with ".pseudo_scale".
        gamma: the parameter, shape (C).
        units: int64 (C), the unit of every channel, -1 where there is none.
        beta: the norm's bias, shape (C); None without one.
        positions: height times width of the scaled map in the traced run.
    """

    name: str
    gamma: nn.Parameter
    units: NDArray[np.int64]
    beta: nn.Parameter | None
    positions: int


def scales_of(graph: Graph, pseudo: Sequence[Scale] = ()) -> list[Scale]:
    """Every batch norm's gamma, in the order of the network, and pseudo scales behind them.

    Raises:
        MethodError: there is none.
    """
    found = [*batch_norm_scales(graph), *pseudo]
    if not found:
        raise MethodError(
            f"{type(graph.model).__name__} has no batch norm with a learnable scale, which this method ranks "
            "channels by; use a method that scores weights, such as l1"
        )
    return found


def batch_norm_scales(graph: Graph) -> list[Scale]:
    """Every batch norm's gamma, in the order of the network."""
    state, found = state_of(graph.model), dict[str, Scale]()
    infos = {t.name: t for t in graph.tensors}
    first_name = {alias: t.name for t in graph.tensors for alias in (t.name, *t.aliases)}
    for flow in graph.flows:
        by_value = {value: first_name[name] for name, value in flow.capture.names.items()}
        for node in flow.capture.nodes:
            out = node.outputs[0] if node.outputs else None
            if node.op not in BATCH_NORMS or len(node.args) < 3 or out is None:
                continue
            name, bias = (by_value.get(ref.value, "") if isinstance(ref, Ref) else "" for ref in node.args[1:3])
            gamma, beta = state.get(name), state.get(bias)
            if name not in found and isinstance(gamma, nn.Parameter):
                units = units_along(graph, infos[name], 0)
                beta = beta if isinstance(beta, nn.Parameter) else None
                found[name] = Scale(name, gamma, units, beta, prod(flow.shape(out)[2:]))
    return list(found.values())


def scale_scores(
    graph: Graph, reduce: str, protect_residual: bool, pseudo: Sequence[Scale] = ()
) -> NDArray[np.float64]:
    """|gamma| per unit.

    A unit with several scales (channels that share max-pooling indices, say) goes as soon as one of them is small:
    reduce="min", "channels that are determined to be removed in either the encoder or the decoder part" (CAP, section
    4.4).
    """
    parts = [(s.units, s.gamma.detach().abs().double().cpu().numpy()) for s in scales_of(graph, pseudo)]
    scores = per_unit(graph, parts, reduce)
    if protect_residual:
        scores[graph.residual] = np.inf
    return scores


@dataclass(frozen=True, slots=True)
class Histogram:
    """How sparse the scales are: the numbers to watch before cutting."""

    median: float
    small: float  # share of |gamma| below 1 % of the reference
    zero: float


def sparsity(scales: list[Scale], reference: float | None = None) -> Histogram:
    """Median of |gamma|, the share under 1 % of a reference median (today's without one), the share of exact zeros."""
    values = torch.cat([s.gamma.detach().abs().flatten().float().cpu() for s in scales])
    median = float(values.median())
    limit = 0.01 * (median if reference is None else reference)
    return Histogram(median, float((values < limit).float().mean()), float((values == 0).float().mean()))
