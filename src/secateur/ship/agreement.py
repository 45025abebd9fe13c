"""How far an exported network is from the one it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import CannotError

__all__ = ["RELATIVE", "SAME", "Agreement", "agreement", "tensors_of"]

RELATIVE = 1e-4  # largest difference, as a share of the largest value
SAME = 0.9999  # share of the pixels with the same most probable class

Runner = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Agreement:
    """relative_error: the largest difference of any output, as a share of the output's largest value.
    same_class: share of the pixels (or images) of the first output that get the same class; None if it is no logits.
    shapes: of the images that were compared, (N, 3, H, W).
    """

    relative_error: float
    same_class: float | None
    shapes: tuple[tuple[int, ...], ...]

    @property
    def ok(self) -> bool:
        """Whether the export can be told from the original by rounding alone."""
        return self.relative_error <= RELATIVE and (self.same_class is None or self.same_class >= SAME)

    def __str__(self) -> str:
        same = "" if self.same_class is None else f", same class in {100 * self.same_class:.4f} % of the pixels"
        return f"relative error {self.relative_error:.1e}{same}"


def agreement(model: nn.Module, exported: Runner, batches: Iterable[Tensor]) -> Agreement:
    """Compares all outputs, and the most probable class of the first, on images (N, 3, H, W).

    Args:
        model: in eval mode, on the CPU.
        exported: what an exported network puts out for a batch, in the order of the model's outputs.
        batches: normalised images.

    Raises:
        CannotError: the exported network fails on a batch, or its outputs have other shapes.
    """
    error, same, pixels, shapes = 0.0, 0, 0, []
    for images in batches:
        with torch.no_grad():
            expected = tensors_of(model(images.clone()))
        try:
            found = [*exported(images)]
        except Exception as failure:  # whatever a runtime raises
            shape = "x".join(map(str, images.shape))
            raise CannotError(
                f"the exported network fails on images {shape}: {str(failure).strip().splitlines()[0]}"
            ) from failure
        wanted_shapes, found_shapes = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in found]
        if wanted_shapes != found_shapes:
            raise CannotError(f"the exported network puts out {found_shapes}, the original {wanted_shapes}")
        for one, other in zip(expected, found, strict=True):
            scale = float(one.abs().max())
            difference = float((one - other).abs().max())
            error = max(error, difference / scale if scale else difference)
            if difference != difference:
                error = float("inf")  # one of them is not a number
        if expected[0].dim() in (2, 4):
            equal = expected[0].argmax(1) == found[0].argmax(1)
            same, pixels = same + int(equal.sum()), pixels + equal.numel()
        shapes.append(tuple(images.shape))
    return Agreement(error, same / pixels if pixels else None, tuple(shapes))


def tensors_of(output: object) -> list[Tensor]:
    """All tensors in a network's output, in the order in which exporters write them."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
