"""Scores of candidates while it is decided what goes: for guards and sensitivity curves."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from secateur.data import Loader
from secateur.metrics import Confusion
from secateur.pipeline.inputs import Inputs
from secateur.training import evaluate, recalibrate

__all__ = ["Judge"]


class Judge:
    """mIoU and the IoU of every class, as fractions, on validation images.

    Args:
        inputs: the recipe's.
        images: how many, spread evenly over the split; None: all.
        batches: of training images, which re-estimate the BN statistics of a cut network before it is judged.
    """

    def __init__(self, inputs: Inputs, images: int | None = None, batches: int = 10) -> None:
        self.inputs, self.batches = inputs, batches
        settings, split = inputs.recipe.evaluate, inputs.data["val"]
        loader = inputs.loader("val", settings.batch_size)
        self._images = _Spread(loader, None if images is None else -(-images // loader.batch_size))
        self._training = inputs.loader("train", inputs.recipe.train.batch_size, training=True)
        self._confusion = Confusion(split.classes, split.ignore_index, inputs.device)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Of a cut network, whose BN statistics are estimated anew."""
        self._place(model)
        if self.batches:
            recalibrate(model, self._training, self.batches)
        return self.whole(model)

    def whole(self, model: nn.Module) -> dict[str, float]:
        """Of a network as it is."""
        scores = evaluate(self._place(model), self._images, self._confusion, self.inputs.inference)
        return {"mIoU": scores.miou, **{n: math.nan if v is None else v for n, v in scores.per_class.items()}}

    def _place(self, model: nn.Module) -> nn.Module:
        if self.inputs.recipe.run.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.to(self.inputs.device)


class _Spread:
    """Every n-th batch of a loader, so that at least `wanted` are left of them; None: all."""

    def __init__(self, loader: Loader, wanted: int | None) -> None:
        self.loader, self.every = loader, 1 if wanted is None else max(1, len(loader) // wanted)

    def __len__(self) -> int:
        return len(range(0, len(self.loader), self.every))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(self.loader.epoch(epoch)):
            if number % self.every == 0 and number >= start * self.every:
                yield batch
