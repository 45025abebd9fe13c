"""Boxes in their formats, in letterboxes, and how well two of them agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.detection import Letterbox, centres, ciou, clipped, corners, from_pixels, iou, to_pixels
from secateur.errors import DataError


def boxes(count: int, seed: int, side: float = 50.0) -> Tensor:
    """Left, top, right, bottom, in float64."""
    generator = torch.Generator().manual_seed(seed)
    first = side * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([first, first + 1 + side * torch.rand(count, 2, generator=generator, dtype=torch.float64)], 1)


def test_formats_are_inverse_to_each_other() -> None:
    some = boxes(20, 0)
    torch.testing.assert_close(corners(centres(some)), some)
    targets = torch.tensor([[3.0, 0.5, 0.25, 0.2, 0.1]])
    pixels = to_pixels(targets, (100, 200))
    torch.testing.assert_close(pixels, torch.tensor([[3.0, 80.0, 20.0, 120.0, 30.0]]))
    torch.testing.assert_close(from_pixels(pixels, (100, 200)), targets)
    assert to_pixels(torch.zeros(0, 5), (10, 10)).shape == (0, 5)
    assert clipped(torch.tensor([[-5.0, 2.0, 30.0, 40.0]]), (20, 25)).tolist() == [[0.0, 2.0, 25.0, 20.0]]


def test_iou_of_boxes_on_a_grid_is_the_share_of_common_pixels() -> None:
    whole = boxes(30, 1, side=12).floor().float()
    marks = np.zeros((len(whole), 30, 30), dtype=bool)
    for mark, (x1, y1, x2, y2) in zip(marks, whole.int().tolist(), strict=True):
        mark[y1:y2, x1:x2] = True
    for i, row in enumerate(iou(whole, whole[:7]).tolist()):
        for j, value in enumerate(row):
            assert value == pytest.approx((marks[i] & marks[j]).sum() / (marks[i] | marks[j]).sum(), abs=1e-6)
    point = torch.tensor([[2.0, 2.0, 2.0, 2.0]])
    assert iou(point, point).tolist() == [[0.0]]


def naive_ciou(a: list[float], b: list[float], weight: float | None = None) -> float:
    """Equations 7 to 11 of the paper, in Python's numbers; `weight` stands for alpha if it is given."""
    wide, high = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    (wa, ha), (wb, hb) = ((x[2] - x[0], x[3] - x[1]) for x in (a, b))
    overlap = wide * high / (wa * ha + wb * hb - wide * high)
    d2 = sum(((a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2) ** 2 for i in (0, 1))
    c2 = sum((max(a[i + 2], b[i + 2]) - min(a[i], b[i])) ** 2 for i in (0, 1))
    v = 4 / math.pi**2 * (math.atan(wa / ha) - math.atan(wb / hb)) ** 2
    return overlap - d2 / c2 - (alpha(overlap, v) if weight is None else weight) * v


def alpha(overlap: float, v: float) -> float:
    return v / (1 - overlap + v) if v else 0.0


def test_ciou_is_that_of_the_paper() -> None:
    a, b = boxes(200, 2), boxes(200, 3)
    expected = [naive_ciou(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(ciou(a, b), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(ciou(a.float(), b.float()), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_ciou_worked_out_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 1.0]])
    b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 4.0, 2.0], [0.0, 0.0, 1.0, 4.0]])
    # the same; side by side: 0 - 4 / 20; across: IoU 1 / 7, centres (2, .5) and (.5, 2), around both 4 x 4
    v = 4 / math.pi**2 * (math.atan(4) - math.atan(0.25)) ** 2
    across = 1 / 7 - 4.5 / 32 - v * v / (6 / 7 + v)
    torch.testing.assert_close(ciou(a, b), torch.tensor([1.0, -0.2, across]), rtol=0, atol=1e-6)


