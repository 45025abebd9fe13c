"""The blocks that YOLOv5 is made of.

Wang et al., "CSPNet: A New Backbone that can Enhance Learning Capability of CNN", CVPR workshops 2020,
https://arxiv.org/abs/1911.11929; He, Zhang, Ren, Sun, "Spatial Pyramid Pooling in Deep Convolutional Networks for
Visual Recognition", ECCV 2014, https://arxiv.org/abs/1406.4729.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, SiLU; (N, before, H, W) -> (N, after, H / stride, W / stride)."""

    def __init__(self, before: int, after: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Focus(nn.Module):
    """Every 2x2 pixels become one with four times the channels, then a 3x3 convolution.

    Shapes: (N, before, H, W) -> (N, after, H / 2, W / 2), for even H and W.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = ConvBlock(4 * before, after, 3)

    def forward(self, image: Tensor) -> Tensor:
        places = [image[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(places, 1))


class Bottleneck(nn.Module):
    """1x1 and 3x3 of the same width, and around both a shortcut if there is one; (N, C, H, W) -> the same."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.second = ConvBlock(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """A cross-stage partial block of three 1x1 convolutions: bottlenecks on one half, the other half past them.

    Args:
        before, after: channels; each half has half of the latter.
        depth: bottlenecks.
        shortcut: whether they have one.

    Shapes: (N, before, H, W) -> (N, after, H, W).
    """

    def __init__(self, before: int, after: int, depth: int, shortcut: bool = True) -> None:
        super().__init__()
        half = after // 2
        self.through, self.past = ConvBlock(before, half), ConvBlock(before, half)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut) for _ in range(depth)))
        self.join = ConvBlock(2 * half, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.blocks(self.through(x)), self.past(x)], 1))


class SPP(nn.Module):
    """The map beside its maxima over windows of several sizes; (N, C, H, W) -> the same."""

    def __init__(self, channels: int, windows: tuple[int, ...] = (5, 9, 13)) -> None:
        super().__init__()
        half = channels // 2
        self.narrow = ConvBlock(channels, half)
        self.pools = nn.ModuleList(nn.MaxPool2d(window, stride=1, padding=window // 2) for window in windows)
        self.join = ConvBlock(half * (1 + len(windows)), channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        return self.join(torch.cat([x, *(pool(x) for pool in self.pools)], 1))
