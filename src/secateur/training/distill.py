"""Knowledge distillation: the pruned network learns from the unpruned one's predictions as well as from the labels.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015 (arXiv:1503.02531), section 2, at every
pixel: loss = (1 - weight) * cross-entropy + weight * T^2 * mean over pixels of KL(softmax(t / T) || softmax(s / T)),
t and s the logits of teacher and student, of the main head. Unlabelled pixels count: the teacher has an opinion there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.metrics import main_logits

__all__ = ["Distillation"]


@dataclass(frozen=True)
class Distillation:
    """A teacher and how much its word counts.

    Attributes:
        teacher: in eval mode, on the student's device.
        weight: share of the loss, 0 to 1.
        temperature: T, above 0; higher ones show more of what the teacher thinks of unlikely classes.
    """

    teacher: nn.Module
    weight: float
    temperature: float = 1.0

    def __call__(self, loss: Tensor, output: object, images: Tensor, share: float = 1.0) -> Tensor:
        """The loss to learn from.

        Args:
            loss: against the labels.
            output: of the student, see `all_logits`.
            images: what it was given.
            share: of the step's images that these are, where a step takes several batches.
        """
        with torch.no_grad():
            taught = main_logits(self.teacher(images), images.shape[-2:]).float()
        learnt = main_logits(output, images.shape[-2:]).float()
        t = self.temperature
        divergence = F.kl_div(
            F.log_softmax(learnt / t, 1), F.log_softmax(taught / t, 1), reduction="none", log_target=True
        )
        return (1 - self.weight) * loss + share * self.weight * t * t * divergence.sum(1).mean()
