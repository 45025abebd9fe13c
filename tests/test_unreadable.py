"""An image that can't be read: named, and the run stops; or others take its place, the same ones whatever happens."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from secateur.data import Augment, Loader, SegmentationDataset, make_loader, open_dataset
from secateur.errors import CannotError, DataError
from secateur.pipeline import Experiment
from secateur.recipe import Recipe
from secateur.training import CheckpointFolder, ProgressDisplay, Settings, fit, seed_everything

BROKEN, MISSING = "0001TP_000001.jpg", "0001TP_000004.jpg"


def damage(root: Path) -> None:
    """Two of the six training images."""
    broken = root / "train" / BROKEN
    broken.write_bytes(broken.read_bytes()[:-30])
    (root / "train" / MISSING).unlink()


def opened(root: Path, unreadable: Any = "skip", split: str = "train") -> SegmentationDataset:
    return open_dataset("camvid", root=root, size=(24, 32), split=split, unreadable=unreadable)


def training(dataset: SegmentationDataset, workers: int = 0, seed: int = 3) -> Loader:
    return make_loader(dataset, 2, training=True, seed=seed, workers=workers, augment=Augment())


def equal(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_others_take_the_place_and_are_counted_with_what_is_wrong(
    camvid_mini: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(camvid_mini)
    loader = training(opened(camvid_mini))
    for epoch in range(3):
        batches = list(loader.epoch(epoch))
        assert [len(images) for images, _ in batches] == [2, 2, 2]
    found = loader.replaced()
    [broken], [missing] = ([what for what in found if name in what] for name in (BROKEN, MISSING))
    assert "is truncated" in broken and "No such file" in missing
    assert found == {broken: 3, missing: 3} and loader.replaced() == {}
    assert caplog.text.count(BROKEN) == 1  # said once, and not in every epoch


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_ones_take_it_with_workers_and_from_the_middle_of_an_epoch(camvid_mini: Path, workers: int) -> None:
    damage(camvid_mini)
    alone, helped = training(opened(camvid_mini)), training(opened(camvid_mini), workers)
    for epoch in (0, 1):
        whole = list(alone.epoch(epoch))
        assert equal(whole, list(helped.epoch(epoch)))
        assert equal(whole[1:], list(helped.epoch(epoch, start=1)))
    assert sum(alone.replaced().values()) == 4 and helped.replaced()


def test_the_other_images_are_as_they_would_have_been(camvid_mini: Path) -> None:
    before = list(training(opened(camvid_mini)).epoch(0))
    damage(camvid_mini)
    after = list(training(opened(camvid_mini)).epoch(0))
    changed = [not torch.equal(a[i], b[i]) for (a, _), (b, _) in zip(before, after, strict=True) for i in (0, 1)]
    assert sum(changed) == 2


def test_by_default_the_image_is_named_and_training_stops(camvid_mini: Path) -> None:
    dataset = open_dataset("camvid", root=camvid_mini, size=(24, 32))
    damage(camvid_mini)
    with pytest.raises(DataError, match=rf"{BROKEN} is truncated|{MISSING} can't be read"):
        list(training(dataset).epoch(0))


def test_evaluation_never_skips(camvid_mini: Path) -> None:
    path = camvid_mini / "val" / "0001TP_000007.jpg"
    path.write_bytes(path.read_bytes()[:-30])
    dataset = opened(camvid_mini, split="val")
    with pytest.raises(DataError, match=r"0001TP_000007\.jpg is truncated"):
        list(make_loader(dataset, 2, training=False).epoch(0))


def test_with_nothing_readable_there_is_nothing_to_train_on(camvid_mini: Path) -> None:
    for path in (camvid_mini / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="6 of 6 samples can't be used"):
        opened(camvid_mini).check()
    with pytest.raises(DataError, match="none of 6 samples can be read"):
        list(training(opened(camvid_mini)).epoch(0))


def test_classes_are_counted_over_what_can_be_read(camvid_mini: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = opened(camvid_mini).check()
    damage(camvid_mini)
    rest = opened(camvid_mini).check()
    assert (rest <= whole).all() and rest.sum() < whole.sum()
    assert "2 of 6 samples can't be used" in caplog.text and BROKEN in caplog.text


class Stopped(Exception):
    """Stands for whatever ends a process."""


def test_counts_go_on_where_they_were(camvid_mini: Path, tmp_path: Path) -> None:
    class Cut(Loader):
        """Ends in the middle of the second epoch."""

        def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for index, batch in enumerate(super().epoch(epoch, start), start):
                if (epoch, index) == (1, 2):
                    raise Stopped
                yield batch

    def trained(folder: Path, cut: bool = False) -> tuple[nn.Module, dict[str, int]]:
        seed_everything(5)
        model, loader = nn.Conv2d(3, 11, 1), training(opened(camvid_mini))
        if cut:
            loader.__class__ = Cut
        fabric, settings = Fabric(accelerator="cpu", devices=1), Settings(epochs=3, checkpoint_minutes=0.0)
        kept = CheckpointFolder(folder)
        return model, fit(model, loader, settings, fabric, checkpoints=kept, replaced=loader.replaced).unreadable

    damage(camvid_mini)
    whole, expected = trained(tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(tmp_path / "cut", cut=True)
    resumed, found = trained(tmp_path / "cut")
    assert found == expected and sorted(found.values()) == [3, 3]
    assert torch.equal(whole.weight, resumed.weight)


def recipe(root: Path, unreadable: str) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"name": "camvid", "root": root, "size": (32, 48), "workers": 1, "unreadable": unreadable},
            "model": {"name": "unet", "width": 4},
            "method": {"name": "l1"},
            "train": {"epochs": 2, "batch_size": 2},
            "sparsify": {"epochs": 0},
            "finetune": {"epochs": 1},
            "evaluate": {"recalibrate_batches": 1, "latency_repeats": 0, "pictures": 0},
            "run": {"accelerator": "cpu", "threads": 1, "tensorboard": False},
        }
    )


def test_a_run_tells_at_the_end_what_it_could_not_read(
    camvid_mini: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(camvid_mini)
    with pytest.raises(DataError, match=MISSING):
        Experiment(recipe(camvid_mini, "stop"), tmp_path / "run", progress=ProgressDisplay(quiet=True))
    caplog.set_level(logging.WARNING)
    Experiment(recipe(camvid_mini, "skip"), tmp_path / "run", progress=ProgressDisplay(quiet=True)).run()
    told = json.loads((tmp_path / "run" / "result.json").read_text())["unreadable"]
    assert {stage: sorted(times.values()) for stage, times in told.items()} == {"train": [2, 2], "finetune": [1, 1]}
    assert all(any(name in what for what in told["train"]) for name in (BROKEN, MISSING))
    assert "train: 2 samples could not be read; others took their place 4 times" in caplog.text


class Mortal(SegmentationDataset):
    """Drawn scenes, of which one kills the process that reads it."""

    def __init__(self, inner: SegmentationDataset) -> None:
        super().__init__("mortal", inner.classes, inner.palette, "train", None)
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def load(self, index: int) -> Any:
        if index == 5 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.load(index)


def test_a_worker_that_is_killed_ends_the_training_with_a_way_out(tmp_path: Path) -> None:
    dataset = Mortal(open_dataset("streets", size=(32, 48), length=8))
    checkpoints = CheckpointFolder(tmp_path)

    def trained(workers: int) -> Any:
        seed_everything(5)
        model, loader = nn.Conv2d(3, 11, 1), make_loader(dataset, 2, training=True, workers=workers)
        settings = Settings(epochs=1, checkpoint_minutes=0.0)
        return fit(model, loader, settings, Fabric(accelerator="cpu", devices=1), checkpoints=checkpoints)

    with pytest.raises(CannotError, match=r"A process that loads data has died at step \d .*data\.workers.*--resume"):
        trained(workers=1)
    assert trained(workers=0).steps == 4
