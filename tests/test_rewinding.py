"""Learning rate rewinding: a training with the learning rates of the end of a longer one."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.errors import RecipeError
from secateur.pipeline.stages import _settings
from secateur.recipe import load_recipe
from secateur.training import Settings, learning_rate, learning_rate_sum


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
@pytest.mark.parametrize("epochs", [0, 3, 8])
def test_the_rates_are_the_last_ones_of_the_longer_training(schedule: str, epochs: int) -> None:
    whole = Settings(epochs=8, lr=0.2, schedule=schedule, warmup_epochs=2.0)
    end = Settings(epochs=epochs, lr=0.2, schedule=schedule, warmup_epochs=2.0, last_of=8)
    rates = [learning_rate(whole, step, 5) for step in range(40)]
    assert [learning_rate(end, step, 5) for step in range(5 * epochs)] == rates[40 - 5 * epochs :]
    assert learning_rate_sum(end, 5) == pytest.approx(sum(rates[40 - 5 * epochs :]), rel=1e-12)


def test_the_end_is_no_longer_than_the_whole() -> None:
    with pytest.raises(RecipeError, match="9 epochs can't be the last ones of a training of 8"):
        Settings(epochs=9, last_of=8)


RECIPE = (
    "train: {epochs: 10, lr: 0.02, schedule: poly, power: 0.7, warmup_epochs: 3.0}\nfinetune: {schedule: rewind%s}\n"
)


def recipe(tmp_path: Any, finetune: str = ", epochs: 4", more: str = "") -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE % finetune + more)
    return load_recipe(path)


def test_a_recipe_rewinds_to_the_schedule_of_its_own_training(tmp_path: Any) -> None:
    rewound = recipe(tmp_path, more="schedule: {steps: 3, epochs: 2}\nsparsify: {epochs: 5}\n")
    train = _settings(rewound, "train")
    for stage, epochs in (("finetune", 4), ("step-2", 2)):
        settings = _settings(rewound, stage)
        assert settings.epochs == epochs
        rates = [learning_rate(settings, step, 7) for step in range(7 * epochs)]
        assert rates == [learning_rate(train, step, 7) for step in range(7 * (10 - epochs), 70)]
    assert _settings(rewound, "sparsify").last_of is None and _settings(rewound, "sparsify").lr == 0.02


@pytest.mark.parametrize(
    ("finetune", "more", "said"),
    [
        (", epochs: 11", "", r"finetune.epochs.*last of train's 10 epochs"),
        (", epochs: 4", "schedule: {steps: 2, epochs: 11}\n", r"schedule.epochs.*last of train's 10 epochs"),
        (", epochs: 4, lr: 0.1", "", r"finetune.lr.*it is train's; expected null"),
        (", epochs: 4, warmup_epochs: 1.0", "", r"finetune.warmup_epochs.*expected null"),
        (", epochs: 4, power: 1.0", "", r"finetune.power.*expected null"),
        (", epochs: 4", "sparsify: {schedule: rewind}\n", r"sparsify.schedule.*expected one of cosine, poly, constant"),
    ],
)
def test_what_contradicts_rewinding_is_named(tmp_path: Any, finetune: str, more: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(tmp_path, finetune, more)
