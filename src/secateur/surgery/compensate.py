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

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import DataError, MethodError, ModelError, SecateurError, nearest
from secateur.graph import Graph, mapped_state, mode_of, run, unwrapped
from secateur.graph.capture import as_call, detached, first_line
from secateur.plan import Plan
from secateur.surgery.consumers import Carried, Compensated, Consumer, consumers_of
from secateur.surgery.cut import apply, check
from secateur.surgery.seats import Seat, carried_constant, seat_of, write
from secateur.surgery.walk import gone_of

MODES = ("mean", "least_squares")
_LARGEST = 2**30  # bytes of statistics of one consumer beyond which least squares are not tried
_ENOUGH = 10  # positions for each kept channel, with fewer of which a regression learns their noise
_DEAD = 1e-12  # a channel whose variance is below this share of its mean square is constant: nothing to regress on


def compensate(
    model: nn.Module,
    graph: Graph,
    plan: Plan,
    data: Iterable[Any],
    mode: str = "mean",
    *,
    batches: int | None = None,
    ridge: float = 1e-4,
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

    Returns:
        The cut network and, consumer by consumer, what was changed.

    Raises:
        PlanError: the plan fits neither the network nor the graph.
        DataError: there are no batches, or a consumer's input is not finite.
        ModelError: the network fails on a batch.
        MethodError: an option is unknown or out of range.

    Statistics are sums in float64: inputs (mean) or inputs^2 (least_squares) numbers for each consumer.
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
    statistics = {
        c.name: Statistics(c, products=mode == "least_squares" and not _no_regression(c))
        for c in found
        if not c.problem and (mode == "least_squares" or not seats[c.name].why_not)
    }
    if statistics:
        _observe(model, statistics, _inputs(data, graph.example_inputs, batches))
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


class Statistics:
    """Sums over a consumer's input in float64: count, sum per channel, and sum of products of channels.

    Shapes: `total` (groups, inputs / groups), `product` (groups, inputs / groups, inputs / groups).
    """

    def __init__(self, consumer: Consumer, *, products: bool) -> None:
        self.consumer = consumer
        self.products = products
        self.count = 0
        self.total = torch.zeros(0)
        self.product = torch.zeros(0)

    def add(self, x: Tensor) -> None:
        """Take in one input (N, C, ...) of a convolution, also without N, or (..., C) of a linear layer."""
        groups = self.consumer.groups
        if isinstance(self.consumer.module, nn.Linear):
            samples: Iterable[Tensor] = (x.reshape(-1, x.shape[-1]).T,)
        else:
            samples = x if x.dim() == self.consumer.module.weight.dim() else (x,)
        for sample in samples:  # one by one: a whole batch in float64 can take more memory than the network itself
            values = sample.detach().double().reshape(groups, sample.shape[0] // groups, -1)
            if self.count == 0:
                self.total = values.new_zeros(values.shape[:2])
                self.product = values.new_zeros((*values.shape[:2], values.shape[1] if self.products else 0))
            self.count += values.shape[2]
            self.total += values.sum(dim=2)
            if self.products:
                self.product += values @ values.mT

    def mean(self) -> Tensor:
        """Per channel, (groups, inputs / groups).

        Raises:
            DataError: it is not finite.
        """
        if not (torch.isfinite(self.total).all() and torch.isfinite(self.product).all()):
            raise DataError(
                f"the input of {self.consumer.name} is not finite on the calibration batches; "
                "look for NaN or infinite values in the data and in the network"
            )
        return self.total.cpu() / self.count

    def reconstruction(self, ridge: float) -> tuple[Tensor, Tensor]:
        """R (groups, removed, kept) and b (groups, removed) of the ridge regression x_removed ~ R x_kept + b.

        The ridge is relative to each kept channel's variance, so that scaling a channel changes nothing.
        """
        mean = self.mean()
        square = self.product.cpu() / self.count
        covariance = square - mean[:, :, None] * mean[:, None, :]
        removed = torch.from_numpy(self.consumer.removed)
        variance, power = (m.diagonal(dim1=1, dim2=2)[:, ~removed] for m in (covariance, square))
        alive = variance > _DEAD * power
        scale = torch.where(alive, variance, 1).rsqrt() * alive
        inside = covariance[:, ~removed][:, :, ~removed] * scale[:, :, None] * scale[:, None, :]
        across = covariance[:, ~removed][:, :, removed] * scale[:, :, None]
        solved = torch.linalg.solve(inside + ridge * torch.eye(scale.shape[1], dtype=scale.dtype), across)
        factors = (solved * scale[:, :, None]).mT
        return factors, mean[:, removed] - (factors @ mean[:, ~removed, None])[..., 0]


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


def _observe(model: nn.Module, statistics: Mapping[str, Statistics], inputs: Iterator[Any]) -> None:
    """Run the network on every batch in eval mode, with copies of its tensors, and watch the consumers' inputs."""
    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_pre_hook(_watching(measured), with_kwargs=True)
        for name, measured in statistics.items()
    ]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    state = mapped_state(model, detached)
    number = 0
    try:
        with mode_of(model, False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            for number, batch in enumerate(inputs, start=1):
                moved = pytree.tree_map(lambda t: t.to(device, copy=True) if isinstance(t, Tensor) else t, batch)
                try:
                    run(model, state, moved)
                except SecateurError:
                    raise
                except Exception as error:  # whatever the network's own code raises
                    raise ModelError(
                        f"{type(model).__name__} fails on calibration batch {number}: {type(error).__name__}: "
                        f"{first_line(error)}; expected are inputs as for secateur.trace, or pairs (inputs, target)"
                    ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if number == 0:
        raise DataError("the calibration data is empty; at least one batch of inputs is needed")


def _watching(measured: Statistics) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        measured.add(args[0] if args else kwargs["input"])

    return hook


def _inputs(data: Iterable[Any], example_inputs: Any, batches: int | None) -> Iterator[Any]:
    """The inputs of each batch, without its target.

    A pair is (inputs, target), unless the network itself takes two arguments and the first is no container of both.
    """
    if isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise DataError(
            f"the calibration data is a {type(data).__name__}; expected is an iterable of batches, such as a data "
            "loader, or a list of inputs"
        )
    arguments = as_call(example_inputs)[0]
    for item in islice(data, batches):
        pair = isinstance(item, (tuple, list)) and len(item) == 2
        if pair and (len(arguments) != 2 or isinstance(item[0], (tuple, list, Mapping))):
            yield item[0]
        else:
            yield item
