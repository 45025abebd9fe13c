"""Odd inputs, outputs and modules."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from nasty import Net, Tokens, case, drawn, image, tokens
from torch import Tensor, nn
from zoo import conv_bn

# -- inputs and outputs -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()


@case("a.0.weight", "b.0.weight", inputs=lambda s, b: {"image": image(s, b), "scale": torch.tensor(0.5), "mask": None})
class Keywords(Net):
    """Keyword-only arguments, None among them; a dataclass with None comes back."""

    def forward(self, *, image: Tensor, scale: Tensor, mask: Tensor | None = None) -> Answer:  # type: ignore[override]
        y = self.a(image) * scale
        y = y if mask is None else y * mask
        return Answer(self.head(self.b(y)))


class Pair(NamedTuple):
    first: Tensor
    rest: dict[str, Any]


@case("a.0.weight", "b.0.weight", inputs=lambda s, b: ({"x": image(s, b), "meta": [1, "a"]}, [drawn(s, b, 3, 8, 8)]))
class NestedInputs(Net):
    def forward(self, batch: dict[str, Any], others: list[Tensor]) -> Pair:  # type: ignore[override]
        y = self.a(batch["x"]) + self.a(others[0])
        return Pair(self.head(self.b(y)), {"none": None, "number": 3, "list": [y.mean((2, 3)).sum(1)]})


@case("a.0.weight", "b.0.weight", inputs=lambda s, b: (image(s, b), drawn(s, b, 3, 6, 10)))
class Siamese(Net):
    """One trunk on two sizes."""

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        one, two = self.b(self.a(x)).mean((2, 3)), self.b(self.a(z)).amax((2, 3))
        return (one - two).norm(dim=1), (one * two).sum(1), self.head(one[..., None, None])


@case("a.0.weight", "b.0.weight")
class ReturnsItsInput(Net):
    def forward(self, x: Tensor) -> Any:
        return {"x": x, "y": super().forward(x), "names": ["y"], "also": (x[:1], None)}


@case("a.0.weight", "b.0.weight", inputs=lambda s, b: drawn(s, 3, 8, 8))
class Unbatched(Net):
    """An image without a batch dimension, added inside."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(0)).squeeze(0)


@case("0.weight", "2.weight", inputs=lambda s, b: drawn(s, 3, 8, 8))
class UnbatchedConvolution(nn.Sequential):
    """torch's convolutions take images without a batch, too."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 2, 1))


# -- modules ----------------------------------------------------------------------------------------------------------


@case("a.0.weight", "b.0.weight")
class OverridesEverything(Net):
    def make(self) -> None:
        self.options = {"slope": 0.1}

    def __getattr__(self, name: str) -> Any:
        if name == "slope":
            return self.options["slope"]
        return super().__getattr__(name)

    def modules(self) -> Any:  # type: ignore[override]
        return "these are my modules"

    def between(self, y: Tensor) -> Tensor:
        return F.leaky_relu(y - 0.5, self.slope)


@case("a.0.weight", "b.0.weight")
class PrefixedState(Net):
    """state_dict puts a prefix before every name, load_state_dict takes it away."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict((f"net.{key}", value) for key, value in super().state_dict(*args, **kwargs).items())

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(
            {key.removeprefix("net."): value for key, value in state.items()}, *args, **kwargs
        )


@case("a.0.weight", "b.0.weight")
class Uncopiable(Net):
    def make(self) -> None:
        self.lock, self.function = threading.Lock(), lambda y: y * 2

    def between(self, y: Tensor) -> Tensor:
        with self.lock:
            return self.function(y)


