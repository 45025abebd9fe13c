"""Carry over what removed channels did, measured on calibration batches, into the weights that stay.

A channel that goes takes its share of every consumer's output along. Part of that share can be had without it:

    mean             the consumer's bias takes the channel's mean response. The idea of bias correction (Nagel et al.,
                     "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019), there for
                     the error of quantised weights, here for the channels that are gone.
    least_squares    what of the channel is a linear function of the kept ones goes into their kernel. After the
                     reconstruction step of He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural
                     Networks", ICCV 2017. That paper solves for the whole kernel of every consumer on sampled patches,
                     layer after layer; here channels are regressed on channels, point by point, which needs
                     inputs^2 numbers whatever the kernel's size, and one pass of the original for all consumers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import MethodError, nearest
from secateur.graph import Graph, unwrapped
from secateur.plan import Plan
from secateur.surgery.calibration import Statistics, inputs_of, observe
from secateur.surgery.consumers import Carried, Compensated, Consumer, consumers_of
from secateur.surgery.cut import apply, check
from secateur.surgery.seats import Seat, carried_constant, seat_of, write
from secateur.surgery.walk import gone_of

MODES = ("mean", "least_squares")
_LARGEST = 2**30  # bytes of statistics of one consumer beyond which least squares are not tried
_ENOUGH = 10  # positions for each kept channel, with fewer of which a regression learns their noise


def compensate(
    model: nn.Module,
    graph: Graph,
    plan: Plan,
    data: Iterable[Any],
    mode: str = "mean",
    *,
    batches: int | None = None,
    ridge: float = 1e-4,
    new_biases: bool = True,
) -> Compensated:
    """Cut a network to a plan and carry over what the removed channels did, as measured on calibration batches.

    Every convolution (plain, grouped, transposed) and linear layer that loses inputs is adjusted. With W the kernel and
    x the input in the original network, over all batches and positions:

        mean             bias  += sum over removed c, taps:  W[:, c] * mean(x_c)
        least_squares    x_removed ~ R x_kept + b, ridge regression;  W[:, kept] += W[:, removed] R,
                         bias  += sum over removed c, taps:  W[:, c] * b_c

    What is added to the bias is right where the kernel lies inside the map; at borders padded with zeros it is too
    much. What is folded into the kernel is right there, too. Of a transposed convolution with a stride, whose outputs
    see different taps, the bias takes the average.

    A consumer without a bias whose output goes to a batch norm alone gets none: the constant is subtracted from the
    norm's running mean. That is the same in eval mode; in train mode the norm subtracts the batch's own mean, so that a
    bias would do nothing, and the running mean is already where training would take it. Elsewhere a bias is made, a
    tensor that the original lacks: `secateur.load` then needs a network that has it as well.

    Depthwise convolutions lose inputs and outputs together and have nothing to carry over. Left alone, and listed with
    the reason, are consumers that are called as functions, whose weight is computed, or that run in train mode only.

    Args:
        model: the network that the plan was made for; nothing in it changes. It runs in eval mode.
        graph: its graph.
        plan: what goes.
        data: iterable of inputs as for `trace` (a tensor, a tuple of arguments, a dict), or of pairs (inputs, target).
            Tensors are moved to the network's device.
        mode: "mean" or "least_squares". Where least squares can't be had (a shared weight, fewer than 10 positions for
            each kept channel, statistics of more than 1 GiB) the mean is used and the note says so.
        batches: how many batches to read; None for all.
        ridge: of least squares, relative to each kept channel's variance. More of it keeps R small where kept channels
            are nearly combinations of each other; what they read is itself changed by the cuts in front of them.
        new_biases: make biases where there are none and no batch norm can take the constant; otherwise it is dropped,
            and the cut network has no tensor that the original lacks.

    Returns:
        The cut network and, consumer by consumer, what was changed.

    Raises:
        PlanError: the plan fits neither the network nor the graph.
        DataError: there are no batches, or a consumer's input is not finite.
        ModelError: the network fails on a batch.
        MethodError: an option is unknown or out of range.

    Statistics are sums in float64: inputs (mean) or inputs^2 (least_squares) numbers for each consumer.

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
        >>> images = torch.randn(16, 3, 8, 8)
        >>> graph = secateur.trace(net, images[:1])
        >>> plan = secateur.select(graph, secateur.score(graph, "l1"), pruning_ratio=0.5)
        >>> made = secateur.compensate(net, graph, plan, data=images.split(4))  # or a loader's pairs (images, labels)
        >>> print(made)
        2 (without 4 inputs): carried into 2.bias
        >>> def mean(network):
        ...     return network(images).mean((0, 2, 3))
        >>> torch.allclose(mean(made.model), mean(net), atol=1e-5)
        True
        >>> torch.allclose(mean(secateur.apply(net, plan)), mean(net), atol=1e-5)
        False
    """
    if mode not in MODES:
        raise MethodError(f"mode {mode!r}; {nearest(str(mode), MODES)}")
    if batches is not None and batches < 1:
        raise MethodError(f"batches={batches}: at least 1, or None for all")
    if not ridge > 0:
        raise MethodError(f"ridge={ridge}: a number above 0 was expected, such as 1e-4")
    model = unwrapped(model)
    check(model, plan)
    _, gone = gone_of(graph, plan)
    found = consumers_of(graph, model, gone)
    seats = {c.name: seat_of(graph, c) for c in found if not c.problem}
    if not new_biases:
        none = Seat(problem="it has no bias, and none is to be made")
        seats |= {c.name: none for c in found if c.name in seats and seats[c.name].bias and c.module.bias is None}
    statistics = {
        c.name: Statistics(c, products=mode == "least_squares" and not _no_regression(c))
        for c in found
        if not c.problem and (mode == "least_squares" or not seats[c.name].why_not)
    }
    if statistics:
        observe(model, statistics, inputs_of(data, graph.example_inputs, batches))
    small = apply(model, plan)
    carried, values = [], dict[str, Tensor]()
    for consumer in found:
        measured = statistics.get(consumer.name)
        if measured is None:
            seat = seats.get(consumer.name, Seat(problem=consumer.problem))
            carried.append(Carried(consumer.name, consumer.channels, (), seat.why_not))
        else:
            new, note = _adjusted(small, plan, consumer, seats[consumer.name], measured, mode, ridge)
            carried.append(Carried(consumer.name, consumer.channels, tuple(new), note))
            values.update(new)
    write(small, values)
    return Compensated(small, plan, tuple(carried))


def _no_regression(consumer: Consumer) -> str:
    """Why the weight of a consumer can't take the outcome of a regression; "" if it can."""
    if consumer.shared:
        return f"its weight is used by {consumer.shared} as well"
    size = 8 * consumer.groups * len(consumer.removed) ** 2
    return f"{len(consumer.removed)} inputs need {size / 2**30:.1f} GiB of statistics" if size > _LARGEST else ""


