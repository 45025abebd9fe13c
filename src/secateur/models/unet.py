"""U-Net with bilinear upsampling and BN: the U-Net that MCAG prunes ("UNet1").

Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
https://arxiv.org/abs/1505.04597. Deviations of this variant: padded convolutions followed by BN, bilinear upsampling in
place of the transposed convolution, and 512 instead of 1024 channels at the bottom; 13.396 M parameters, 11 classes.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ModelError

DOWN = (64, 128, 256, 512, 512)  # channels of the encoder stages; each but the first begins with a 2x2 max-pool
UP = (256, 128, 64, 64)  # channels of the decoder stages; each begins with upsampling and a concatenation


class UNet(nn.Module):
    """Pairs of 3x3 convolutions with bias, BN and ReLU; encoder maps concatenated to the upsampled ones.

    Args:
        classes: channels of the output.
        width: channels of the first stage; 64 is the published network, 16 has a quarter of its channels everywhere.

    Shapes: (N, 3, H, W) -> logits (N, classes, H, W), for any H and W of 16 or more.
    Modules: `encoder.stage1 .. stage5`, `decoder.stage4 .. stage1`, each with `conv1`, `bn1`, `relu1`, `conv2`, `bn2`,
    `relu2`; `classifier`.
    """

    def __init__(self, classes: int = 11, width: int = 64) -> None:
        super().__init__()
        if classes < 1 or width < 1:
            raise ModelError(f"U-Net needs at least 1 class and width 1, got classes={classes}, width={width}")
        down = [max(1, channels * width // 64) for channels in DOWN]
        up = [max(1, channels * width // 64) for channels in UP]
        self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        before = 3
        for number, channels in enumerate(down, start=1):
            self.encoder[f"stage{number}"] = _pair(before, channels)
            before = channels
        for number, channels in zip(range(len(up), 0, -1), up, strict=True):
            self.decoder[f"stage{number}"] = _pair(down[number - 1] + before, channels)
            before = channels
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Conv2d(before, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        skips: list[Tensor] = []
        x = image
        for stage in self.encoder.values():
            x = stage(self.pool(x) if skips else x)
            skips.append(x)
        skips.pop()  # the bottom is no skip
        for stage in self.decoder.values():
            skip = skips.pop()
            # To the skip's own size, since the pooling floors: 45 rows become 22 and must become 45 again.
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = stage(torch.cat([skip, x], dim=1))
        return self.classifier(x)


def _pair(before: int, after: int) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, channels in ((1, before), (2, after)):
        parts[f"conv{number}"] = nn.Conv2d(channels, after, 3, padding=1)
        parts[f"bn{number}"] = nn.BatchNorm2d(after)
        parts[f"relu{number}"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)
