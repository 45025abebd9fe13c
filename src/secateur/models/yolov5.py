"""YOLOv5 in the layout of release 5.0: a detector with three levels, in four sizes.

Written from descriptions: a backbone of cross-stage partial blocks (see `csp`) that ends in spatial pyramid pooling;
a neck that goes up and down again, Liu et al., "Path Aggregation Network for Instance Segmentation", CVPR 2018,
https://arxiv.org/abs/1803.01534, with concatenations for sums; per level a 1x1 convolution. The anchors are those of
Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018, https://arxiv.org/abs/1804.02767, section 2.3. The
sizes s, m, l, x have stems of 32, 48, 64, 80 channels and 1, 2, 3, 4 bottlenecks where there are few, three times
that many in the middle of the backbone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from secateur.detection import decode
from secateur.errors import ModelError
from secateur.models.csp import C3, SPP, ConvBlock, Focus
from secateur.models.yolov5_names import own_name

STRIDES = (8, 16, 32)
ANCHORS = (  # width, height in pixels
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
PRIOR = 0.01  # of objectness and of every class, before training


class Backbone(nn.Module):
    """(N, 3, H, W) -> features at 1/8, 1/16 and 1/32 of the size with 4, 8 and 16 times `width` channels."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.focus = Focus(3, width)
        self.down4, self.stage4 = ConvBlock(width, 2 * width, 3, 2), C3(2 * width, 2 * width, depth)
        self.down8, self.stage8 = ConvBlock(2 * width, 4 * width, 3, 2), C3(4 * width, 4 * width, 3 * depth)
        self.down16, self.stage16 = ConvBlock(4 * width, 8 * width, 3, 2), C3(8 * width, 8 * width, 3 * depth)
        self.down32, self.pyramid = ConvBlock(8 * width, 16 * width, 3, 2), SPP(16 * width)
        self.stage32 = C3(16 * width, 16 * width, depth, shortcut=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at8 = self.stage8(self.down8(self.stage4(self.down4(self.focus(image)))))
        at16 = self.stage16(self.down16(at8))
        return at8, at16, self.stage32(self.pyramid(self.down32(at16)))


class Neck(nn.Module):
    """The three features, each told of the coarser and then of the finer ones; of the same shapes."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        fine, middle, coarse = 4 * width, 8 * width, 16 * width
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.narrow32, self.up16 = ConvBlock(coarse, middle), C3(2 * middle, middle, depth, shortcut=False)
        self.narrow16, self.up8 = ConvBlock(middle, fine), C3(2 * fine, fine, depth, shortcut=False)
        self.down16, self.out16 = ConvBlock(fine, fine, 3, 2), C3(2 * fine, middle, depth, shortcut=False)
        self.down32, self.out32 = ConvBlock(middle, middle, 3, 2), C3(2 * middle, coarse, depth, shortcut=False)

    def forward(self, at8: Tensor, at16: Tensor, at32: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        narrow32 = self.narrow32(at32)
        narrow16 = self.narrow16(self.up16(torch.cat([self.upsample(narrow32), at16], 1)))
        out8 = self.up8(torch.cat([self.upsample(narrow16), at8], 1))
        out16 = self.out16(torch.cat([self.down16(out8), narrow16], 1))
        return out8, out16, self.out32(torch.cat([self.down32(out16), narrow32], 1))


class Detect(nn.Module):
    """A 1x1 convolution per level, to (5 + classes) numbers per anchor.

    Attributes:
        anchors: a buffer (levels, A, 2), width and height in cells of their level.
    """

    anchors: Tensor

    def __init__(self, channels: tuple[int, ...], classes: int) -> None:
        super().__init__()
        in_pixels, strides = torch.tensor(ANCHORS, dtype=torch.float32), torch.tensor(STRIDES, dtype=torch.float32)
        self.register_buffer("anchors", in_pixels / strides[:, None, None])
        self.values = 5 + classes
        per_cell = in_pixels.shape[1]
        self.heads = nn.ModuleList(nn.Conv2d(before, per_cell * self.values, 1) for before in channels)
        for head in self.heads:  # sigmoid(bias) is the prior: Lin et al., "Focal Loss for Dense Object Detection", 2017
            bias = head.get_parameter("bias").detach().view(per_cell, self.values)
            bias[:, 4:] = -math.log((1 - PRIOR) / PRIOR)

    def forward(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        """Per level (N, C, h, w) -> (N, A, h, w, 5 + classes), before the sigmoid; see `decode`."""
        maps = []
        for head, x in zip(self.heads, features, strict=True):
            raw = head(x)
            shape = (raw.shape[0], self.anchors.shape[1], self.values, *raw.shape[2:])
            maps.append(raw.view(shape).permute(0, 1, 3, 4, 2))
        return maps


class YOLOv5(nn.Module):
    """See `yolov5s`, `yolov5m`, `yolov5l` and `yolov5x`.

    Args:
        depth: bottlenecks per block, three times that many in the middle of the backbone.
        classes: that objects can be of.
        width: channels of the stem; all others scale along.

    Shapes: (N, 3, H, W), H and W multiples of 32 -> in train mode the maps (N, 3, H / s, W / s, 5 + classes) for s of
    8, 16 and 32; in eval mode (decoded, maps), with decoded (N, boxes, 5 + classes), see `secateur.detection.decode`.

    Attributes:
        classifiers: the tensors that depend on the number of classes.
        released_name: what a tensor of released weights is called here.

    Raises:
        ModelError: an image's height or width is no multiple of 32.
    """

    classifiers = tuple(f"detect.heads.{i}.{what}" for i in range(len(STRIDES)) for what in ("weight", "bias"))
    released_name = staticmethod(own_name)

    def __init__(self, depth: int, classes: int, width: int) -> None:
        super().__init__()
        if classes < 1 or width < 1:
            raise ModelError(f"YOLOv5 needs at least 1 class and width 1, got classes={classes}, width={width}")
        self.backbone, self.neck = Backbone(width, depth), Neck(width, depth)
        self.detect = Detect((4 * width, 8 * width, 16 * width), classes)

    def forward(self, image: Tensor) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        height, width = image.shape[-2:]
        if height % STRIDES[-1] or width % STRIDES[-1]:
            raise ModelError(
                f"YOLOv5 sees images whose height and width are multiples of {STRIDES[-1]}, not {height}x{width}; "
                "secateur.detection.Letterbox brings them to such a size"
            )
        maps = self.detect(self.neck(*self.backbone(image)))
        return maps if self.training else (decode(maps, self.detect.anchors, STRIDES), maps)


def yolov5s(classes: int = 80, width: int = 32) -> YOLOv5:
    """YOLOv5s, the smallest detector of release 5.0."""
    return YOLOv5(1, classes, width)


def yolov5m(classes: int = 80, width: int = 48) -> YOLOv5:
    """YOLOv5m, a detector: cross-stage partial blocks, spatial pyramid, path aggregation, three levels."""
    return YOLOv5(2, classes, width)


def yolov5l(classes: int = 80, width: int = 64) -> YOLOv5:
    """YOLOv5l, wider and deeper than YOLOv5m."""
    return YOLOv5(3, classes, width)


def yolov5x(classes: int = 80, width: int = 80) -> YOLOv5:
    """YOLOv5x, the widest and deepest."""
    return YOLOv5(4, classes, width)
