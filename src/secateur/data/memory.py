"""Memory that is used again for batch after batch: a fresh page costs as much as the work that is done in it."""

from __future__ import annotations

import weakref
from math import prod

import torch
from torch import Tensor

IDLE = 2  # blocks that are kept: one that is in use and one that is being made


class Slots:
    """Room for batches in bytes, that this process and its workers see: filled there, read here, never sent.

    Args:
        count: batches that there is room for.
        images: (N, H, W, 3) of a full batch.
        labels: (N, H, W) of a full batch.
        shared: workers see it, too.
    """

    def __init__(
        self, count: int, images: tuple[int, int, int, int], labels: tuple[int, int, int], shared: bool
    ) -> None:
        self._images = torch.empty((count, *images), dtype=torch.uint8)
        self._labels = torch.empty((count, *labels), dtype=torch.uint8)
        if shared:
            self._images.share_memory_()
            self._labels.share_memory_()
        self.take_back()

    def take_back(self) -> None:
        """All slots are free again."""
        self._free = [*range(len(self._images))]

    def take(self) -> int | None:
        """A slot that is free, or None."""
        return self._free.pop() if self._free else None

    def free(self, slot: int) -> None:
        """What is in the slot was read."""
        self._free.append(slot)

    def batch(self, slot: int, count: int) -> tuple[Tensor, Tensor]:
        """Images (count, H, W, 3) and labels (count, H, W) in that slot."""
        return self._images[slot, :count], self._labels[slot, :count]


class Blocks:
    """Tensors of the kind asked for, in memory that comes back as soon as nothing refers to a tensor any more."""

    def __init__(self) -> None:
        self._idle: dict[torch.dtype, list[Tensor]] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """As `torch.empty`."""
        idle, need = self._idle.setdefault(dtype, []), prod(shape)
        while idle:
            block = idle.pop()
            if block.numel() >= need:
                break
        else:
            block = torch.empty(need, dtype=dtype)
        array = block[:need].numpy()  # whatever is made of the tensor holds on to this array, and it to the block
        weakref.finalize(array, self._come_back, block).atexit = False
        return torch.from_numpy(array).view(shape)

    def _come_back(self, block: Tensor) -> None:
        idle = self._idle[block.dtype]
        if len(idle) < IDLE:
            idle.append(block)
