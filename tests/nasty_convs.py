"""Convolutions of all kinds, shuffles, weights that are computed, tied or unfolded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nasty import Net, case, drawn
from torch import Tensor, nn
from zoo import conv_bn


@case("a.0.weight", "b.0.weight")
class Crelu(Net):
    def make(self) -> None:
        self.b = conv_bn(16, 8)

    def between(self, y: Tensor) -> Tensor:
        return torch.cat([y, -y], 1).relu()


@case("wide.weight")
class MaxoutByView(Net):
    """Pieces stand side by side: (c, 3)."""

    def make(self) -> None:
        self.wide = nn.Conv2d(8, 24, 1)

    def between(self, y: Tensor) -> Tensor:
        y = self.wide(y)
        return y.view(y.shape[0], -1, 3, *y.shape[2:]).max(2)[0]


@case("wide.weight")
class MaxoutOfSlices(Net):
    """Every second channel against its neighbour."""

    def make(self) -> None:
        self.wide = nn.Conv2d(8, 16, 1)

    def between(self, y: Tensor) -> Tensor:
        y = self.wide(y)
        return torch.maximum(y[:, ::2], y[:, 1::2])


@case("a.0.weight", "deep.weight")
class ShuffleOfThree(Net):
    def make(self) -> None:
        self.wide, self.deep, self.b = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 24, 3, padding=1, groups=3), conv_bn(24, 8)

    def between(self, y: Tensor) -> Tensor:
        y = self.deep(self.wide(y))
        b, c, h, w = y.shape
        return y.view(b, 3, c // 3, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)


@case("a.0.weight", "b.0.weight")
class SpaceToDepthBySlicing(Net):
    """YOLOv5's focus layer."""

    def make(self) -> None:
        self.b = conv_bn(32, 8)

    def between(self, y: Tensor) -> Tensor:
        return torch.cat([y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]], 1)


@case("a.0.weight", "b.0.weight")
class SpaceToDepthByView(Net):
    """Block first: (2, 2, c)."""

    def make(self) -> None:
        self.b = conv_bn(32, 8)

    def between(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        return y.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous().view(b, c * 4, h // 2, w // 2)


@case("wide.weight", "b.0.weight")
class DepthToSpaceByView(Net):
    def make(self) -> None:
        self.wide = nn.Conv2d(8, 32, 1)

    def between(self, y: Tensor) -> Tensor:
        y = self.wide(y)
        b, c, h, w = y.shape
        return y.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, h * 2, w * 2)


@case("a.0.weight", "wide.weight")
class ShuffledUpAndDown(Net):
    def make(self) -> None:
        self.wide, self.b = nn.Conv2d(8, 16, 1), conv_bn(16, 8)

    def between(self, y: Tensor) -> Tensor:
        return F.pixel_unshuffle(F.pixel_shuffle(self.wide(y), 2).relu(), 2)


@case("a.0.weight", "up.weight:1", "up.weight")
class GroupedTransposed(Net):
    def make(self) -> None:
        self.up, self.b = nn.ConvTranspose2d(8, 12, 3, 2, 1, groups=2), conv_bn(12, 8)

    def between(self, y: Tensor) -> Tensor:
        return self.up(y, output_size=[16, 16])


@case("a.0.weight", "depth.weight", "b.0.weight")
class DepthwiseMultiplier(Net):
    def make(self) -> None:
        self.depth, self.norm, self.b = nn.Conv2d(8, 24, 3, groups=8, bias=False), nn.BatchNorm2d(24), conv_bn(24, 8)

    def between(self, y: Tensor) -> Tensor:
        return self.norm(self.depth(y))


@case("0.weight", "2.weight", "4.weight", inputs=lambda s, b: drawn(s, b, 3, 12))
class OneDimension(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(3, 8, 3, padding=2, dilation=2, padding_mode="circular"), nn.BatchNorm1d(8),
            nn.ConvTranspose1d(8, 6, 2, 2), nn.MaxPool1d(2), nn.Conv1d(6, 6, 3, groups=3), nn.Flatten(),
            nn.Linear(60, 2),
        )  # fmt: skip


@case("0.weight", "3.weight", inputs=lambda s, b: drawn(s, b, 2, 4, 6, 6))
class ThreeDimensions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(2, 8, 3, padding=1, padding_mode="replicate"), nn.BatchNorm3d(8), nn.ReLU(True),
            nn.Conv3d(8, 8, (1, 3, 3), padding="same"), nn.Dropout3d(), nn.MaxPool3d(2), nn.ConvTranspose3d(8, 2, 2, 2),
        )  # fmt: skip


