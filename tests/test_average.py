"""The moving average of the weights, and what training does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from test_training import CLASSES, Batches, Net, Recorder, Stopped, same
from torch import nn

from secateur.errors import RecipeError
from secateur.metrics import Confusion, Scores
from secateur.training import CheckpointFolder, Settings, evaluate, fit, seed_everything
from secateur.training.average import Average


class Tied(nn.Module):
    """One weight under two names, a buffer of whole numbers, one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.b.weight = self.a.weight
        self.register_buffer("index", torch.tensor([5, 7]))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def test_the_average_follows_its_formula_and_starts_with_a_small_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(10.0)
    average, expected = Average(model, decay=0.3), 10.0
    for n, value in enumerate([4.0, 6.0, -2.0, 8.0, 1.0]):
        model.weight.data.fill_(value)
        average.update()
        decay = min(0.3, (1 + n) / (10 + n))  # 0.1, 0.18, 0.25, 0.3 at n = 4
        expected = decay * expected + (1 - decay) * value
    with average.shown():
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 1.0


def test_weights_and_average_change_places_exactly_with_tied_weights_and_whole_numbers() -> None:
    torch.manual_seed(0)
    model = Tied()
    average = Average(model, 0.9)
    before = model.a.weight.detach().clone()
    for _ in range(3):
        nn.init.normal_(model.a.weight)
        model.norm.running_mean.add_(1.0)
        model.norm.num_batches_tracked.add_(1)
        model.scratch.add_(1.0)
        average.update()
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    with average.shown():
        assert model.a.weight is model.b.weight and not torch.equal(model.a.weight, raw["a.weight"])
        assert not torch.equal(model.a.weight, before)
        assert model.index.tolist() == [5, 7] and model.norm.num_batches_tracked == 3
        assert 2 < model.norm.running_mean[0] < 3  # averaged as the weights are
        assert model.scratch[0] == 3
    assert all(torch.equal(value, raw[name]) for name, value in model.state_dict().items())


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(RecipeError, match="ema=1"):
        Settings(epochs=1, ema=1.0)


class Follower(Recorder):
    """Averages the weights by hand, and keeps what it saw at the ends of epochs."""

    def __init__(self, model: Net, decay: float, stop_at: int | None = None) -> None:
        super().__init__(model, stop_at)
        self.decay, self.average = decay, model.first.weight.detach().clone()
        self.seen: list[torch.Tensor] = []

    def after_step(self, lr: float | None = None) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.average = decay * self.average + (1 - decay) * self.model.first.weight.detach()
        super().after_step(lr)

    def after_epoch(self, epoch: int) -> None:
        super().after_epoch(epoch)
        self.seen.append(self.model.first.weight.detach().clone())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.average = state["average"]


def run(path: Path, stop_at: int | None = None, **changes: Any) -> tuple[Net, Follower, list[torch.Tensor]]:
    """A stage of three epochs of five steps, evaluated at the end of each."""
    seed_everything(7)
    model, weights = Net(), []
    hooks = Follower(model, 0.8, stop_at)

    def measure(network: nn.Module) -> Scores:
        weights.append(model.first.weight.detach().clone())
        return evaluate(network, Batches(1), Confusion(CLASSES))

    settings = Settings(**{"epochs": 3, "lr": 0.05, "evaluate_every": 1, "checkpoint_minutes": 0.0, **changes})
    fabric = Fabric(accelerator="cpu", devices=1)
    fit(model, Batches(), settings, fabric, hooks=hooks, evaluate=measure, checkpoints=CheckpointFolder(path))
    return model, hooks, weights


def test_a_stage_is_evaluated_with_the_average_and_ends_with_it(tmp_path: Path) -> None:
    model, hooks, evaluated = run(tmp_path / "averaged", ema=0.8)
    raw, _, others = run(tmp_path / "raw")
    torch.testing.assert_close(model.first.weight.detach(), hooks.average)
    torch.testing.assert_close(evaluated[-1], hooks.average)
    # the training is that of the raw weights; what a method does at the end of the last epoch, it does to what is kept
    assert [torch.equal(*pair) for pair in zip(hooks.seen[:2], others[:2], strict=True)] == [True, True]
    assert torch.equal(hooks.seen[2], model.first.weight)
    assert not any(torch.equal(*pair) for pair in zip(evaluated, others, strict=True))
    assert not same(raw, model)


@pytest.mark.parametrize("stop_at", [2, 3, 8])
def test_a_stopped_stage_with_an_average_ends_bit_identically(tmp_path: Path, stop_at: int) -> None:
    whole, _, _ = run(tmp_path / "whole", ema=0.8, channels_last=True, accumulate=2)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", stop_at, ema=0.8, channels_last=True, accumulate=2)
    resumed, _, _ = run(tmp_path / "cut", ema=0.8, channels_last=True, accumulate=2)
    assert same(whole, resumed)
    again, _, _ = run(tmp_path / "cut", stop_at=0, ema=0.8, channels_last=True, accumulate=2)
    assert same(whole, again)  # a finished stage has the average already
