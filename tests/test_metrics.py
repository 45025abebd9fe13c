"""The confusion matrix against a plain loop and against torchmetrics' own Jaccard index."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from secateur.metrics import Confusion


def batches(classes: int, absent: int | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    out = []
    for size in (3, 1):  # unequal batches: a mean of per-batch scores would differ
        pred = torch.randint(0, classes, (size, 9, 7), generator=generator)
        label = torch.where(torch.rand(pred.shape, generator=generator) < 0.6, pred, (pred * 3 + 1) % classes)
        if absent is not None:
            pred[pred == absent], label[label == absent] = 0, 1
        label[torch.rand(pred.shape, generator=generator) < 0.1] = 255
        out.append((pred, label))
    return out


def iou_by_loop(data: list[tuple[torch.Tensor, torch.Tensor]], classes: int) -> list[float]:
    pred = np.concatenate([p.numpy().ravel() for p, _ in data])
    label = np.concatenate([t.numpy().ravel() for _, t in data])
    pred, label = pred[label != 255], label[label != 255]
    out = []
    for k in range(classes):
        union = int(((pred == k) | (label == k)).sum())
        out.append(int(((pred == k) & (label == k)).sum()) / union if union else math.nan)
    return out


@pytest.mark.parametrize("absent", [None, 2])
def test_scores_equal_a_plain_loop_over_all_pixels(absent: int | None) -> None:
    data = batches(5, absent)
    confusion = Confusion(("a", "b", "c", "d", "e"), 255)
    for pred, label in data:
        confusion.update(pred, label)
    scores = confusion.scores()
    expected = iou_by_loop(data, 5)
    assert scores.miou == pytest.approx(np.nanmean(expected), abs=1e-12)
    found = [math.nan if value is None else value for value in scores.per_class.values()]
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert (scores.per_class["c"] is None) == (absent == 2)
    assert list(scores.per_class) == ["a", "b", "c", "d", "e"]
    pred = torch.cat([p.flatten() for p, _ in data])
    label = torch.cat([t.flatten() for _, t in data])
    right = (pred == label)[label != 255].double()
    assert scores.accuracy == pytest.approx(right.mean().item())
    recall = [(pred == k)[label == k].double().mean().item() for k in range(5) if (label == k).any()]
    assert scores.macc == pytest.approx(np.mean(recall))


def test_miou_equals_torchmetrics_jaccard_index() -> None:
    data = batches(4)
    confusion, jaccard = Confusion(4), MulticlassJaccardIndex(4, average="macro", ignore_index=255)
    for pred, label in data:
        confusion.update(pred, label)
        jaccard.update(pred, label)
    assert confusion.scores().miou == pytest.approx(jaccard.compute().item(), abs=1e-6)  # theirs is float32


def test_ignored_pixels_count_nowhere() -> None:
    confusion = Confusion(("road", "sky"))
    confusion.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 1, 255]]]))
    assert confusion.matrix.tolist() == [[1, 0], [0, 1]]
    assert confusion.scores().miou == 1.0


def test_reset_forgets_everything() -> None:
    confusion = Confusion(2)
    confusion.update(torch.tensor([[[0, 1]]]), torch.tensor([[[1, 1]]]))
    confusion.reset()
    assert confusion.matrix.sum() == 0
    assert math.isnan(confusion.scores().miou)
