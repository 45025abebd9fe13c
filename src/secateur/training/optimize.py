"""Optimizers, learning rates and the loss of semantic segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import ModelError, RecipeError, nearest
from secateur.metrics import all_logits, at_size

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Settings",
    "auxiliary_weights",
    "labelled_amount",
    "lay_out_like_parameters",
    "learning_rate",
    "learning_rate_sum",
    "make_optimizer",
    "segmentation_loss",
]

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "poly")
AUXILIARY_WEIGHT = 0.4  # of networks that do not say; PSPNet, section 4


@dataclass(frozen=True)
class Settings:
    """How one stage of training goes; `lr` is the peak of the schedule, `epochs` and `warmup_epochs` count passes.

    Attributes:
        accumulate: batches whose gradients make up one optimizer step.
        ema: decay of the moving average of the weights that takes their place at the end; 0 for none.
        last_of: the learning rates are those of the last epochs of a training of so many; None: of this one.
        sync_batchnorm: batch norms take the statistics of all processes' batches together.

    Raises:
        RecipeError: an unknown optimizer or schedule, or a number out of its range.
    """

    epochs: int
    optimizer: str = "adamw"
    lr: float = 3e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    power: float = 0.9
    evaluate_every: int = 5
    accumulate: int = 1
    ema: float = 0.0
    last_of: int | None = None
    checkpoint_minutes: float = 5.0
    channels_last: bool = False
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise RecipeError(f"Unknown optimizer {self.optimizer!r}; {nearest(self.optimizer, OPTIMIZERS)}.")
        if self.schedule not in SCHEDULES:
            raise RecipeError(f"Unknown schedule {self.schedule!r}; {nearest(self.schedule, SCHEDULES)}.")
        if self.epochs < 0 or self.warmup_epochs < 0 or not self.lr > 0:
            raise RecipeError(
                f"epochs={self.epochs}, warmup_epochs={self.warmup_epochs}, lr={self.lr}: epochs can't be negative, "
                "and the learning rate must be above 0."
            )
        if self.accumulate < 1 or not 0 <= self.ema < 1:
            raise RecipeError(
                f"accumulate={self.accumulate}, ema={self.ema}: expected at least 1 batch per step, and a decay of at "
                "least 0 and below 1."
            )
        if self.last_of is not None and self.last_of < self.epochs:
            raise RecipeError(f"{self.epochs} epochs can't be the last ones of a training of {self.last_of}.")


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters, weight decay on all of them alike (as in the CAP paper)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Gives the optimizer's loaded state the parameters' memory layout, as it had before it was saved.

    Arithmetic in another layout may round otherwise.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def learning_rate(settings: Settings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimizer step `step` (0, 1, ...): linear warm-up to `lr`, then the schedule towards 0.

    With w warm-up steps out of T: lr * (step + 1) / w while step < w; afterwards, with t = (step - w) / (T - w),
    lr * (1 + cos(pi t)) / 2 (cosine), lr * (1 - t) ** power (poly) or lr (constant). The warm-up takes at most half
    of the steps. A pure function, so that resuming needs no state and the sum over a stage is known beforehand.

    With `last_of`, T is the length of that training and the steps are its last ones: learning rate rewinding (Renda,
    Frankle and Carbin, Comparing Rewinding and Fine-tuning in Neural Network Pruning, ICLR 2020).
    """
    whole = settings.epochs if settings.last_of is None else settings.last_of
    total = whole * steps_per_epoch
    step += (whole - settings.epochs) * steps_per_epoch
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    t = (step - warmup) / max(total - warmup, 1)
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * t)) / 2
    if settings.schedule == "poly":
        return settings.lr * (1 - t) ** settings.power
    return settings.lr


def learning_rate_sum(settings: Settings, steps_per_epoch: int) -> float:
    """The sum of the learning rate over all steps of the stage: what a subgradient's total pull is measured by."""
    return math.fsum(
        learning_rate(settings, step, steps_per_epoch) for step in range(settings.epochs * steps_per_epoch)
    )


def labelled_amount(labels: Tensor, class_weights: Tensor | None = None, ignore_index: int = 255) -> Tensor:
    """What the mean of `segmentation_loss` is over: the number of labelled pixels, or the sum of their classes'
    weights. A scalar in float32."""
    labelled = labels != ignore_index
    if class_weights is None:
        return labelled.sum().float()
    return (class_weights[labels.where(labelled, 0)] * labelled).sum()


def segmentation_loss(
    output: object,
    labels: Tensor,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    amount: Tensor | None = None,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Cross-entropy over the labelled pixels, the main head's plus what the auxiliary heads' count.

    Args:
        output: the network's output, see `all_logits`; smaller logits are upsampled to the labels' size.
        labels: int64 (N, H, W); pixels equal to `ignore_index` count for nothing.
        class_weights: (K,); the mean is then weighted, sum(w[y] * nll) / sum(w[y]), as in torch's cross_entropy.
        amount: what the sum is divided by instead of `labelled_amount`, where the batch is a part of a larger one.
        weights: what the loss of each auxiliary head is multiplied by, see `auxiliary_weights`; None: 0.4 for all.

    Returns:
        A scalar in float32; 0 where no pixel is labelled.

    Raises:
        ModelError: the output has another number of auxiliary heads than there are weights.
    """
    if amount is None:
        amount = labelled_amount(labels, class_weights, ignore_index)
    # a batch of nothing but void has loss 0, not 0 / 0
    amount = amount.clamp_min(torch.finfo(torch.float32).tiny)
    losses = [
        F.cross_entropy(
            at_size(logits, labels.shape[-2:]).float(),
            labels,
            class_weights,
            ignore_index=ignore_index,
            reduction="sum",
        )
        / amount
        for logits in all_logits(output)
    ]
    if weights is None:
        weights = [AUXILIARY_WEIGHT] * (len(losses) - 1)
    if len(losses) > 1 and len(losses) - 1 != len(weights):  # a single one is what networks return in eval mode
        raise ModelError(
            f"The network returned {len(losses) - 1} auxiliary outputs behind the main one, but its auxiliary_weights "
            f"are {tuple(weights)}; expected one weight for each."
        )
    return losses[0] + sum(
        (weight * loss for weight, loss in zip(weights, losses[1:], strict=False)), losses[0].new_zeros(())
    )


def auxiliary_weights(model: nn.Module) -> tuple[float, ...] | None:
    """What the losses of a network's auxiliary heads count next to the main head's, 1: its own `auxiliary_weights`.

    Returns:
        One number for each auxiliary output, in their order; None if the network does not say: 0.4 for all then.

    Raises:
        ModelError: the attribute is something else than finite numbers of at least 0.
    """
    found = getattr(model, "auxiliary_weights", None)
    if found is None:
        return None
    right = isinstance(found, Sequence) and all(
        isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0 for weight in found
    )
    if not right:
        raise ModelError(
            f"{type(model).__name__}.auxiliary_weights is {found!r}; expected a list or tuple of numbers of at least "
            "0, one for each auxiliary output, or no such attribute."
        )
    return tuple(found)