def test_the_gradient_of_ciou_is_that_of_differences_with_alpha_fixed() -> None:
    a, b = boxes(6, 4, side=4), boxes(6, 5, side=4)
    moving = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ciou(moving, b).sum(), moving)
    overlaps, step = iou(a, b).diagonal().tolist(), 1e-5
    for i, (box, other) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        (wa, ha), (wb, hb) = ((x[2] - x[0], x[3] - x[1]) for x in (box, other))
        weight = alpha(overlaps[i], 4 / math.pi**2 * (math.atan(wa / ha) - math.atan(wb / hb)) ** 2)
        for j in range(4):
            low, high = (
                naive_ciou([x + sign * step * (k == j) for k, x in enumerate(box)], other, weight) for sign in (-1, 1)
            )
            assert float(gradient[i, j]) == pytest.approx((high - low) / (2 * step), abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
def test_ciou_and_its_gradient_are_finite_whatever_the_boxes(scale: float) -> None:
    point, line, box = [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 3.0, 1.0], [0.0, 0.0, 2.0, 2.0]
    inside_out, far, huge = [3.0, 3.0, 1.0, 1.0], [900.0, 900.0, 901.0, 901.0], [-4e3, 0.0, 4e3, 1e-3]
    kinds = [point, line, box, inside_out, far, huge]
    a = (scale * torch.tensor([x for x in kinds for _ in kinds])).requires_grad_()
    value = ciou(a, scale * torch.tensor(kinds * len(kinds)))
    assert value.isfinite().all() and (value <= 1).all() and (value >= -1.5 - 1e-6).all()
    (gradient,) = torch.autograd.grad((1 - value).mean(), a)
    assert gradient.isfinite().all()


def test_descending_the_loss_brings_a_box_that_is_far_away_to_its_target() -> None:
    box = torch.tensor([[20.0, 30.0, 3.0, 2.0]], requires_grad=True)
    wanted = torch.tensor([[5.0, 6.0, 9.0, 14.0]])
    optimizer = torch.optim.Adam([box], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        (1 - ciou(corners(box), wanted)).sum().backward()
        optimizer.step()
    assert float(ciou(corners(box.detach()), wanted)) > 0.95


@settings(max_examples=60, deadline=None)
@given(before=st.tuples(st.integers(1, 90), st.integers(1, 90)), size=st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_a_letterbox_holds_the_whole_image_and_gives_boxes_back(before: tuple[int, int], size: tuple[int, int]) -> None:
    letterbox = Letterbox(before, size)
    (height, width), (top, left) = letterbox.inner, letterbox.corner
    assert height == size[0] or width == size[1]
    assert 0 <= top and top + height <= size[0] and 0 <= left and left + width <= size[1]
    image = letterbox.image(np.zeros((*before, 3), np.uint8))
    assert image.shape == (*size, 3)
    inside = np.zeros(size, dtype=bool)
    inside[top : top + height, left : left + width] = True
    assert (image[inside] == 0).all() and (image[~inside] == 114).all()
    whole = torch.tensor([[1.0, 0.5, 0.5, 1.0, 1.0], [2.0, 0.3, 0.6, 0.2, 0.4]])
    there = letterbox.targets(whole)
    torch.testing.assert_close(
        to_pixels(there, size)[0, 1:], torch.tensor([left, top, left + width, top + height]).float(), atol=1e-3, rtol=0
    )
    found = torch.cat([to_pixels(there, size)[:, 1:], torch.tensor([[0.9, 1.0], [0.8, 2.0]])], 1)
    back = letterbox.back(found)
    torch.testing.assert_close(back[:, :4], to_pixels(whole, before)[:, 1:], atol=2e-3, rtol=1e-4)
    assert torch.equal(back[:, 4:], found[:, 4:])


def test_a_mark_is_where_its_box_says_behind_a_letterbox_too() -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    image[20:50, 10:70] = 255
    target = from_pixels(torch.tensor([[0.0, 10.0, 20.0, 70.0, 50.0]]), (60, 100))
    for size in ((64, 64), (128, 192), (32, 96)):
        letterbox = Letterbox((60, 100), size)
        rows, columns = np.nonzero(letterbox.image(image)[..., 0] > 180)
        x1, y1, x2, y2 = to_pixels(letterbox.targets(target), size)[0, 1:].tolist()
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == pytest.approx([x1, y1, x2, y2], abs=1)


def test_a_letterbox_made_for_another_image_is_named() -> None:
    with pytest.raises(DataError, match=r"an image of \(5, 6\) for a letterbox made for \(6, 5\)"):
        Letterbox((6, 5), (32, 32)).image(np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(DataError, match=r"\(0, 5\)"):
        Letterbox((0, 5), (32, 32))
