"""Which places have to find what, what a detector's maps say, and the three losses, worked out one place at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from secateur.detection import DetectionLoss, ciou, corners, decode, match
from secateur.errors import DataError, ModelError

ANCHORS = torch.tensor([[[1.0, 1.0], [2.0, 4.0]], [[1.5, 1.5], [3.0, 2.0]]])  # in cells
STRIDES = (8, 16)
SIZES = ((6, 8), (3, 4))  # rows and columns of an image of 48 x 64
CLASSES = 3
TARGETS = [
    torch.tensor([[0, 0.30, 0.40, 0.20, 0.30], [2, 0.31, 0.41, 0.15, 0.25], [1, 0.99, 0.01, 0.02, 0.02]]),
    torch.zeros(0, 5),
    torch.tensor([[1, 0.5, 0.5, 0.9, 0.9], [1, 0.7, 0.1, 0.06, 0.08]]),
]


def maps(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(TARGETS), 2, *size, 5 + CLASSES, generator=generator) for size in SIZES]


def places(level: int) -> list[tuple[int, int, int, int, list[float], int]]:
    """(image, anchor, row, column, box in cells of the image, class), by going through all cells one by one."""
    found = []
    rows, columns = SIZES[level]
    for image, targets in enumerate(TARGETS):
        for label, cx, cy, w, h in targets.tolist():
            box = [cx * columns, cy * rows, w * columns, h * rows]
            for anchor, (aw, ah) in enumerate(ANCHORS[level].tolist()):
                if max(box[2] / aw, aw / box[2], box[3] / ah, ah / box[3]) >= 4:
                    continue
                for row in range(rows):
                    for column in range(columns):
                        # the cell itself, or one beside it or above or below whose edge is less than half a cell away
                        beside = max(column - box[0], box[0] - column - 1, 0.0)
                        below = max(row - box[1], box[1] - row - 1, 0.0)
                        in_line = math.floor(box[0]) == column or math.floor(box[1]) == row
                        if in_line and max(beside, below) < 0.5:
                            found.append((image, anchor, row, column, box, int(label)))
    return found


def rows() -> Tensor:
    return torch.cat([torch.cat([torch.full((len(t), 1), float(i)), t], 1) for i, t in enumerate(TARGETS)])


@pytest.mark.parametrize("level", [0, 1])
def test_a_target_goes_to_fitting_anchors_of_its_cell_and_the_nearest_two(level: int) -> None:
    got = match(rows(), ANCHORS[level], SIZES[level])
    expected = places(level)
    assert len(expected) > 6
    whole = []
    for image, anchor, row, column, box, label in zip(*(part.tolist() for part in got), strict=True):
        whole.append((image, anchor, row, column, [box[0] + column, box[1] + row, box[2], box[3]], label))
    for mine, theirs in zip(sorted(whole), sorted(expected), strict=True):
        assert mine[:4] == theirs[:4] and mine[5] == theirs[5]
        assert mine[4] == pytest.approx(theirs[4], abs=1e-5)
    assert (got.box[:, :2] > -0.5).all() and (got.box[:, :2] < 1.5).all()


@pytest.mark.parametrize(
    ("x", "y", "cells"),
    [
        (2.2, 3.7, {(3, 2), (3, 1), (4, 2)}),  # row, column: the left and the lower neighbour
        (2.5, 3.5, {(3, 2)}),  # in the middle of its cell
        (2.0, 3.5, {(3, 2), (3, 1)}),
        (0.2, 0.2, {(0, 0)}),  # there is nothing to the left or above
        (7.8, 5.9, {(5, 7)}),
        (8.0, 6.0, {(5, 7)}),  # on the image's last corner
    ],
)
def test_neighbours_by_where_the_centre_lies_in_its_cell(x: float, y: float, cells: set[tuple[int, int]]) -> None:
    target = torch.tensor([[0, 1, x / 8, y / 6, 1 / 8, 1 / 6]], dtype=torch.float64)
    got = match(target, ANCHORS[0, :1], SIZES[0])
    assert set(zip(got.row.tolist(), got.column.tolist(), strict=True)) == cells
    assert len(got.row) == len(cells)


def test_a_target_is_matched_where_it_is_less_than_four_times_as_large_or_small() -> None:
    for width, fits in ((0.26, True), (0.25, False), (3.99, True), (4.0, False), (0.0, False)):
        target = torch.tensor([[0, 0, 0.5, 0.5, width / 8, 1 / 6]], dtype=torch.float64)
        assert (len(match(target, ANCHORS[0, :1], SIZES[0]).row) > 0) == fits
    assert len(match(torch.zeros(0, 6), ANCHORS[0], SIZES[0]).row) == 0


def test_decoded_boxes_are_those_of_the_formula() -> None:
    said = maps()
    decoded = decode(said, ANCHORS, STRIDES)
    assert decoded.shape == (3, 2 * (48 + 12), 5 + CLASSES)

    def s(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    rows_of = decoded[2].tolist()
    number = 0
    for level, (height, width) in enumerate(SIZES):
        for anchor in range(2):
            for row in range(height):
                for column in range(width):
                    raw = said[level][2, anchor, row, column].tolist()
                    expected = [
                        (column + 2 * s(raw[0]) - 0.5) * STRIDES[level],
                        (row + 2 * s(raw[1]) - 0.5) * STRIDES[level],
                        (2 * s(raw[2])) ** 2 * float(ANCHORS[level, anchor, 0]) * STRIDES[level],
                        (2 * s(raw[3])) ** 2 * float(ANCHORS[level, anchor, 1]) * STRIDES[level],
                        *map(s, raw[4:]),
                    ]
                    assert rows_of[number] == pytest.approx(expected, rel=1e-4, abs=1e-4)
                    number += 1


def entropy(logit: float, wanted: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(wanted * math.log(p) + (1 - wanted) * math.log(1 - p))


def test_the_losses_are_those_of_a_loop_over_all_places() -> None:
    said = maps()
    decoded = decode(said, ANCHORS, STRIDES)
    box = objectness = classes = 0.0
    offset = 0
    for level, (height, width) in enumerate(SIZES):
        found = places(level)
        wanted: dict[tuple[int, ...], float] = {}
        off, wrong = [], []
        for image, anchor, row, column, target, label in found:
            number = offset + (anchor * height + row) * width + column
            mine, theirs = decoded[image, number, :4] / STRIDES[level], torch.tensor(target)
            quality = float(ciou(corners(mine[None]), corners(theirs[None])))
            off.append(1 - quality)
            place = (image, anchor, row, column)
            wanted[place] = max(wanted.get(place, 0.0), quality)
            logits = said[level][place][5:].tolist()
            wrong += [entropy(logit, float(k == label)) for k, logit in enumerate(logits)]
        assert len(wanted) < len(found)  # two targets want the same place
        offset += 2 * height * width
        every = [
            entropy(float(said[level][i, a, y, x, 4]), wanted.get((i, a, y, x), 0.0))
            for i in range(3)
            for a in range(2)
            for y in range(height)
            for x in range(width)
        ]
        box += sum(off) / len(off)
        classes += sum(wrong) / len(wrong)
        objectness += (4.0, 1.0)[level] * sum(every) / len(every)
    losses = DetectionLoss(ANCHORS, balance=(4.0, 1.0))(said, TARGETS)
    assert list(losses) == ["box", "objectness", "class"]
    expected = {"box": 0.05 * box, "objectness": objectness, "class": 0.5 * CLASSES / 80 * classes}
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)
    in_eval_mode = DetectionLoss(ANCHORS, balance=(4.0, 1.0))((decoded, said), TARGETS)
    assert all(torch.equal(in_eval_mode[name], loss) for name, loss in losses.items())
    with torch.no_grad():
        halves = DetectionLoss(ANCHORS, balance=(4.0, 1.0))([raw.half() for raw in said], TARGETS)
    assert all(float(halves[name]) == pytest.approx(float(loss), rel=1e-2) for name, loss in losses.items())


def test_without_objects_only_objectness_is_left_and_everything_can_be_differentiated() -> None:
    said = [raw.requires_grad_() for raw in maps()]
    losses = DetectionLoss(ANCHORS, balance=(4.0, 1.0))(said, [torch.zeros(0, 5)] * 3)
    assert float(losses["box"].detach()) == float(losses["class"].detach()) == 0
    expected = sum(
        w * torch.nn.functional.softplus(raw[..., 4]).mean() for w, raw in zip((4.0, 1.0), said, strict=True)
    )
    torch.testing.assert_close(losses["objectness"], expected)
    for loss in losses.values():
        gradients = torch.autograd.grad(loss, said, retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_objectness_should_be_the_overlap_which_gets_no_gradient_from_it() -> None:
    said = [raw.requires_grad_() for raw in maps()]
    losses = DetectionLoss(ANCHORS, balance=(4.0, 1.0))(said, TARGETS)
    for raw in torch.autograd.grad(losses["objectness"], said, retain_graph=True):
        assert (raw[..., :4] == 0).all() and (raw[..., 5:] == 0).all() and (raw[..., 4] != 0).all()
    for raw in torch.autograd.grad(losses["box"], said, retain_graph=True):
        assert (raw[..., 4:] == 0).all() and (raw[..., :4] != 0).any()
    for raw in torch.autograd.grad(losses["class"], said):
        assert (raw[..., :5] == 0).all() and (raw[..., 5:] != 0).any()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (TARGETS[:2], "2 tensors for 3 images"),
        (torch.zeros(3, 5), r"a tensor \(3, 5\) for 3 images"),
        ([torch.zeros(0, 5), torch.zeros(2, 6), torch.zeros(0, 5)], r"image 1: shape \(2, 6\)"),
        ([*TARGETS[:2], torch.tensor([[3, 0.5, 0.5, 0.1, 0.1]])], r"image 2: \[3.0, .* a class from 0 to 2"),
        ([*TARGETS[:2], torch.tensor([[0.5, 0.5, 0.5, 0.1, 0.1]])], "image 2.*a class from 0 to 2"),
        ([*TARGETS[:2], torch.tensor([[1, 20.0, 30.0, 5.0, 5.0]])], r"image 2: \[1.0, 20.0.*fractions of the image"),
        ([*TARGETS[:2], torch.tensor([[1, 0.5, 0.5, 0.1, math.nan]])], "image 2"),
    ],
)
def test_wrong_targets_are_named(targets: list[Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DetectionLoss(ANCHORS, balance=(4.0, 1.0))(maps(), targets)


def test_an_output_of_something_else_is_named() -> None:
    loss = DetectionLoss(ANCHORS, balance=(4.0, 1.0))
    for output, message in (
        (torch.zeros(1, 5, 8, 8), "got Tensor"),
        (maps()[:1], "with 2 maps was expected"),
        ([torch.zeros(3, 3, 4, 4, 8)] * 2, r"maps of shape \(N, 2, h, w, 5 \+ classes\)"),
    ):
        with pytest.raises(ModelError, match=message):
            loss(output, TARGETS)
    with pytest.raises(ModelError, match=r"balance \(4.0, 1.0, 0.4\)"):
        DetectionLoss(ANCHORS)(maps(), TARGETS)
