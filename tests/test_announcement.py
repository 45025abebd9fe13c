"""What a run says before and at the beginning: data, network, costs, what will be done, and how long it will take."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from secateur.costs import cost
from secateur.models import create_model
from secateur.pipeline import Experiment
from secateur.pipeline.announcement import announcement
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.stages import stages_of
from secateur.recipe import Recipe
from secateur.training.progress import Estimate, ProgressDisplay, duration


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "data": {"name": "streets", "size": (32, 48), "length": 12, "workers": 0},
        "model": {"name": "unet", "width": 4},
        "method": {"name": "l1"},
        "budget": {"params": 0.5},
        "train": {"epochs": 3, "batch_size": 4},
        "sparsify": {"epochs": 0},
        "finetune": {"epochs": 2},
        "evaluate": {"latency_repeats": 0, "recalibrate_batches": 1, "pictures": 0},
        "run": {"accelerator": "cpu", "threads": 1, "tensorboard": False},
    }
    return Recipe.model_validate({**values, **sections})


def said(recipe: Recipe, done: tuple[str, ...] = ()) -> str:
    left = [stage for stage in stages_of(recipe) if stage not in done]
    return "\n".join(announcement(Inputs(recipe), left, done, torch.device("cpu")))


def test_data_network_costs_and_stages_are_told() -> None:
    text = said(recipe())
    whole = cost(create_model("unet", classes=11, width=4), torch.zeros(1, 3, 32, 48))
    assert "streets, 12 images to train on (train) and 3 to evaluate (val), of 32x48 pixels, 11 classes" in text
    assert f"unet, {whole.params:,} parameters, {whole.macs:,} MACs for an image of 32x48" in text
    assert f"l1, params {whole.params:,} -> at most {whole.params / 2:,.0f} (50%)" in text
    assert "to do: train (3 epochs, 9 steps), prune, finetune (2 epochs, 6 steps), evaluate; on cpu" in text


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"method": {"name": "none"}, "budget": {}}, "pruning: none"),
        ({"budget": {"pruning_ratio": 0.3}}, "30% of the units go"),
        ({"budget": {"macs": 2e6}}, "-> at most 2,000,000 ("),
        ({"schedule": {"steps": 3, "epochs": 2}}, "step-1, step-2 (2 epochs, 6 steps), prune (2 epochs, 6 steps)"),
    ],
)  # fmt: skip
def test_budgets_of_all_kinds_are_told(sections: dict[str, Any], expected: str) -> None:
    assert expected in said(recipe(**sections))


def test_a_run_that_goes_on_says_what_is_done_already(tmp_path: Path) -> None:
    out = io.StringIO()
    for _ in range(2):
        display = ProgressDisplay(Console(file=out, width=200))
        experiment = Experiment(recipe(), tmp_path / "run", resume=True, progress=display)
        experiment.train()
        text, _ = out.getvalue(), out.truncate(0)
        assert ("data: streets" in text) == ("train 3/3" in text)  # nothing where nothing was left to do
    experiment.prune()
    assert "to do: prune; on cpu" in out.getvalue() and "done by an earlier attempt: train, sparsify" in out.getvalue()


# -- how long it will take --------------------------------------------------------------------------------------------


def test_the_estimate_is_that_of_the_steps_behind_the_first_ones() -> None:
    estimate = Estimate("train", 1000)
    told = [estimate.after(1, 50.0, 500), estimate.after(2, 55.0, 500)]  # a slow beginning
    told += [estimate.after(step, 55.0 + 2.0 * (step - 2), 500) for step in range(3, 8)]
    assert told[:-1] == [None] * 6
    assert told[-1] == "train: about 33 min to go, and 17 min for the trainings after it,"


def test_what_is_over_soon_is_not_estimated_and_quick_steps_are_watched_longer() -> None:
    estimate = Estimate("train", 1000)
    assert not any(estimate.after(step, 0.001 * step, 0) for step in range(1, 900))
    estimate = Estimate("train", 100_000)
    told = [estimate.after(step, 0.01 * step, 0) for step in range(1, 400)]
    assert next(step for step, text in enumerate(told, 1) if text) == 302  # 3 s behind the second
    assert told[301] == "train: about 17 min to go"


def test_a_resumed_stage_is_estimated_by_the_steps_of_this_attempt() -> None:
    estimate = Estimate("train", 1000)
    told = [estimate.after(step, 1.0 * (step - 900), 0) for step in range(901, 920)]
    assert next(text for text in told if text) == "train: about 93 s to go"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.4, "4 s"), (99.0, "99 s"), (100, "2 min"), (5900, "98 min"), (6600, "1 h 50 min"), (191_000, "2 days 5 h")],
)
def test_durations_are_as_long_as_they_need_to_be(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_estimate_is_shown_once_in_a_stage() -> None:
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out, width=200))
    display.ahead = 10
    display.start("train", 50)
    for step, now in enumerate(range(0, 100, 2), start=1):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("secateur.training.progress.time.monotonic", lambda now=now: float(now))
            display.step(step, 0, 1, 0.5, 2.0, 0.0)
    display.stop()
    line = "train: about 86 s to go, and 20 s for the trainings after it, at 2.0 images/s, evaluations not counted"
    assert out.getvalue().splitlines() == [line]