@case("a.0.weight", "weights.0", "table.k")
class OwnParameters(Net):
    """ParameterList, ParameterDict, and a nested list of parameters in functional layers."""

    def make(self) -> None:
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(6, 8, 3, 3)), nn.Parameter(torch.randn(8, 6, 1, 1))])
        self.table = nn.ParameterDict({"k": nn.Parameter(torch.randn(8, 8)), "b": nn.Parameter(torch.randn(8))})

    def between(self, y: Tensor) -> Tensor:
        for weight in self.weights:
            y = F.conv2d(y, weight, padding=weight.shape[-1] // 2)
        return torch.einsum("bchw,oc->bohw", y, self.table["k"]) + self.table["b"].reshape(1, -1, 1, 1)


@case("a.0.weight", "b.0.weight")
class ChannelBuffers(Net):
    """A mask and a table of positions as buffers, one not kept, an integer one beside."""

    def make(self) -> None:
        self.register_buffer("scale", torch.rand(8) + 0.5)
        self.register_buffer("places", torch.randn(1, 8, 8, 8), persistent=False)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("mask", torch.arange(8) % 3 > 0)

    def between(self, y: Tensor) -> Tensor:
        return y * self.scale.view(-1, 1, 1) * self.mask[:, None, None] + self.places / self.steps


@case("b.0.weight")
class FixedMask(Net):
    """A mask made in the code from a list: it can't shrink."""

    def between(self, y: Tensor) -> Tensor:
        return y * torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1], dtype=y.dtype, device=y.device)[:, None, None]


@case("a.0.weight", "b.0.weight", float64=False, inputs=lambda s, b: image(s, b).float())
class MixedTypes(Net):
    """A part in bfloat16."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 1).double()

    def between(self, y: Tensor) -> Tensor:
        return self.c(y.double()).to(y.dtype)


@case("a.0.weight", "b.0.weight")
class Quantised(Net):
    """Stubs, fake quantisation by rounding straight through."""

    def make(self) -> None:
        self.into, self.out = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()

    def between(self, y: Tensor) -> Tensor:
        y = self.into(y)
        return self.out(y + (torch.round(y * 16).clamp(-128, 127) / 16 - y).detach())


@case("a.0.weight", "b.0.weight")
class CachesShapes(Net):
    """Numbers of its own: the channel count of the last map, told as an attribute of a shape."""

    def make(self) -> None:
        self.seen: Any = None

    def between(self, y: Tensor) -> Tensor:
        if self.seen != y.shape:
            self.seen = y.shape
        return y.reshape(self.seen)


@case("a.0.weight", "b.0.weight")
class KeepsItsWidth(Net):
    """`self.width` is a number of the module's own."""

    def make(self) -> None:
        self.width = 8

    def between(self, y: Tensor) -> Tensor:
        return y.view(y.shape[0], self.width, *y.shape[2:])


@case(refused="output of the network")
class OneConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@case(refused="nothing of")
class NoParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


@case("0.weight", "4.weight", "6.weight")
class OddWidths(nn.Sequential):
    """1, 2, 3 and 7 channels."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1), nn.BatchNorm2d(1), nn.Conv2d(1, 7, 3), nn.ReLU(),
            nn.Conv2d(7, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1),
        )  # fmt: skip


@case("a.0.weight", "b.0.weight")
class NothingTrains(Net):
    def make(self) -> None:
        self.requires_grad_(False)


@case("0.weight")
class Reused(nn.Sequential):
    """One module under three names; sums of itself."""

    def __init__(self) -> None:
        conv = nn.Conv2d(8, 8, 3, padding=1)
        super().__init__(nn.Conv2d(3, 8, 1), conv, nn.BatchNorm2d(8), conv, nn.ReLU(), conv, nn.Conv2d(8, 2, 1))


@case("a.0.weight", "c.weight", inputs=image)
class DifferentInputs(Net):
    """One convolution on two different maps."""

    def make(self) -> None:
        self.c, self.d = nn.Conv2d(8, 8, 1), conv_bn(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.c(self.a(x)) * self.c(self.d(x)).sigmoid()))


@case("a.weight", inputs=tokens)
class Compiled(Tokens):
    """A method decorated by the compiler."""

    def make(self) -> None:
        self.c = nn.Linear(8, 8)

    @torch.compiler.disable
    def between(self, y: Tensor) -> Tensor:
        return self.c(y).relu()
