"""What Python can do to a network: writes in place, hooks, control flow, odd inputs and outputs, odd modules."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from nasty import Net, case, drawn, image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import conv_bn

# -- writing ----------------------------------------------------------------------------------------------------------


@case("a.0.weight", "b.0.weight")
class InPlaceOnView(Net):
    """A residual added to a view of half of the channels."""

    def make(self) -> None:
        self.c = nn.Conv2d(4, 4, 1)

    def between(self, y: Tensor) -> Tensor:
        y = y.clone()
        half = y.shape[1] // 2
        first = y[:, :half]
        first += self.c(y[:, half:].clone())
        first.mul_(0.5)
        return y


@case("a.0.weight", "b.0.weight")
class WrittenWithOut(Net):
    """out= arguments; no gradients there."""

    def between(self, y: Tensor) -> Tensor:
        y = y.detach()
        out = torch.empty_like(y)
        torch.mul(y, 2.0, out=out)
        torch.add(out, y, alpha=-0.5, out=out)
        return torch.cat([out[:, :, :4], y[:, :, 4:]], 2, out=torch.empty_like(y))


@case("a.0.weight", "b.0.weight")
class MaskedWrite(Net):
    def between(self, y: Tensor) -> Tensor:
        y = y.clone()
        y[y > 0.5] = 0.0
        y[:, :, 0] = 1.0
        y[..., -1] = y[..., 0]
        y.masked_fill_(y < 0, -0.1)
        return y


@case("b.0.weight", pinned={"a.0.weight": "select"})
class WrittenAtOneChannel(Net):
    """Coordinates replace the first channel."""

    def between(self, y: Tensor) -> Tensor:
        y = y.clone()
        y[:, 0] = torch.linspace(0, 1, y.shape[-1], dtype=y.dtype, device=y.device)
        return y


@case("a.0.weight", "b.0.weight")
class Preallocated(Net):
    """A stack of results written one by one, then summed."""

    def make(self) -> None:
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))

    def between(self, y: Tensor) -> Tensor:
        out = y.new_empty(3, *y.shape)
        for i, layer in enumerate(self.layers):
            out[i] = layer(y)
        return out.sum(0)


@case("a.0.weight", "c.weight", "b.0.weight")
class MutatesItsInput(Net):
    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x if not x.requires_grad else x.clone()
        x *= 2
        x[:, 0] += 1
        return super().forward(x)

    def between(self, y: Tensor) -> Tensor:
        return self.c(y).add_(y).relu_()


@case("a.0.weight", "b.0.weight")
class CopiedInto(Net):
    def between(self, y: Tensor) -> Tensor:
        out = torch.zeros_like(y)
        out.copy_(y)
        out.add_(y.mean((2, 3), keepdim=True)).clamp_(max=2.0)
        return out


@case("a.0.weight", "b.0.weight")
class IndexAdded(Net):
    """Rows of the map added to other rows."""

    def between(self, y: Tensor) -> Tensor:
        rows = torch.tensor([0, 2, 4], device=y.device)
        return y.index_add(2, rows, y.index_select(2, rows + 1)).index_fill(3, rows, 0.25)


# -- autograd, checkpoints, hooks, functional transforms ---------------------------------------------------------------


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * 2 * weight[:, None, None]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return g * 2 * weight[:, None, None], (g * 2 * x).sum((0, 2, 3))


@case("a.0.weight", "b.0.weight")
class CustomFunction(Net):
    def make(self) -> None:
        self.weight = nn.Parameter(torch.ones(8))

    def between(self, y: Tensor) -> Tensor:
        return Doubled.apply(y, self.weight)


@case("a.0.weight", "c.0.weight", "b.0.weight")
class Checkpointed(Net):
    def make(self) -> None:
        self.c = conv_bn(8, 8)

    def between(self, y: Tensor) -> Tensor:
        y = checkpoint(self.c, y, use_reentrant=False)
        return checkpoint(self.c, y, use_reentrant=True) if y.requires_grad else self.c(y)


@case("a.0.weight", "b.0.weight", "c.weight")
class StoppedGradients(Net):
    """no_grad regions, detach, inference of a teacher branch."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.c(y).sigmoid()
        return y * target + (target - y).detach() + self.c(y.detach())


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def shifted(module: nn.Module, args: Any) -> Any:
    return (args[0] + 0.5,)


@case("a.0.weight", "b.0.weight", "c.weight")
class Hooked(Net):
    """Hooks that change inputs and outputs stay, and go on working."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)
        self.c.register_forward_hook(doubled)
        self.c.register_forward_pre_hook(shifted)

    def between(self, y: Tensor) -> Tensor:
        return self.c(y)


@case("a.0.weight", "b.0.weight")
class TapsByHook(Net):
    """Features are collected by hooks into a dict of the network."""

    def make(self) -> None:
        self.taps: dict[str, Tensor] = {}
        self.side = nn.Conv2d(8, 2, 1)
        self.a.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.taps["a"] = output

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), self.side(self.taps.pop("a"))


@case("b.0.weight", pinned={"a.0.weight": "output of the network"})
class InnerMapReturned(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        return self.head(self.b(y)), y


@torch.jit.script
def mish_script(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


@case("a.0.weight", "b.0.weight")
class ScriptedPart(Net):
    def between(self, y: Tensor) -> Tensor:
        return mish_script(y)


@case("a.0.weight", "c.weight", inputs=image)
class Vmapped(Net):
    """Sample by sample."""

    def make(self) -> None:
        self.c = nn.Linear(8, 8)

    def between(self, y: Tensor) -> Tensor:
        return torch.vmap(lambda t: self.c(t.permute(1, 2, 0)).permute(2, 0, 1) * t)(y)


@case("b.0.weight")
class GradientInside(Net):
    """A step along a gradient, taken in forward."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 1, 1)

    def between(self, y: Tensor) -> Tensor:
        with torch.enable_grad():
            z = y.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.c(z).square().sum(), z)
        return y - 0.1 * g.detach()


