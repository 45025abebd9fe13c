"""Pyramid pooling, the head of PSPNet and ICNet, and the batch norm with an activation that both are trained with.

Zhao, Shi, Qi, Wang, Jia, "Pyramid Scene Parsing Network", CVPR 2017, https://arxiv.org/abs/1612.01105. Rota Bulò,
Porzi, Kontschieder, "In-Place Activated BatchNorm for Memory-Optimized Training of DNNs", CVPR 2018,
https://arxiv.org/abs/1712.02616: of that, the function is here (batch norm, then leaky ReLU), without what saves
memory.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BINS = (1, 2, 3, 6)  # rows and columns that the feature map is averaged to


class ActivatedBN(nn.BatchNorm2d):
    """Batch norm and a leaky ReLU in one module.

    Where a channel has a single value - one image, averaged to one pixel - there is no variance, and the running
    statistics are used in training, too; PyTorch's own batch norm refuses.

    Args:
        channels: of input and output.
        slope: of the leaky ReLU below zero; None leaves it out.
    """

    def __init__(self, channels: int, slope: float | None = 0.01) -> None:
        super().__init__(channels)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        else:
            y = super().forward(x)
        return y if self.slope is None else F.leaky_relu(y, self.slope)


def activated(conv: nn.Conv2d, activated_bn: bool) -> OrderedDict[str, nn.Module]:
    """A convolution with activated batch norm; or with a batch norm, and a ReLU that is a module of its own."""
    parts = OrderedDict[str, nn.Module](conv=conv)
    parts["bn"] = ActivatedBN(conv.out_channels, slope=0.01 if activated_bn else None)
    if not activated_bn:
        parts["relu"] = nn.ReLU(inplace=True)
    return parts


class PyramidPooling(nn.Module):
    """The feature map averaged to 1, 2, 3 and 6 bins, each projected and brought back to size, beside the map itself.

    Args:
        before: channels of the feature map.
        after: channels of each projection, and of the 3x3 convolution that puts everything together.
        activated_bn: leaky ReLU in the batch norms; otherwise ReLUs behind them.

    Shapes: (N, before, H, W) -> (N, after, H, W).
    """

    def __init__(self, before: int, after: int, activated_bn: bool = True) -> None:
        super().__init__()
        self.bins = nn.ModuleList()
        for size in BINS:
            projection = activated(nn.Conv2d(before, after, 1, bias=False), activated_bn)
            self.bins.append(nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(size), **projection)))
        everything = before + len(BINS) * after
        self.fuse = nn.Sequential(activated(nn.Conv2d(everything, after, 3, padding=1, bias=False), activated_bn))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        bins = [F.interpolate(part(x), size=size, mode="bilinear", align_corners=True) for part in self.bins]
        return self.fuse(torch.cat([*bins, x], dim=1))
