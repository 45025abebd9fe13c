"""Suppression of doubles, against the loop that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.detection import corners, detections, suppress, suppression


def naive(boxes: Tensor, scores: Tensor, classes: Tensor | None, most_overlap: float) -> list[int]:
    """One box after the other, in Python's numbers."""
    values = boxes.tolist()

    def overlap(a: list[float], b: list[float]) -> float:
        wide, high = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
        return wide * high / union if union > 0 else 0.0

    kept: list[int] = []
    for i in sorted(range(len(values)), key=lambda i: -float(scores[i])):
        rivals = kept if classes is None else [j for j in kept if classes[i] == classes[j]]
        if all(overlap(values[i], values[j]) <= most_overlap for j in rivals):
            kept.append(i)
    return kept


def crowd(count: int, seed: int, grid: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes that overlap much; on a grid also equal boxes, exact overlaps, boxes without area and equal scores."""
    generator = torch.Generator().manual_seed(seed)
    first, sides = 40 * torch.rand(count, 2, generator=generator), 25 * torch.rand(count, 2, generator=generator)
    scores, classes = torch.rand(count, generator=generator), torch.randint(0, 3, (count,), generator=generator)
    boxes = torch.cat([first, first + sides], 1)
    return ((boxes / 5).floor(), (5 * scores).floor() / 5, classes) if grid else (boxes, scores, classes)


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("block", [7, 1024])
def test_suppression_is_that_of_the_loop_ties_included(grid: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suppression, "BLOCK", block)
    for seed, threshold in enumerate((0.0, 0.25, 0.45, 0.5, 0.6, 1.0)):
        boxes, scores, classes = crowd(90, seed, grid)
        for kinds in (None, classes):
            expected = naive(boxes, scores, kinds, threshold)
            assert suppress(boxes, scores, kinds, threshold).tolist() == expected
            assert suppress(boxes, scores, kinds, threshold, most=5).tolist() == expected[:5]
    assert suppress(torch.zeros(0, 4), torch.zeros(0)).tolist() == []


def test_a_chain_of_overlaps_is_followed_to_its_end() -> None:
    left = torch.arange(200.0) * 4
    boxes = torch.stack([left, torch.zeros(200), left + 10, torch.full((200,), 10.0)], 1)
    # each overlaps the next by 6 of 14: every second one stays
    assert suppress(boxes, torch.linspace(1, 0.1, 200), most_overlap=0.4).tolist() == list(range(0, 200, 2))


def one_image(rows: list[list[float]]) -> Tensor:
    return torch.tensor([rows])


def test_detections_are_boxes_with_the_best_class_and_its_score() -> None:
    decoded = one_image(
        [
            [10, 10, 8, 8, 0.9, 0.1, 0.8],
            [11, 10, 8, 8, 0.8, 0.2, 0.7],  # the same object
            [11, 10, 8, 8, 0.8, 0.7, 0.1],  # there, too, but of the other class
            [40, 40, 4, 4, 0.3, 0.5, 0.4],  # below the threshold
        ]
    )
    (found,) = detections(decoded, least_score=0.25)
    expected = torch.tensor([[6, 6, 14, 14, 0.72, 1], [7, 6, 15, 14, 0.56, 0]])
    torch.testing.assert_close(found, expected)
    (every,) = detections(decoded, least_score=0.1, every_class=True)
    torch.testing.assert_close(every[:, 4], torch.tensor([0.72, 0.56, 0.15, 0.12]))
    assert every[:, 5].tolist() == [1, 0, 0, 1]
    assert len(detections(decoded, least_score=0.1, every_class=True, most=3)[0]) == 3
    (first,) = detections(decoded, least_score=0.1, every_class=True, candidates=1)
    torch.testing.assert_close(first, expected[:1])


def test_images_are_apart_and_one_without_objects_has_no_detections() -> None:
    generator = torch.Generator().manual_seed(0)
    decoded = torch.rand(3, 80, 7, generator=generator)
    decoded[..., :4] *= 60
    decoded[1, :, 4] = 0
    decoded.requires_grad_()
    found = detections(decoded, least_score=0.3, most_overlap=0.3)
    assert [len(image) > 0 for image in found] == [True, False, True] and found[1].shape == (0, 6)
    for image, rows in zip(decoded.detach(), found, strict=True):
        best, label = (image[:, 4:5] * image[:, 5:]).max(1)
        good = (best > 0.3).nonzero()[:, 0]
        kept = good[naive(corners(image[good, :4]), best[good], label[good], 0.3)]
        torch.testing.assert_close(rows[:, :4], corners(image[kept, :4]))
        assert rows[:, 5].tolist() == label[kept].tolist() and not rows.requires_grad
        assert torch.equal(rows, detections(image[None], 0.3, 0.3)[0])
