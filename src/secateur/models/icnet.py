"""ICNet: three branches at full, half and quarter size, fused from the smallest up.

Zhao, Qi, Shen, Shi, Jia, "ICNet for Real-Time Semantic Segmentation on High-Resolution Images", ECCV 2018,
https://arxiv.org/abs/1704.08545. The counts published with channel pruning (12 214 521 parameters, 19 classes) are
those of the variant below: PSPNet-50's trunk of half the width, pyramid pooling whose bins are concatenated, not added.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ModelError
from secateur.models.pyramid import PyramidPooling
from secateur.models.resnet import Trunk


class ICNet(nn.Module):
    """Three branches at full, half and quarter size, fused from the smallest up.

    Args:
        classes: channels of the output.
        width: channels of the first stage; 32 is the published network, 8 has a quarter of its channels everywhere.
        auxiliary: the side heads of both fusions; they are used in train mode alone.
        activated_bn: leaky ReLU in the pyramid pooling's batch norms; otherwise ReLUs behind them.

    Shapes: (N, 3, H, W) -> logits (N, classes, H / 4, W / 4), for any H and W of 32 or more. In train mode three heads'
    logits, the main head's and those of the side heads at 1/8 and 1/16.

    auxiliary_weights: what the losses of the side heads count next to the main head's: 0.4 and 0.16, as the public
        trainings of the authors' weights have it; others take 0.4 for both.
    """

    auxiliary_weights = (0.4, 0.16)

    def __init__(self, classes: int = 19, width: int = 32, auxiliary: bool = True, activated_bn: bool = True) -> None:
        super().__init__()
        if classes < 1 or width < 1:
            raise ModelError(f"ICNet needs at least 1 class and width 1, got classes={classes}, width={width}")
        half, pooled, fused = 8 * width, 8 * width, 4 * width  # 256, 256, 128
        self.full = nn.Sequential(_halving(3, width), _halving(width, width), _halving(width, 2 * width))
        self.trunk = Trunk((3, 4, 6, 3), width=width, stem="deep", dilations=(1, 1, 2, 4))
        self.pyramid = PyramidPooling(32 * width, pooled, activated_bn)
        self.fusion24 = Fusion(pooled, half, fused, classes if auxiliary else None)
        self.fusion12 = Fusion(fused, 2 * width, fused, classes if auxiliary else None)
        self.classifier = nn.Conv2d(fused, classes, 1)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        half = self.trunk.layer2(self.trunk.layer1(self.trunk.begin(_scaled(image, 0.5))))
        quarter = self.pyramid(self.trunk.layer4(self.trunk.layer3(_scaled(half, 0.5))))
        x, side24 = self.fusion24(quarter, half)
        x, side12 = self.fusion12(x, self.full(image))
        logits = self.classifier(_scaled(x, 2.0))
        return logits if side12 is None or side24 is None else (logits, side12, side24)


class Fusion(nn.Module):
    """Puts a map of low resolution, upsampled, and one of high resolution together.

    Args:
        low, high: channels of the two maps.
        after: channels of the sum.
        classes: channels of the side head; None for no side head.

    Shapes: (N, low, h, w) and (N, high, H, W) -> (N, after, H, W), and in train mode the side head's logits
    (N, classes, H, W), else None.
    """

    def __init__(self, low: int, high: int, after: int, classes: int | None) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(low, after, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(after))
        self.high = nn.Sequential(nn.Conv2d(high, after, 1, bias=False), nn.BatchNorm2d(after))
        self.side = None if classes is None else nn.Conv2d(low, classes, 1)

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor | None]:
        low = F.interpolate(low, size=high.shape[-2:], mode="bilinear", align_corners=True)
        side = self.side(low) if self.training and self.side is not None else None
        return F.relu(self.low(low) + self.high(high)), side


def _halving(before: int, after: int) -> nn.Sequential:
    parts = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(before, after, 3, stride=2, padding=1), bn=nn.BatchNorm2d(after), relu=nn.ReLU(inplace=True)
    )
    return nn.Sequential(parts)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)
