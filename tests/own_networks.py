"""Segmentation networks as a user might bring them, for tests: of no paper, in styles of their own."""

from __future__ import annotations

import torch
from torch import nn


class Squeezed(nn.Module):
    """A U-Net with squeeze-and-excitation, transposed convolutions and concatenated skips."""

    def __init__(self, classes: int = 5, width: int = 8) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.ModuleDict:
            return nn.ModuleDict({
                "conv": nn.Conv2d(a, b, 3, padding=1, bias=False), "bn": nn.BatchNorm2d(b),
                "down": nn.Conv2d(b, max(2, b // 4), 1), "up": nn.Conv2d(max(2, b // 4), b, 1),
            })  # fmt: skip

        w = width
        self.enc = nn.ModuleList([block(3, w), block(w, 2 * w), block(2 * w, 4 * w)])
        self.rise = nn.ModuleList([nn.ConvTranspose2d(4 * w, 2 * w, 2, 2), nn.ConvTranspose2d(2 * w, w, 2, 2)])
        self.dec = nn.ModuleList([block(4 * w, 2 * w), block(2 * w, w)])
        self.head = nn.Conv2d(w, classes, 1)

    @staticmethod
    def run(block: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
        x = block["bn"](block["conv"](x)).relu()
        return x * block["up"](block["down"](x.mean((2, 3), keepdim=True)).relu()).sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i, block in enumerate(self.enc):
            x = self.run(block, nn.functional.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for rise, block, skip in zip(self.rise, self.dec, skips[-2::-1], strict=True):
            x = self.run(block, torch.cat([rise(x), skip], 1))
        return self.head(x)


class Residual(nn.Module):
    """A residual trunk, one block with a shortcut that changes the width, and logits at a quarter of the size."""

    def __init__(self, classes: int = 4, width: int = 16) -> None:
        super().__init__()

        def conv(a: int, b: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(b))

        w = width
        self.stem, self.first = conv(3, w), nn.Sequential(conv(w, w - 4), nn.ReLU(), conv(w - 4, w))
        self.second = nn.Sequential(conv(w, w + 8, 2), nn.ReLU(), conv(w + 8, 2 * w))
        self.short = conv(w, 2 * w, 2, 1)
        self.third = nn.Sequential(conv(2 * w, w + 4), nn.ReLU(), conv(w + 4, 2 * w))
        self.head = nn.Conv2d(2 * w, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.stem(x).relu(), 2)
        x = (x + self.first(x)).relu()
        x = (self.short(x) + self.second(x)).relu()
        x = (x + self.third(x)).relu()
        return nn.functional.interpolate(self.head(x), scale_factor=4.0, mode="bilinear")


def residual(classes: int, width: int) -> Residual:
    """A factory, as recipes name one."""
    return Residual(classes, width)
