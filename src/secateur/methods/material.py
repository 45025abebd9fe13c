"""Data, loss and classes for methods that make a pass of their own over data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import DataError, MethodError
from secateur.graph import mode_of
from secateur.graph.capture import as_call

Loss = Callable[[Any, Any], "Tensor | Mapping[str, Tensor]"]


@dataclass(frozen=True)
class Material:
    """What a pass over data needs.

    Attributes:
        data: batches of (input, target); iterated once a pass, so it must not be a generator.
        loss: (output of the network, target) -> a scalar, or the named losses of several tasks.
        classes: the names of the classes, by label; or how many there are.

    Raises:
        MethodError: `data` can be iterated only once.
    """

    data: Iterable[tuple[Any, Any]] | None = None
    loss: Loss | None = None
    classes: Sequence[str] | int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data, Iterator):
            raise MethodError(
                "data is a generator or another iterator, which ends after one pass; give a list or a data loader"
            )

    def wanting(self, *names: str) -> list[str]:
        """Those of `names` that were not given."""
        return [name for name in names if getattr(self, name) is None]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes; numbers where no names were given."""
        if isinstance(self.classes, int):
            return tuple(map(str, range(self.classes)))
        return tuple(self.classes or ())

    def batches(self, model: nn.Module, limit: int | None = None) -> Iterator[tuple[Any, Any]]:
        """One pass: (input, target) on the network's device.

        Raises:
            DataError: there is none, or a batch is no pair.
        """
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        number = 0
        for number, batch in enumerate(self.data or (), start=1):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                kind = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
                raise DataError(f"batch {number} of the data is a {kind}; expected is a pair (input, target)")
            yield pytree.tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, tuple(batch))
            if number == limit:
                return
        if number == 0:
            raise DataError("the data is empty; at least one batch (input, target) is needed")

    def losses(self, output: Any, target: Any) -> dict[str, Tensor]:
        """The tasks' losses by name; one that has no name is called "loss".

        Raises:
            MethodError: the loss is no scalar.
        """
        assert self.loss is not None
        found = self.loss(output, target)
        named = dict(found) if isinstance(found, Mapping) else {"loss": found}
        for name, value in named.items():
            if not isinstance(value, Tensor) or value.numel() != 1:
                shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise MethodError(f"the loss {name!r} is {shape}; a scalar tensor was expected")
        return named


def call(model: nn.Module, inputs: Any) -> Any:
    """The network's output on a batch's input: a tensor, a tuple of positional or a dict of keyword arguments."""
    args, kwargs = as_call(inputs)
    return model(*args, **kwargs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and gradients on, for a pass that must leave no trace: gradients, modes and random numbers come back.

    In train mode a batch norm undoes any scaling of its input, so that a score activation * gradient in front of it
    vanishes, whatever the channel is worth.
    """
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in gradients:
        parameter.grad = None
    try:
        with mode_of(model, False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
