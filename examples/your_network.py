"""A network as anybody might write it: secateur has never heard of it."""

import torch
from torch import nn


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class YourNetwork(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.down, self.deep, self.residual = block(3, 16), block(16, 32), block(32, 32)
        self.up, self.head = block(16 + 32, 16), nn.Conv2d(16, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skip = self.down(image)
        x = self.deep(nn.functional.max_pool2d(skip, 2))
        x = nn.functional.interpolate(x + self.residual(x), scale_factor=2)
        return self.head(self.up(torch.cat([skip, x], dim=1)))
