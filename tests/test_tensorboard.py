"""TensorBoard's own reader finds the numbers, the pictures and the histograms of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from secateur.pipeline import Experiment
from secateur.recipe import Recipe
from secateur.report import samples_picture
from secateur.training import MetricsLog, ProgressDisplay
from secateur.training.events import EventFile, scales_of


def read(folder: Path) -> EventAccumulator:
    """All that is in a folder of event files."""
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0, "scalars": 0})
    return found.Reload()


def scalars(found: EventAccumulator, name: str) -> dict[int, float]:
    return {event.step: event.value for event in found.Scalars(name)}


def test_numbers_pictures_and_histograms_come_back(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    values = torch.tensor([-1.0, 0.0, 0.5, 2.0, float("nan")])
    events = EventFile(tmp_path / "events", 5)
    events.scalars({"train/loss": 0.25, "train/lr": 1e-3}, 5)
    events.picture("train/predictions", pixels, 5)
    events.histograms({"gamma/all": values, "gamma/none": torch.tensor([])}, 7)
    events.flush()
    found = read(tmp_path / "events")
    events.close()
    assert scalars(found, "train/loss") == {5: 0.25}
    [image] = found.Images("train/predictions")
    again = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert (image.step, image.width, image.height) == (5, 20, 12)
    assert (cv2.cvtColor(again, cv2.COLOR_BGR2RGB) == pixels).all()
    assert found.Tags()["histograms"] == ["gamma/all"]
    [histogram] = found.Histograms("gamma/all")
    told = histogram.histogram_value
    assert (told.min, told.max, told.num, told.sum, told.sum_squares) == (-1.0, 2.0, 4, 1.5, 5.25)
    # every value lies in the bucket that ends at the next limit: behind the limit before, the last limit included
    for value in (-1.0, 0.0, 0.5, 2.0):
        number = int(np.searchsorted(told.bucket_limit, value, side="right"))
        assert told.bucket[min(number, len(told.bucket) - 1)] == 1, value
    assert sum(told.bucket) == 4


def test_what_an_interrupted_attempt_wrote_is_not_shown_twice(tmp_path: Path) -> None:
    for steps in ((5, 10, 15), (10, 20)):  # the second attempt goes on behind step 5
        log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "events")
        for step in steps:
            log.write({"stage": "train", "loss": step + len(steps) / 10}, step)
        log.close()
    loss = scalars(read(tmp_path / "events"), "train/loss")
    assert loss == {5: pytest.approx(5.3), 10: pytest.approx(10.2), 20: pytest.approx(20.2)}


def test_scales_are_those_of_all_batch_norms_that_have_some() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(3)))
    model.append(nn.BatchNorm2d(3, affine=False)).append(nn.GroupNorm(1, 3))
    nn.init.constant_(model[1].weight, 0.5)
    found = {name: scales.tolist() for name, scales in scales_of(model).items()}
    assert found == {"gamma/all": [0.5, 0.5, 1, 1, 1], "gamma/1": [0.5, 0.5], "gamma/2.0": [1, 1, 1]}
    assert scales_of(nn.Conv2d(3, 2, 1)) == {}


def test_the_picture_of_samples_has_image_truth_and_prediction_in_a_line() -> None:
    image = np.full((10, 16, 3), 7, np.uint8)
    truth, guess = np.zeros((10, 16), np.uint8), np.full((10, 16), 1)
    truth[:, 8:] = 255
    red, green = (200, 0, 0), (0, 200, 0)
    picture = samples_picture([image, image], [truth, truth], [guess, truth], [red, green])
    assert picture.shape == (2 * (10 + 4), 3 * (16 + 4), 3) and picture.dtype == np.uint8
    for row in (5, 19):
        assert picture[row, 5].tolist() == [7, 7, 7]
        assert picture[row, 20 + 3].tolist() == [*red] and picture[row, 20 + 12].tolist() == [0, 0, 0]
    assert picture[5, 40 + 3].tolist() == [*green] and picture[19, 40 + 3].tolist() == [*red]
    large = samples_picture([np.zeros((400, 640, 3), np.uint8)], [np.zeros((400, 640))], [np.zeros((400, 640))], [red])
    assert large.shape == (200 + 4, 3 * 324, 3)


def tiny(**run: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"name": "streets", "size": (32, 48), "length": 8, "workers": 0},
            "model": {"name": "unet", "width": 4},
            "method": {"name": "network_slimming"},
            "budget": {"params": 0.6},
            "train": {"epochs": 2, "evaluate_every": 1},
            "sparsify": {"epochs": 2, "evaluate_every": 2},
            "finetune": {"epochs": 1},
            "evaluate": {"latency_repeats": 0, "recalibrate_batches": 1, "pictures": 0},
            "run": {"accelerator": "cpu", "threads": 1, **run},
        }
    )


def test_a_run_shows_predictions_at_every_evaluation_and_scales_while_they_are_made_sparse(tmp_path: Path) -> None:
    Experiment(tiny(), tmp_path / "run", progress=ProgressDisplay(quiet=True)).run()
    found = read(tmp_path / "run" / "tensorboard")
    steps = {name: [image.step for image in found.Images(name)] for name in found.Tags()["images"]}
    assert steps == {"train/predictions": [2, 4], "sparsify/predictions": [8], "finetune/predictions": [10]}
    [image] = found.Images("finetune/predictions")
    assert (image.width, image.height) == (3 * (48 + 4), 2 * (32 + 4))
    histograms = found.Tags()["histograms"]
    assert "gamma/all" in histograms and all(name.startswith("gamma/") for name in histograms)
    told = found.Histograms("gamma/all")
    assert [each.step for each in told] == [6, 8]
    single = sum(found.Histograms(name)[0].histogram_value.num for name in histograms if name != "gamma/all")
    assert told[0].histogram_value.num == single > 0
    assert {step for step, _ in scalars(found, "train/miou").items()} == {2, 4}


def test_pictures_and_histograms_can_be_turned_off(tmp_path: Path) -> None:
    recipe = tiny(tensorboard_pictures=0, tensorboard_gammas=False)
    Experiment(recipe, tmp_path / "run", progress=ProgressDisplay(quiet=True)).train()
    tags = read(tmp_path / "run" / "tensorboard").Tags()
    assert tags["images"] == tags["histograms"] == [] and "sparsify/loss" in tags["scalars"]