@case("a.0.weight", "c.weight")
class ReflectedAndCircular(Net):
    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.d = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), padding_mode="circular", groups=2)

    def between(self, y: Tensor) -> Tensor:
        return self.d(self.c(y))


@case("a.0.weight", "b.0.weight")
class UnfoldedByHand(Net):
    """A convolution as unfold, einsum and fold."""

    def make(self) -> None:
        self.weight = nn.Parameter(torch.randn(8, 8, 9))

    def between(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        patches = F.unfold(y, 3, padding=1).view(b, c, 9, h * w)
        return torch.einsum("bckl,ock->bol", patches, self.weight).view(b, -1, h, w)


@case("a.0.weight", "linear.weight")
class Folded(Net):
    def make(self) -> None:
        self.linear = nn.Linear(32, 32)

    def between(self, y: Tensor) -> Tensor:
        patches = F.unfold(y, 2, stride=2).transpose(1, 2)
        return F.fold(self.linear(patches).transpose(1, 2), y.shape[2:], 2, stride=2)


@case("reduce.weight", "b.0.weight")
class Involution(Net):
    """A kernel for every pixel and group of channels: two groups of channels, whose number is written in the code."""

    def make(self) -> None:
        self.reduce, self.span = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 9 * 2, 1)

    def between(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        kernel = self.span(self.reduce(y)).view(b, 2, 1, 9, h, w)
        patches = F.unfold(y, 3, padding=1).view(b, 2, c // 2, 9, h, w)
        return (kernel * patches).sum(3).view(b, c, h, w)


@case("gate.0.weight")
class DynamicConvolution(Net):
    """Experts' kernels mixed sample by sample, the batch folded into groups."""

    def make(self) -> None:
        self.experts = nn.Parameter(torch.randn(4, 8, 8, 3, 3))
        self.gate = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))

    def between(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        mix = self.gate(y.mean((2, 3))).softmax(-1)
        kernels = torch.einsum("bk,koiyx->boiyx", mix, self.experts)
        out = F.conv2d(y.reshape(1, b * c, h, w), kernels.flatten(0, 1), padding=1, groups=b)
        return out.view(b, -1, h, w)


@case("style.weight")
class Modulated(Net):
    """StyleGAN 2: the kernel is scaled by a style and demodulated, the batch folded into groups."""

    def make(self) -> None:
        self.weight, self.style = nn.Parameter(torch.randn(1, 8, 8, 3, 3)), nn.Linear(8, 8)

    def between(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        kernel = self.weight * self.style(y.mean((2, 3))).view(b, 1, c, 1, 1)
        kernel = kernel * torch.rsqrt(kernel.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        out = F.conv2d(y.reshape(1, -1, h, w), kernel.view(-1, *kernel.shape[2:]), padding=1, groups=b)
        return out.view(b, -1, h, w)


@case("a.0.weight", "kernel.0.weight")
class FiltersFromTheImage(Net):
    """Depthwise kernels that another branch predicts, sample by sample."""

    def make(self) -> None:
        self.kernel = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 72))

    def between(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        kernel = self.kernel(y.mean((2, 3))).view(b * c, 1, 3, 3)
        return F.conv2d(y.view(1, b * c, h, w), kernel, padding=1, groups=b * c).view(b, c, h, w)


@case("a.0.weight", "b.0.weight")
class TiedTransposed(Net):
    """An autoencoder whose decoder is the encoder's weight, transposed."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 6, 3, stride=2, padding=1)

    def between(self, y: Tensor) -> Tensor:
        return F.conv_transpose2d(self.c(y).relu(), self.c.weight, stride=2, padding=1, output_padding=1)


@case("a.0.weight", "c.weight")
class TiedLinear(Net):
    def make(self) -> None:
        self.c, self.bias = nn.Linear(8, 6), nn.Parameter(torch.zeros(8))

    def between(self, y: Tensor) -> Tensor:
        y = y.permute(0, 2, 3, 1)
        return F.linear(self.c(y).relu(), self.c.weight.t(), self.bias).permute(0, 3, 1, 2)
