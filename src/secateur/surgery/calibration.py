"""Calibration: the original runs on batches, and the inputs of consumers that lose channels are summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import DataError, ModelError, SecateurError
from secateur.graph import mapped_state, mode_of, run
from secateur.graph.capture import as_call, detached, first_line
from secateur.surgery.consumers import Consumer

_DEAD = 1e-12  # a channel whose variance is below this share of its mean square is constant: nothing to regress on


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


def observe(model: nn.Module, statistics: Mapping[str, Statistics], inputs: Iterator[Any]) -> None:
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


def inputs_of(data: Iterable[Any], example_inputs: Any, batches: int | None) -> Iterator[Any]:
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
