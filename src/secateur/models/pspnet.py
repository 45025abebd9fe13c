"""PSPNet: a dilated ResNet, pyramid pooling, and an auxiliary head while training.

Zhao, Shi, Qi, Wang, Jia, "Pyramid Scene Parsing Network", CVPR 2017, https://arxiv.org/abs/1612.01105. The counts
published with channel pruning (70 437 350 parameters, 19 classes, ResNet-101) are those of the variant with a stem of
three 3x3 convolutions whose max-pool rounds up, and with activated batch norm in the heads.
"""

from __future__ import annotations

from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.models.pyramid import PyramidPooling, activated
from secateur.models.resnet import Trunk


class PSPNet(nn.Module):
    """See `pspnet50` and `pspnet101`.

    Args:
        depths: blocks of the trunk's four stages.
        classes: channels of the output.
        width: channels of the first stage; 64 is the published network, 16 has a quarter of its channels everywhere.
        stem: "deep", the published three 3x3 convolutions, or "7x7", torchvision's, whose weights then fit the trunk.
        auxiliary: the second head, on the third stage; it is used in train mode alone.
        activated_bn: leaky ReLU in the heads' batch norms; otherwise ReLUs behind them.

    Shapes: (N, 3, H, W) -> logits (N, classes, h, w), for any H and W; h and w are about an eighth of them, 90 for 713.
    In train mode the two heads' logits, (main, auxiliary).

    auxiliary_weights: what the auxiliary head's loss counts next to the main head's, 0.4 as in the paper's section 4.
    """

    auxiliary_weights = (0.4,)

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        classes: int = 19,
        width: int = 64,
        stem: str = "deep",
        auxiliary: bool = True,
        activated_bn: bool = True,
    ) -> None:
        super().__init__()
        if classes < 1 or width < 1:
            raise ModelError(f"PSPNet needs at least 1 class and width 1, got classes={classes}, width={width}")
        third, fourth, head = 16 * width, 32 * width, 8 * width  # 1024, 2048, 512
        self.trunk = Trunk(depths, width=width, stem=stem, ceil_mode=True, dilations=(1, 1, 2, 4))
        self.pyramid = PyramidPooling(fourth, head, activated_bn)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(head, classes, 1)
        self.auxiliary = None
        if auxiliary:
            parts = activated(nn.Conv2d(third, head, 3, padding=1), activated_bn)
            parts.update(dropout=nn.Dropout2d(0.1), classifier=nn.Conv2d(head, classes, 1))
            self.auxiliary = nn.Sequential(parts)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.trunk.layer2(self.trunk.layer1(self.trunk.begin(image)))
        third = self.trunk.layer3(x)
        logits = self.classifier(self.dropout(self.pyramid(self.trunk.layer4(third))))
        if self.training and self.auxiliary is not None:
            return logits, self.auxiliary(third)
        return logits


def pspnet50(
    classes: int = 19, width: int = 64, stem: str = "deep", auxiliary: bool = True, activated_bn: bool = True
) -> PSPNet:
    """PSPNet with a ResNet-50: dilated trunk, pyramid pooling, an auxiliary head while training."""
    return PSPNet((3, 4, 6, 3), classes, width, stem, auxiliary, activated_bn)


def pspnet101(
    classes: int = 19, width: int = 64, stem: str = "deep", auxiliary: bool = True, activated_bn: bool = True
) -> PSPNet:
    """PSPNet with a ResNet-101: dilated trunk, pyramid pooling, an auxiliary head while training."""
    return PSPNet((3, 4, 23, 3), classes, width, stem, auxiliary, activated_bn)
