"""One optimizer step, of one batch or of several, on one process or on several: the same step if the images are.

The loss is a mean over labelled pixels. Of m batches, on each of W processes, batch b of process r having the sum of
losses S_rb and the amount A_rb of labelled pixels, the mean over all of them is sum S_rb / sum A_rb. Processes average
their gradients, so each adds up those of S_rb / (sum A_rb / W). The mean of the batches' own means would be another
number wherever they have different amounts of void.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from secateur.training.average import Average
from secateur.training.distill import Distillation
from secateur.training.finite import FiniteCheck
from secateur.training.hooks import Hooks
from secateur.training.optimize import Settings, auxiliary_weights, labelled_amount, make_optimizer, segmentation_loss

__all__ = ["Batch", "Step"]

Batch = tuple[Tensor, Tensor]  # images (N, 3, H, W), labels (N, H, W)


@dataclass
class Step:
    """A network with all that takes part in a step of its training.

    Attributes:
        model: moved to Fabric's device.
        optimizer: over its parameters; made here, like `average` (None without one) and `finite`.
    """

    model: nn.Module
    settings: Settings
    fabric: Fabric
    class_weights: Tensor | None
    ignore_index: int
    hooks: Hooks | None
    distillation: Distillation | None

    def __post_init__(self) -> None:
        if self.settings.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.model, self.settings)
        # the wrappers add devices and precision; `model` and `self.optimizer` stay the objects with the state
        self.wrapped, self.wrapped_optimizer = self.fabric.setup(self.model, self.optimizer)
        self.average = Average(self.model, self.settings.ema) if self.settings.ema else None
        self.auxiliary_weights = auxiliary_weights(self.model)
        self.finite = FiniteCheck(every=1 if self.fabric.device.type == "cpu" else 10)

    def __call__(self, batches: Sequence[Batch], lr: float, where: str) -> float:
        """Makes the step; returns the sum of loss * images of all steps whose loss is newly known.

        Args:
            batches: what it is computed on, one after the other.
            lr: the learning rate.
            where: names the step in messages.

        Raises:
            CannotError: a loss or a gradient is not finite.
        """
        precision = self.fabric.strategy.precision
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss, images = self._backward(batches)
        scaler = getattr(precision, "scaler", None)
        if scaler is not None and self.hooks is not None:
            precision.unscale_gradients(self.optimizer)  # the hooks add to gradients of the true size
        # a gradient scaler looks for non-finite gradients itself, and skips those steps
        gradients = [] if scaler is not None else [p.grad for p in self.model.parameters() if p.grad is not None]
        loss_sum = self.finite.add(loss, gradients, images, where)
        if self.hooks is not None:
            self.hooks.after_backward()
        self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad()
        if self.hooks is not None:
            self.hooks.after_step(lr)
        if self.average is not None:
            self.average.update()
        return loss_sum

    def share_buffers(self) -> None:
        """All processes get the first one's running statistics, which are those that are saved."""
        if self.fabric.world_size > 1:
            for buffer in self.model.buffers():
                shared = buffer.detach().contiguous()
                dist.broadcast(shared, 0)
                buffer.detach().copy_(shared)

    def _backward(self, batches: Sequence[Batch]) -> tuple[Tensor, int]:
        """Leaves the gradients of the mean loss; returns this process's part of it, and how many images it has."""
        device, settings = self.fabric.device, self.settings
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        labels = [each.to(device, non_blocking=True) for _, each in batches]
        amount = self._amount(labels)
        count = sum(len(images) for images, _ in batches)
        total = torch.zeros((), device=device)
        for index, (images, _) in enumerate(batches):
            images = images.to(device, non_blocking=True).contiguous(memory_format=layout)
            # processes exchange their gradients once, behind the last batch
            with self.fabric.no_backward_sync(self.wrapped, enabled=index + 1 < len(batches)):
                output = self.wrapped(images)
                loss = segmentation_loss(
                    output, labels[index], self.class_weights, self.ignore_index, amount, self.auxiliary_weights
                )
                if self.distillation is not None:
                    with self.fabric.autocast():
                        loss = self.distillation(loss, output, images, len(images) / count)
                self.fabric.backward(loss)
            total += loss.detach()
        return total, count

    def _amount(self, labels: Sequence[Tensor]) -> Tensor:
        """What this process divides its sums of losses by, a scalar."""
        amounts = [labelled_amount(each, self.class_weights, self.ignore_index) for each in labels]
        amount = torch.stack(amounts).sum()
        if self.fabric.world_size > 1:
            dist.all_reduce(amount)
            amount /= self.fabric.world_size
        return amount
