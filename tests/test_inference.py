"""Windows, scales and mirrored views against what they mean, written out, and one process against two."""

from __future__ import annotations

import math
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.data import make_loader, open_dataset
from secateur.errors import RecipeError
from secateur.metrics import Confusion
from secateur.training import Inference, evaluate, predict


class Shallow(nn.Module):
    """A few classes from the colours around a pixel, at half the size; tells the views that it was given."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, classes, 5, padding=2)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return F.avg_pool2d(self.conv(images), 2)


def pictures(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def test_as_a_whole_it_is_the_argmax_of_the_logits() -> None:
    model, images = Shallow().eval(), pictures(2, 3, 20, 30)
    found = Inference().classes(model, images, (20, 30))
    assert found.equal(at(model(images), (20, 30)).argmax(1)) and found.equal(predict(model, images))


@pytest.mark.parametrize(("height", "width"), [(20, 31), (16, 16), (17, 40)])
def test_windows_cover_the_image_and_their_probabilities_are_averaged(height: int, width: int) -> None:
    model, images, window = Shallow().eval(), pictures(2, 3, height, width), (16, 12)
    total = torch.zeros(2, 5, height, width)
    views = torch.zeros(height, width)
    step = (math.ceil(16 * 2 / 3), math.ceil(12 * 2 / 3))
    rows, columns = (
        math.ceil((side - edge) / each) + 1 for side, edge, each in zip((height, width), window, step, strict=True)
    )
    for row in range(rows):
        for column in range(columns):
            y, x = min(row * step[0], height - 16), min(column * step[1], width - 12)
            total[:, :, y : y + 16, x : x + 12] += at(model(images[:, :, y : y + 16, x : x + 12]), window).softmax(1)
            views[y : y + 16, x : x + 12] += 1
    model.seen.clear()
    found = Inference("slide", window).classes(model, images, (height, width))
    assert (views > 0).all() and len(model.seen) == rows * columns and set(model.seen) == {(2, 3, 16, 12)}
    assert found.equal((total / views).argmax(1))


def test_an_image_smaller_than_a_window_lies_in_its_middle() -> None:
    model, images = Shallow().eval(), pictures(1, 3, 10, 30)
    padded = torch.zeros(1, 3, 16, 30)
    padded[:, :, 3:13] = images
    found = Inference("slide", (16, 30)).classes(model, images, (10, 30))
    assert found.equal(at(model(padded), (16, 30))[:, :, 3:13].argmax(1))


def test_scales_and_mirrored_views_are_averaged() -> None:
    model, images, size = Shallow().eval(), pictures(2, 3, 20, 30), (20, 30)
    total = torch.zeros(2, 5, *size)
    for scale in (0.5, 1.0, 1.5):
        view = images if scale == 1 else at(images, (round(20 * scale), round(30 * scale)))
        total += at(model(view), size).softmax(1)
        total += at(model(view.flip(-1)), size).softmax(1).flip(-1)
    how = Inference(scales=(0.5, 1.0, 1.5), flip=True)
    assert how.classes(model, images, size).equal(total.argmax(1))
    symmetric = pictures(1, 3, 20, 15)
    symmetric = torch.cat([symmetric, symmetric.flip(-1)], -1)
    found = Inference(flip=True).classes(model, symmetric, size)
    assert found.equal(found.flip(-1))


def test_predictions_are_made_at_the_labels_size() -> None:
    model, images = Shallow().eval(), pictures(2, 3, 20, 30)
    for how in (Inference(), Inference("slide", (16, 16)), Inference(scales=(2.0,))):
        assert how.classes(model, images, (40, 60)).shape == (2, 40, 60)


def test_a_third_of_a_window_is_a_third() -> None:
    model = Shallow().eval()
    Inference("slide", (12, 480)).classes(model, pictures(1, 3, 12, 1120), (12, 1120))
    assert len(model.seen) == 3  # at 0, 320 and 640


def test_windows_without_a_size_and_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="needs their size"):
        Inference("slide")
    for options in ({"overlap": 1.0}, {"scales": ()}, {"scales": (0.0,)}):
        with pytest.raises(RecipeError, match="expected a share under 1, and factors above 0"):
            Inference(**options)  # type: ignore[arg-type]


# -- several processes ------------------------------------------------------------------------------------------------

COUNT = 7  # of images, which two processes do not divide


def scored(rank: int = 0, world: int = 1, limit: int | None = None) -> dict[str, Any]:
    dataset = open_dataset("streets", split="val", size=(32, 48), length=4 * COUNT, limit=limit)
    loader = make_loader(dataset, 2, training=False, rank=rank, world_size=world)
    confusion = Confusion(dataset.classes, 255, boundary=0.02)
    scores = evaluate(Shallow(11), loader, confusion, Inference("slide", (24, 32), flip=True))
    return {**asdict(scores), "matrix": confusion.total().tolist(), "own": int(confusion.matrix.sum())}


def worker(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        torch.save([scored(rank, 2), scored(rank, 2, limit=1)], Path(out, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


def test_two_processes_score_as_one_also_where_their_parts_differ(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for index, limit in enumerate((None, 1)):  # of one image, one process sees none
        alone = scored(limit=limit)
        assert np.array(alone["matrix"]).astype(bool).any(0).sum() > 2
        for part in parts:
            assert {**part[index], "own": 0} == {**alone, "own": 0}  # the very same numbers
        assert sum(part[index]["own"] for part in parts) == alone["own"]
