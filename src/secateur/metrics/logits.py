"""The logits in a network's output, of every pixel; those of a whole image are taken for an image of one pixel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.errors import ModelError


def all_logits(output: object) -> list[Tensor]:
    """The logits in a network's output, (N, K, H, W), main head first: a tensor, a tuple, list or dict of them.

    A classifier's (N, K) become (N, K, 1, 1).

    Raises:
        ModelError: the output is something else, or a tensor in it is neither N x K x H x W nor N x K.
    """
    if isinstance(output, Tensor):
        tensors: list[object] = [output]
    elif isinstance(output, Mapping):
        tensors = list(output.values())
    elif isinstance(output, tuple | list):
        tensors = list(output)
    else:
        tensors = []
    logits = [t if t.dim() == 4 else t[..., None, None] for t in tensors if isinstance(t, Tensor) and t.dim() in (2, 4)]
    if not logits or len(logits) != len(tensors):
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in tensors]
        raise ModelError(
            "A network must return logits N x classes x H x W, or N x classes for whole images, or a tuple, list or "
            f"dict of them with the main head first; this one returned {type(output).__name__} {shapes}."
        )
    return logits


def main_logits(output: object, size: torch.Size | tuple[int, int]) -> Tensor:
    """The main head's logits (N, K, H, W) at `size` (H, W), upsampled bilinearly if they are smaller."""
    return at_size(all_logits(output)[0], size)


def at_size(logits: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Logits (N, K, h, w) upsampled bilinearly to `size` (H, W), unless they have it."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
