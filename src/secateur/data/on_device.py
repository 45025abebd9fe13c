"""The changes of `Augment`, of a whole batch at once, with torch's operators on any device.

The same maps, drawn from the same seeds, as OpenCV applies in the workers; what it rounds is not rounded here: places
(OpenCV knows them to 1/32 of a pixel) and colours (to whole numbers). A colour may thus differ by 1/64 of the
difference between neighbours in each direction, and one half. Labels are those of the nearest pixel in both; one may
differ where a place is as near to one pixel as to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.data.augment import Change, Normalise
from secateur.data.dataset import IGNORE

_BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def change_batch(
    images: Tensor,
    labels: Tensor,
    changes: Sequence[Change],
    border: tuple[int, int, int],
    normalise: Normalise,
    channels_last: bool = False,
) -> tuple[Tensor, Tensor]:
    """Changed and normalised images and changed labels, where the given ones are.

    Args:
        images: uint8 (N, H, W, 3), RGB.
        labels: uint8 (N, H, W); those of one pixel, for all of an image, stay as they are.
        changes: one for each image, all to the same size (h, w).
        border: colour of what comes from outside.
        normalise: of the colours.
        channels_last: images in torch's channels_last memory format.

    Returns:
        float32 (N, 3, h, w) and int64 (N, h, w), void where they come from outside.
    """
    device, (height, width) = images.device, images.shape[1:3]
    x, y = _places(changes, device)
    around = torch.tensor(border, dtype=torch.float32, device=device).view(3, 1, 1)
    # outside counts as 0, so the border's colour is made 0 in between
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    pixels = images.permute(0, 3, 1, 2).float() - around
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + around
    blurred = [number for number, change in enumerate(changes) if change.blur]
    if blurred:
        pixels[blurred] = _blur(pixels[blurred])
    mean, std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (normalise.mean, normalise.std))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return ((pixels / 255 - mean) / std).contiguous(memory_format=layout), _nearest(labels, x, y)


def _places(changes: Sequence[Change], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in its image every new pixel comes from, in pixels: x and y, each float32 (N, h, w)."""
    whole = np.stack([np.vstack([change.matrix, (0, 0, 1)]) for change in changes])
    back = torch.from_numpy(np.linalg.inv(whole)[:, :2].astype(np.float32)).to(device)
    height, width = changes[0].size
    row, column = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)[None]
    x, y = (
        back[:, i, 0, None, None] * column + back[:, i, 1, None, None] * row + back[:, i, 2, None, None] for i in (0, 1)
    )
    return x, y


def _nearest(labels: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The labels at these places, int64, void outside."""
    height, width = labels.shape[1:]
    if (height, width) == (1, 1):
        return labels.long()
    column, row = (x + 0.5).floor().long(), (y + 0.5).floor().long()
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    at = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(1)
    return labels.flatten(1).gather(1, at).view_as(x).long().masked_fill(outside, IGNORE)


def _blur(pixels: Tensor) -> Tensor:
    """(N, 3, h, w) by the kernel (1, 4, 6, 4, 1) / 16 along both sides, mirrored at the borders."""
    kernel = torch.tensor(_BLUR, device=pixels.device).repeat(3, 1)
    for shape, padding in (((3, 1, 1, 5), (2, 2, 0, 0)), ((3, 1, 5, 1), (0, 0, 2, 2))):
        pixels = F.conv2d(F.pad(pixels, padding, mode="reflect"), kernel.view(shape), groups=3)
    return pixels
