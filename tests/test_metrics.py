"""The confusion matrix against a plain loop and against torchmetrics' own Jaccard index."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from secateur.metrics import Boundary, Confusion
from secateur.metrics.boundary import band


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


@pytest.mark.parametrize("absent", [None, 2])
def test_scores_equal_those_of_torchmetrics(absent: int | None) -> None:
    data = batches(4, absent)
    theirs = {
        "miou": MulticlassJaccardIndex(4, average="macro", ignore_index=255),
        "fwiou": MulticlassJaccardIndex(4, average="weighted", ignore_index=255),
        "macc": MulticlassAccuracy(4, average="macro", ignore_index=255),
        "accuracy": MulticlassAccuracy(4, average="micro", ignore_index=255),
    }
    each = MulticlassJaccardIndex(4, average="none", ignore_index=255)
    confusion = Confusion(4)
    for pred, label in data:
        for metric in (confusion, each, *theirs.values()):
            metric.update(pred, label)
    scores = confusion.scores()
    for name, metric in theirs.items():
        assert getattr(scores, name) == pytest.approx(metric.compute().item(), abs=1e-6), name  # theirs are float32
    per_class = [0.0 if value is None else value for value in scores.per_class.values()]
    assert per_class == pytest.approx(each.compute().tolist(), abs=1e-6)


def band_by_loop(mask: np.ndarray, distance: int) -> np.ndarray:
    """The pixels of a mask with something else, or the image's end, at most `distance` rows and columns away."""
    height, width = mask.shape
    out = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        for i in range(y - distance, y + distance + 1):
            for j in range(x - distance, x + distance + 1):
                out[y, x] |= not (0 <= i < height and 0 <= j < width) or not mask[i, j]
    return out


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_a_band_is_what_lies_near_the_outline(distance: int) -> None:
    masks = np.random.default_rng(0).random((3, 4, 5)) < 0.8
    masks = masks.repeat(5, 1).repeat(4, 2)
    expected = np.stack([band_by_loop(mask, distance) for mask in masks])
    assert (band(torch.from_numpy(masks), distance).numpy() == expected).all()
    assert expected.sum() < masks.sum() or distance == 5


def test_boundary_iou_equals_bands_drawn_pixel_by_pixel() -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, (2, 6, 5)).repeat(4, 1).repeat(4, 2)
    pred = np.roll(label, 1, axis=2)
    label[:, 3:9, 2:8] = 255
    label[label == 3], pred[pred == 3] = 2, 2
    confusion = Confusion(("a", "b", "c", "d"), boundary=0.06)
    for image in range(2):
        confusion.update(torch.from_numpy(pred[image : image + 1]), torch.from_numpy(label[image : image + 1]))
    distance = round(0.06 * math.hypot(24, 20))
    assert distance == 2
    expected = []
    for k in range(3):
        both = either = 0
        for p, t in zip(pred, label, strict=True):
            one, other = (band_by_loop(mask & (t != 255), distance) for mask in (p == k, t == k))
            both, either = both + int((one & other).sum()), either + int((one | other).sum())
        expected.append(both / either)
    scores = confusion.scores()
    assert scores.boundary_per_class == {**dict(zip("abc", map(pytest.approx, expected), strict=True)), "d": None}
    assert scores.boundary_iou == pytest.approx(np.mean(expected)) and 0.05 < scores.boundary_iou < scores.miou


def test_boundary_iou_is_1_for_a_perfect_prediction_and_none_if_it_is_not_asked_for() -> None:
    label = torch.randint(0, 3, (2, 3, 3)).repeat_interleave(5, 1).repeat_interleave(5, 2)
    label[0, 0] = 255
    confusion = Confusion(3, boundary=0.02)
    assert math.isnan(confusion.scores().boundary_iou)  # nothing yet
    confusion.update(label.clamp(max=2), label)
    assert confusion.scores().boundary_iou == 1.0
    confusion.reset()
    assert math.isnan(confusion.scores().boundary_iou)
    assert Confusion(3).scores().boundary_iou is None


def test_boundary_is_a_metric_of_torchmetrics() -> None:
    metric = Boundary(2, 0.02)
    metric.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 1, 0]]]))
    assert metric.compute().tolist() == [0.5, 0.5]


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