def _adjusted(
    small: nn.Module, plan: Plan, consumer: Consumer, seat: Seat, measured: Statistics, mode: str, ridge: float
) -> tuple[dict[str, Tensor], str]:
    """The new values of the cut network's tensors, and what is to be said about them."""
    if measured.count == 0:
        return {}, "no calibration batch reached it"
    notes = []
    removed = torch.from_numpy(consumer.removed)
    why_not = _no_regression(consumer)
    inputs = len(removed) - int(removed.sum())
    if not why_not and measured.count < _ENOUGH * inputs:
        why_not = f"{measured.count} positions are too few for {inputs} kept inputs, {_ENOUGH * inputs} were expected"
    kernel = consumer.kernel(consumer.module.weight)
    kept = consumer.kept_outputs(plan)
    values: dict[str, Tensor] = {}
    if mode == "least_squares" and not why_not:
        factors, intercept = measured.reconstruction(ridge)
        folded = kernel[:, :, ~removed] + torch.einsum("gort,grk->gokt", kernel[:, :, removed], factors)
        values[consumer.tensor] = consumer.weight(folded[kept].reshape(len(kept), -1, *folded.shape[2:]))
    else:
        intercept = measured.mean()[:, removed]
        if mode == "least_squares":
            notes.append(f"only the mean: {why_not}")
    if seat.why_not:
        notes.append(f"no constant: {seat.why_not}")
    else:
        constant = torch.einsum("gort,gr->go", kernel[:, :, removed], intercept) / consumer.outputs_of_a_tap
        values.update(carried_constant(small, consumer, seat, constant[kept]))
    return values, "; ".join(notes)
