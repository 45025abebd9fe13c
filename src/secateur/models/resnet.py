"""ResNets: the trunks of PSPNet and ICNet, torchvision's ResNet-50 and 101, and ResNet-18 for images of 32x32.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385.
Bottlenecks halve the resolution in their 3x3 convolution, not in the first 1x1, and parameters have the names that
torchvision gives them, so that ImageNet weights in that format fit. The CIFAR network is the one that ACoSP prunes:
ResNet-18 whose first convolution is 3x3 with stride 1, its max-pool kept.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from secateur.errors import ModelError, nearest

STEMS = ("7x7", "deep", "3x3")


class Trunk(nn.Module):
    """The convolutions of a ResNet.

    Args:
        depths: blocks of each of the four stages.
        bottleneck: blocks of 1x1, 3x3, 1x1 with four times the channels at the end; otherwise of two 3x3.
        width: channels of the first stage's 3x3 convolutions.
        stem: "7x7" (stride 2, torchvision's), "deep" (three 3x3, the first with stride 2, the last twice as wide: the
            stem of PSPNet) or "3x3" (stride 1, for small images).
        pool: max-pooling behind the stem.
        ceil_mode: whether it rounds sizes up.
        dilations: of each stage's 3x3 convolutions; a stage with dilation keeps its resolution.

    Shapes: (N, 3, H, W) -> features (N, 32 * width, H / 32, W / 32), without bottlenecks (N, 8 * width, ...); every
    dilated stage and everything of the stem that keeps its resolution makes them larger.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        bottleneck: bool = True,
        width: int = 64,
        stem: str = "7x7",
        pool: bool = True,
        ceil_mode: bool = False,
        dilations: tuple[int, int, int, int] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ModelError(f"stem {stem!r}; {nearest(stem, STEMS)}")
        if stem == "7x7":
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, stride=2 if stem == "deep" else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        channels = width
        if stem == "deep":
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width)
            channels = 2 * width
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=ceil_mode) if pool else nn.Identity()
        self.stem, block = stem, Bottleneck if bottleneck else BasicBlock
        stages: list[nn.Sequential] = []
        for number, (depth, dilation) in enumerate(zip(depths, dilations, strict=True)):
            blocks: list[nn.Module] = []
            for i in range(depth):
                stride = 2 if number > 0 and i == 0 and dilation == 1 else 1
                blocks.append(block(channels, width * 2**number, stride, dilation))
                channels = width * 2**number * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def begin(self, image: Tensor) -> Tensor:
        """The stem and its pooling."""
        x = self.relu(self.bn1(self.conv1(image)))
        if self.stem == "deep":
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.relu(self.bn3(self.conv3(x)))
        return self.maxpool(x)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(self.begin(image)))))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 around which the input goes, or its projection where the shapes differ."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(before, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input goes, or its projection where the shapes differ."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _projection(before: int, after: int, stride: int) -> nn.Sequential | None:
    if before == after and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


class ResNet(Trunk):
    """A classifier of whole images: a trunk, the mean over all pixels, a linear layer.

    Args:
        depths, classes, width: blocks of each stage, outputs, channels of the first stage.
        options: see `Trunk`.

    Shapes: (N, 3, H, W) -> logits (N, classes).
    """

    def __init__(self, depths: tuple[int, int, int, int], classes: int, width: int = 64, **options: Any) -> None:
        if classes < 1 or width < 1:
            raise ModelError(f"ResNet needs at least 1 class and width 1, got classes={classes}, width={width}")
        super().__init__(depths, width=width, **options)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear((32 if options.get("bottleneck", True) else 8) * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.avgpool(super().forward(image)).flatten(1))


def resnet50(classes: int = 1000, width: int = 64) -> ResNet:
    """ResNet-50, a classifier of whole images as in torchvision, whose weights fit."""
    return ResNet((3, 4, 6, 3), classes, width)


def resnet101(classes: int = 1000, width: int = 64) -> ResNet:
    """ResNet-101, a classifier of whole images as in torchvision, whose weights fit."""
    return ResNet((3, 4, 23, 3), classes, width)


def resnet18_cifar(classes: int = 10, width: int = 64, max_pool: bool = True) -> ResNet:
    """ResNet-18 for 32x32 images: 3x3 stem of stride 1; ACoSP's keeps the max-pool, most others leave it out."""
    return ResNet((2, 2, 2, 2), classes, width, bottleneck=False, stem="3x3", pool=max_pool)
