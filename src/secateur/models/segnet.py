"""SegNet: an encoder that remembers where each maximum was, and a decoder that puts it back there.

Badrinarayanan, Kendall, Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
PAMI 2017, https://arxiv.org/abs/1511.00561. The counts published with channel pruning (29 454 009 parameters and
326.588 GFLOPs with 19 classes at 512x1024) are those of an arrangement in which the classifier, too, is followed by BN
and ReLU: that is the default here.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict

import torch
from torch import Tensor, nn

from secateur.errors import ModelError

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # VGG-16: channels and convolutions of each encoder stage


class SegNet(nn.Module):
    """VGG-16's 13 convolutions down, 13 up, all 3x3 with bias, BN and ReLU; max-unpooling with the encoder's indices.

    Args:
        classes: channels of the output.
        width: channels of the first stage; 64 is the published network, 16 has a quarter of its channels everywhere.
        bare_classifier: leave out the BN and the ReLU behind the last convolution, as the SegNet paper draws it.

    Shapes: (N, 3, H, W) -> logits (N, classes, H, W), for any H and W of 32 or more.
    Modules: `encoder.stage1 .. stage5` and `decoder.stage5 .. stage1`, each of `block1 ..` with `conv`, `bn`, `relu`.
    """

    def __init__(self, classes: int = 11, width: int = 64, bare_classifier: bool = False) -> None:
        super().__init__()
        if classes < 1 or width < 1:
            raise ModelError(f"SegNet needs at least 1 class and width 1, got classes={classes}, width={width}")
        stages = [(max(1, channels * width // 64), convolutions) for channels, convolutions in STAGES]
        self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        before = 3
        for number, (channels, convolutions) in enumerate(stages, start=1):
            self.encoder[f"stage{number}"] = _stage([before] + [channels] * convolutions)
            before = channels
        for number in range(len(stages), 0, -1):
            channels, convolutions = stages[number - 1]
            after = stages[number - 2][0] if number > 1 else classes
            self.decoder[f"stage{number}"] = _stage(
                [channels] * convolutions + [after], bare_end=bare_classifier and number == 1
            )
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        pooled: list[tuple[Tensor, torch.Size]] = []
        for stage in self.encoder.values():
            x = stage(x)
            size = x.shape[-2:]
            x, indices = self.pool(x)
            pooled.append((indices, size))
        for stage in self.decoder.values():
            indices, size = pooled.pop()
            # The size is stated, since the pooling floors: 45 rows become 22 and must become 45 again.
            x = stage(self.unpool(x, indices, output_size=size))
        return x


def _stage(channels: list[int], bare_end: bool = False) -> nn.Sequential:
    """Blocks of conv, BN, ReLU through the listed widths; with `bare_end` the last one is the convolution alone."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate(itertools.pairwise(channels), start=1):
        parts: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(before, after, 3, padding=1))
        if not (bare_end and number == len(channels) - 1):
            parts.update(bn=nn.BatchNorm2d(after), relu=nn.ReLU(inplace=True))
        blocks[f"block{number}"] = nn.Sequential(parts)
    return nn.Sequential(blocks)
