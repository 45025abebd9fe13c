"""Nasty networks: the frame they stand in, and what is expected of each. The networks are in `nasty_*.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from zoo import conv_bn


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def image(seed: int, batch: int) -> Tensor:
    return drawn(seed, batch, 3, 8, 8)


def tokens(seed: int, batch: int) -> Tensor:
    return drawn(seed, batch, 6, 8)


def words(seed: int, batch: int) -> Tensor:
    return torch.randint(0, 10, (batch, 6), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Case:
    """A network and what pruning must make of it.

    Attributes:
        make: the network.
        inputs: (seed, batch) -> example inputs.
        free: tensors ("name" or "name:dim") of which channels must go.
        pinned: tensor -> a word of the reason why it is pinned.
        share: the least share of all units that is prunable.
        refused: nothing can go: a word of the error.
        modes: training modes to compare in.
        float64: whether the network is turned to float64.
        later: groups that only the verification can find out.
        small: too small a matter for more than one test.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Any] = image
    free: tuple[str, ...] = ()
    pinned: Mapping[str, str] = field(default_factory=dict)
    share: float = 0.0
    refused: str = ""
    modes: tuple[bool, ...] = (False, True)
    float64: bool = True
    later: bool = False
    small: bool = False


CASES: dict[str, Case] = {}


def case(*free: str, **expected: Any) -> Callable[[Any], Any]:
    """Register a network under its class's name."""

    def register(make: Any) -> Any:
        assert make.__name__ not in CASES
        CASES[make.__name__] = Case(make, free=free, **expected)
        return make

    return register


class Net(nn.Module):
    """Two convolutions with something between them, and a head: 8 channels everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 4, 1)
        self.make()

    def make(self) -> None:
        """The layers between."""

    def between(self, y: Tensor) -> Any:
        return y

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.between(self.a(x))))


class Tokens(nn.Module):
    """Tokens of width 8 in, of width 4 out, something between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.make()

    def make(self) -> None:
        """The layers between."""

    def between(self, y: Tensor) -> Any:
        return y

    def forward(self, x: Tensor) -> Any:
        return self.head(self.between(self.a(x)))


def randomised(model: nn.Module) -> nn.Module:
    """Every constant tensor drawn anew; variances stay positive, dropout is off."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            dense = tensor.numel() > 1 and tensor.is_floating_point() and not tensor.is_sparse
            constant = dense and bool((tensor == tensor.flatten()[0]).all())
            if constant or name.endswith(("running_mean", "running_var")):
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
                tensor.copy_(noise - 1 if name.endswith(("bias", "running_mean")) else noise)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def build(name: str, shift: float = 0.0) -> nn.Module:
    """A network of the collection, always the same; `shift` is added to its parameters."""
    torch.manual_seed(0)
    model = randomised(CASES[name].make())
    model = model.double() if CASES[name].float64 else model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shift)
    return model.eval()