@case("a.0.weight", "b.0.weight")
class FourierOverSpace(Net):
    """A filter in the frequency domain, complex parameters per channel."""

    def make(self) -> None:
        self.filter = nn.Parameter(torch.randn(8, 8, 5, 2))

    def between(self, y: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(y, norm="ortho") * torch.view_as_complex(self.filter)
        return torch.fft.irfft2(spectrum, s=y.shape[-2:], norm="ortho")


@case("b.0.weight")
class FourierOverChannels(Net):
    def between(self, y: Tensor) -> Tensor:
        return torch.fft.fft2(torch.fft.fft(y, dim=1), dim=(2, 3)).real


# -- control flow -----------------------------------------------------------------------------------------------------


@case("a.0.weight", "b.0.weight", "c.0.weight")
class OtherPathWhenTraining(Net):
    """The side branch runs in train mode only, another layer in eval mode only."""

    def make(self) -> None:
        self.c, self.side, self.calm = conv_bn(8, 6), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        return y + self.side(self.c(y)) if self.training else y + self.calm(y)


@case("a.0.weight", "b.0.weight")
class DependsOnShape(Net):
    def between(self, y: Tensor) -> Tensor:
        while y.shape[-1] > 2:
            y = F.avg_pool2d(y, 2) if y.shape[-1] % 2 == 0 else y[..., :-1]
        return y if y.dim() == 4 else y[None]


@case("a.0.weight", "b.0.weight")
class DependsOnValue(Net):
    def between(self, y: Tensor) -> Tensor:
        if y.sum().item() > 1e9 or bool((y.sum() > 1e9).any()):
            return -y
        return y * float(y.new_tensor(0.5))


@case("b.0.weight")
class ScaledByMeanValue(Net):
    """A number computed from all channels, read by Python."""

    def between(self, y: Tensor) -> Tensor:
        return y / y.abs().mean().item()


@case("a.0.weight", "b.0.weight", pinned={"c.weight": "never used"})
class UnusedParts(Net):
    """Never used, frozen, and in a plain list as well."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)
        self.alone = nn.Parameter(torch.randn(8, 8))
        self.layers = [self.a, self.b]
        for parameter in self.a.parameters():
            parameter.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@case("b.0.weight", pinned={"a.0.weight": "size"})
class SizeInTheCode(Net):
    def between(self, y: Tensor) -> Tensor:
        return y.view(y.shape[0], 8, -1).sin().view(y.shape[0], 8, *y.shape[2:])


@case("b.0.weight")
class SizeInTheCodeThatDoesNotMatter(Net):
    def between(self, y: Tensor) -> Tensor:
        return y.view(y.shape[0], 8, -1).sin().view(*y.shape)


@case("a.0.weight", "b.0.weight")
class SizesFromTheTensor(Net):
    def between(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        y = y.contiguous().view(b * c, 1, h, w)
        y = F.conv2d(y, torch.ones(1, 1, 3, 3, dtype=y.dtype, device=y.device) / 9, padding=1)
        return y.view(b, c, h, w).reshape(b, -1, h * w).unflatten(2, (h, w))


@case("a.0.weight", "b.0.weight")
class StochasticDepth(Net):
    """Whole samples are dropped when training."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 3, padding=1)

    def between(self, y: Tensor) -> Tensor:
        z = self.c(y)
        if self.training:
            z = (
                z
                * torch.rand(z.shape[0], *[1] * (z.dim() - 1), dtype=z.dtype, device=z.device).add_(0.7).floor_()
                / 0.7
            )
        return y + z


@case("a.0.weight", "b.0.weight")
class DropBlock(Net):
    def between(self, y: Tensor) -> Tensor:
        if self.training:
            noise = (torch.rand(y.shape[0], 1, *y.shape[2:], dtype=y.dtype, device=y.device) < 0.1).to(y.dtype)
            mask = 1 - F.max_pool2d(noise, 3, 1, 1)
            y = y * mask * mask.numel() / mask.sum().clamp(min=1)
        return F.dropout2d(y, 0.0, self.training)


@case("stem.weight", "layers.0.weight", "layers.999.weight", inputs=lambda s, b: drawn(s, b, 3))
class Deep(nn.Module):
    """A thousand layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(1000))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + 0.01 * layer(x).tanh()
        return self.head(x)


class Nested(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.inner = Nested(depth - 1) if depth else None

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu() if self.inner is None else x + self.inner(self.conv(x).tanh())


@case("0.weight", "1.inner.inner.conv.weight")
class NestedModules(nn.Sequential):
    """Modules inside modules inside modules."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 1), Nested(25), nn.Conv2d(4, 2, 1))
