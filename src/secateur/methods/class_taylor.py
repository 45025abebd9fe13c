"""Taylor scores class by class: how much every channel contributes to putting one class right.

For class c the target is the true label where that is c, and the network's own answer elsewhere, so that only the
errors on c count; the loss is the cross-entropy, its mean over the labelled pixels; the score of a channel is the mean
over batch and space of a * dL/da, a its output, added up over batches; of the sum the absolute value.

Published code makes a pass over the data for every class. Here one forward pass per batch does for all of them. Let G_0
be the gradient of the loss in the logits for a target that is the network's answer everywhere. For class c it is

    G_c = G_0 + D_c,    D_c = (one-hot(answer) - one-hot(c)) / number of labelled pixels

on pixels of class c that are answered wrongly, D_c = 0 elsewhere. A backward pass is linear in the gradient that it
starts from, so that the sums of a * dL/da for G_c are those for G_0 plus those for D_c: one backward pass per batch,
and one more for every class with an error in it. No gradient of any weight is computed on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import DataError, MethodError
from secateur.graph import Graph
from secateur.methods.contributions import Reading, readings, tapped
from secateur.methods.material import Material, call
from secateur.metrics import main_logits


def class_scores(
    graph: Graph, material: Material, classes: Sequence[int], batches: int | None = None
) -> list[tuple[Reading, Tensor]]:
    """The scores of every layer's channels for some of the classes, in eval mode; the network is left as it was.

    Args:
        graph: the traced network. Its main head's logits count, upsampled to the labels' size.
        material: batches (input, label map N x H x W) and the names of all classes. Labels that are none of theirs are
            void: such pixels count for nothing.
        classes: the labels that scores are wanted for.
        batches: how many of the batches; None: all.

    Returns:
        (layer, (wanted classes, its channels)) for every layer that took part.

    Raises:
        MethodError: the network has another number of classes, or no layer to score.
        DataError: the targets are no label maps.
    """
    layers, sums = readings(graph), dict[str, Tensor]()
    with tapped(graph.model, layers) as taps:
        for inputs, target in material.batches(graph.model, batches):
            taps.forget()
            logits = _logits(call(graph.model, inputs), target, len(material.class_names))
            pixels = Pixels.of(logits.detach(), target)
            erring = [row for row, c in enumerate(classes) if pixels.errors[c]]
            for name, mean in taps.means(logits, pixels.if_right(), again=bool(erring)).items():
                sums[name] = mean.expand(len(classes), -1) + sums.get(name, 0)
            for row in erring:
                means = taps.means(logits, pixels.difference(classes[row]), again=row != erring[-1])
                for name, mean in means.items():
                    sums[name][row] += mean
    return [(layer, sums[layer.module].abs()) for layer in layers if layer.module in sums]


@dataclass(frozen=True)
class Pixels:
    """A batch as the loss sees it, and the gradients that it starts from.

    Attributes:
        logits: (N, K, H, W).
        target: (N, H, W).
        answer: (N, H, W), the class of the highest logit.
        labelled: bool (N, H, W).
        errors: how many pixels of every class are answered wrongly.
    """

    logits: Tensor
    target: Tensor
    answer: Tensor
    labelled: Tensor
    errors: list[int]

    @classmethod
    def of(cls, logits: Tensor, target: Tensor) -> Pixels:
        answer, labelled = logits.argmax(1), (target >= 0) & (target < logits.shape[1])
        wrong = target[labelled & (target != answer)]
        return cls(logits, target, answer, labelled, torch.bincount(wrong, minlength=logits.shape[1]).tolist())

    def if_right(self) -> Tensor:
        """G_0 (N, K, H, W): of the mean cross-entropy where the target is the answer."""
        gradient = self.logits.softmax(1) - self._one_hot(self.answer)
        return gradient * self._share()

    def difference(self, label: int) -> Tensor:
        """D_c (N, K, H, W): by how much G_c differs from G_0."""
        wrong = (self.target == label) & (self.answer != label)
        gradient = self._one_hot(self.answer) - self._one_hot(torch.full_like(self.answer, label))
        return gradient * wrong.unsqueeze(1) * self._share()

    def _one_hot(self, labels: Tensor) -> Tensor:
        return torch.zeros_like(self.logits).scatter_(1, labels.unsqueeze(1), 1)

    def _share(self) -> Tensor:
        """Of one pixel in the mean over the labelled ones, (N, 1, H, W); 0 for the others."""
        return self.labelled.unsqueeze(1) / self.labelled.sum().clamp_min(1).to(self.logits.dtype)


def _logits(output: object, target: object, classes: int) -> Tensor:
    """The main head's logits (N, K, H, W) at the size of the label map."""
    if not isinstance(target, Tensor) or target.dim() != 3 or target.is_floating_point():
        what = f"{target.dtype} {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise DataError(f"the target of a batch is {what}; a label map of whole numbers, N x H x W, was expected")
    logits = main_logits(output, target.shape[-2:])
    if logits.shape[1] != classes:
        raise MethodError(f"the network puts out {logits.shape[1]} classes, but classes= names {classes}")
    return logits
