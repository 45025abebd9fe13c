"""Schedules, losses and the training loop, on networks and data small enough to check by hand."""

from __future__ import annotations

import errno
import io
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from rich.console import Console
from torch import Tensor, nn

from secateur.errors import CannotError, CheckpointError, ModelError, RecipeError
from secateur.metrics import Confusion, Scores, all_logits, main_logits
from secateur.training.checkpoint import CheckpointFolder
from secateur.training.distill import Distillation
from secateur.training.evaluate import evaluate, latency, predict, recalibrate
from secateur.training.loop import StageResult, fit
from secateur.training.metrics_log import MetricsLog
from secateur.training.optimize import (
    Settings,
    lay_out_like_parameters,
    learning_rate,
    learning_rate_sum,
    make_optimizer,
    segmentation_loss,
)
from secateur.training.progress import ProgressDisplay
from secateur.training.random_state import seed_everything

CLASSES = 3


class Net(nn.Module):
    """Two convolutions, batch norm and dropout: everything that has state or randomness."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(F.relu(self.norm(self.first(x)))))


class Batches:
    """Five batches of two 8x12 images per epoch, whose labels can be learned; counts what was asked for."""

    def __init__(self, count: int = 5) -> None:
        self.count = count
        self.made = 0

    def __len__(self) -> int:
        return self.count

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in range(start, self.count):
            generator = torch.Generator().manual_seed(1000 * epoch + batch)
            images = torch.randn(2, 3, 8, 12, generator=generator)
            labels = images.argmax(1)
            labels[:, 0] = 255
            self.made += 1
            yield images, labels


class Stopped(Exception):
    """Stands for whatever ends a process."""


class Recorder:
    """Hooks with state and with an effect on the weights, like a pruning method's; can stop at a step."""

    def __init__(self, model: Net, stop_at: int | None = None) -> None:
        self.model, self.stop_at = model, stop_at
        self.strength, self.steps, self.epochs = 0.0, 0, []
        self.mean = torch.zeros(4)

    def begin(self, steps: int, lr_sum: float, momentum: float, adaptive: bool, epochs: int) -> None:
        self.strength, self.planned = 0.1 / lr_sum, (steps, lr_sum, momentum, adaptive, epochs)

    def after_backward(self) -> None:
        if self.steps == self.stop_at:
            raise Stopped
        assert self.model.norm.weight.grad is not None
        self.model.norm.weight.grad += self.strength * self.model.norm.weight.sign() * (1 + self.mean)

    def after_step(self, lr: float | None = None) -> None:
        self.mean = 0.9 * self.mean + 0.1 * self.model.norm.weight.detach()
        self.steps += 1

    def after_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def log(self) -> dict[str, float]:
        return {"mean_gamma": self.mean.mean().item()}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "epochs": self.epochs, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.epochs, self.mean = state["steps"], state["epochs"], state["mean"]


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


# Learning rates


@pytest.mark.parametrize("step", [4, 5, 17, 39])
def test_schedules_follow_their_formulas_after_the_warm_up(step: int) -> None:
    settings = {"epochs": 10, "lr": 0.2, "warmup_epochs": 1.0, "power": 0.9}
    t = (step - 4) / (40 - 4)
    cosine = learning_rate(Settings(**settings, schedule="cosine"), step, 4)
    poly = learning_rate(Settings(**settings, schedule="poly"), step, 4)
    assert cosine == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * t)), rel=1e-12)
    assert poly == pytest.approx(0.2 * (1 - t) ** 0.9, rel=1e-12)
    assert learning_rate(Settings(**settings, schedule="constant"), step, 4) == 0.2


def test_the_warm_up_is_linear_and_takes_at_most_half_of_the_steps() -> None:
    settings = Settings(epochs=10, lr=0.2, warmup_epochs=1.0)
    assert [learning_rate(settings, step, 4) for step in range(5)] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])
    short = Settings(epochs=1, lr=0.2, warmup_epochs=1.0)
    assert [learning_rate(short, step, 4) for step in range(4)] == pytest.approx([0.1, 0.2, 0.2, 0.1])


def test_the_sum_of_the_learning_rate_has_its_closed_form() -> None:
    # sum over k = 0..n-1 of (1 + cos(pi k / n)) / 2 = (n + 1) / 2; the warm-up adds (w + 1) / 2
    settings = Settings(epochs=6, lr=0.3, warmup_epochs=2.0, schedule="cosine")
    assert learning_rate_sum(settings, 5) == pytest.approx(0.3 * ((20 + 1) / 2 + (10 + 1) / 2), rel=1e-12)
    constant = Settings(epochs=6, lr=0.3, warmup_epochs=0.0, schedule="constant")
    assert learning_rate_sum(constant, 5) == pytest.approx(9.0, rel=1e-12)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(RecipeError, match="did you mean 'cosine'"):
        Settings(epochs=1, schedule="cosin")
    with pytest.raises(RecipeError, match="adamm"):
        Settings(epochs=1, optimizer="adamm")
    with pytest.raises(RecipeError, match="lr=0"):
        Settings(epochs=1, lr=0.0)


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_the_optimizer_is_the_one_that_was_asked_for(name: str, kind: str) -> None:
    optimizer = make_optimizer(Net(), Settings(epochs=1, optimizer=name, lr=0.01, momentum=0.8, weight_decay=0.05))
    assert type(optimizer).__name__ == kind
    [group] = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group.get("momentum", 0.8)) == (0.01, 0.05, 0.8)
    assert len(group["params"]) == 5


# The loss


def test_the_loss_is_the_weighted_mean_over_labelled_pixels_plus_the_auxiliary_heads() -> None:
    torch.manual_seed(0)
    main, auxiliary = torch.randn(2, CLASSES, 6, 8).double(), torch.randn(2, CLASSES, 3, 4).double()
    labels = torch.randint(0, CLASSES, (2, 6, 8))
    labels[0, :2] = 255
    weights = torch.tensor([1.0, 2.5, 0.5])

    def by_hand(logits: Tensor) -> float:
        top = bottom = 0.0
        for n, y, x in (labels != 255).nonzero().tolist():
            k = labels[n, y, x]
            top -= weights[k].item() * logits[n, :, y, x].log_softmax(0)[k].item()
            bottom += weights[k].item()
        return top / bottom

    small = F.interpolate(auxiliary, size=(6, 8), mode="bilinear", align_corners=False)
    expected = by_hand(main) + 0.4 * by_hand(small)
    for output in ((main, auxiliary), [main, auxiliary], {"out": main, "aux": auxiliary}):
        assert segmentation_loss(output, labels, weights).item() == pytest.approx(expected, rel=1e-5)
    assert segmentation_loss(main, labels, weights).item() == pytest.approx(by_hand(main), rel=1e-5)
    plain = F.cross_entropy(main.float(), labels, ignore_index=255).item()
    assert segmentation_loss(main, labels).item() == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 3.0])])
def test_a_batch_of_void_has_loss_and_gradient_zero(weights: Tensor | None) -> None:
    logits = torch.randn(1, CLASSES, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), 255), weights)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None and not logits.grad.any()


def test_a_classifier_is_trained_by_the_cross_entropy_of_its_images() -> None:
    logits, labels = torch.randn(5, CLASSES), torch.tensor([0, 2, 1, 1, 0])
    loss = segmentation_loss(logits, labels[:, None, None])
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels).item())
    assert main_logits(logits, (1, 1)).flatten(1).equal(logits)


def test_an_output_that_holds_no_logits_is_refused_with_its_shape() -> None:
    with pytest.raises(ModelError, match=r"\(2, 10, 3\)"):
        all_logits(torch.zeros(2, 10, 3))
    with pytest.raises(ModelError, match="NoneType"):
        all_logits(None)


# The loop


def run(
    path: Path, fabric: Fabric, stop_at: int | None = None, batches: Batches | None = None, **changes: Any
) -> tuple[Net, StageResult, list[dict[str, Any]]]:
    """One stage of three epochs of five steps, beginning or going on in `path`."""
    seed_everything(7)
    model = Net()
    hooks = Recorder(model, stop_at)
    settings = Settings(**{"epochs": 3, "lr": 0.05, "evaluate_every": 2, "checkpoint_minutes": 0.0, **changes})
    loader = batches or Batches()
    path.mkdir(exist_ok=True)
    result = fit(
        model,
        loader,
        settings,
        fabric,
        class_weights=torch.tensor([1.0, 2.0, 1.0]),
        hooks=hooks,
        evaluate=lambda m: evaluate(m, Batches(2), Confusion(CLASSES)),
        checkpoints=CheckpointFolder(path / "checkpoints"),
        metrics=MetricsLog(path / "metrics.jsonl"),
    )
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return model, result, lines


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "waiting_share")} for line in lines]


def test_training_learns_and_logs_a_line_per_epoch(tmp_path: Path, fabric: Fabric) -> None:
    _, result, lines = run(tmp_path, fabric, epochs=8)
    assert [line["epoch"] for line in lines] == list(range(1, 9))
    assert [line["step"] for line in lines] == list(range(5, 45, 5))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert [line["epoch"] for line in lines if "miou" in line] == [2, 4, 6, 8]
    assert all(0 <= line["waiting_share"] <= 1 and line["images_per_s"] > 0 for line in lines)
    assert {"stage", "lr", "mean_gamma"} <= set(lines[0])
    assert result.steps == 40 and result.seconds > 0 and isinstance(result.scores, Scores)
    assert result.scores.miou == lines[-1]["miou"] > lines[1]["miou"]


def test_the_hooks_are_told_the_whole_plan(fabric: Fabric) -> None:
    model = Net()
    hooks = Recorder(model)
    settings = Settings(epochs=2, optimizer="sgd", lr=0.05, momentum=0.7)
    fit(model, Batches(), settings, fabric, hooks=hooks)
    assert hooks.planned == (10, learning_rate_sum(settings, 5), 0.7, False, 2)
    assert (hooks.steps, hooks.epochs) == (10, [0, 1])
    fit(model, Batches(), Settings(epochs=1, optimizer="adam"), fabric, hooks=hooks)
    assert hooks.planned[2:4] == (0.0, True)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop_at", [0, 1, 4, 5, 7, 14])
def test_a_stopped_stage_ends_bit_identically(tmp_path: Path, fabric: Fabric, optimizer: str, stop_at: int) -> None:
    whole, _, expected = run(tmp_path / "whole", fabric, optimizer=optimizer, channels_last=True)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", fabric, stop_at, optimizer=optimizer, channels_last=True)
    batches = Batches()
    resumed, result, lines = run(tmp_path / "cut", fabric, batches=batches, optimizer=optimizer, channels_last=True)
    assert same(whole, resumed)
    assert batches.made == 15 - stop_at  # the steps done are not done again
    assert untimed(lines) == untimed(expected)
    assert result.steps == 15
    # a finished stage is not trained further
    again, _, _ = run(tmp_path / "cut", fabric, stop_at=0, optimizer=optimizer, channels_last=True)
    assert same(whole, again)


def test_loaded_optimizer_state_has_the_parameters_memory_layout() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    before = optimizer.state[model.weight]["momentum_buffer"].clone()
    optimizer.state[model.weight]["momentum_buffer"] = before.contiguous()  # as a checkpoint stores it
    lay_out_like_parameters(optimizer)
    after = optimizer.state[model.weight]["momentum_buffer"]
    assert after.stride() == model.weight.stride() != before.contiguous().stride()
    assert torch.equal(after, before)


def test_several_stops_and_a_damaged_checkpoint_change_nothing(
    tmp_path: Path, fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    whole, _, _ = run(tmp_path / "whole", fabric)
    for stop_at in (3, 6, 11):
        with pytest.raises(Stopped):
            run(tmp_path / "cut", fabric, stop_at)
        newest = CheckpointFolder(tmp_path / "cut" / "checkpoints").files()[-1]
        newest.write_bytes(newest.read_bytes()[:-100])
    resumed, _, _ = run(tmp_path / "cut", fabric)
    assert same(whole, resumed)
    assert "Going on from the older checkpoint" in caplog.text


def test_without_minutes_checkpoints_come_at_the_ends_of_epochs(tmp_path: Path, fabric: Fabric) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, fabric, stop_at=12, checkpoint_minutes=60.0)
    names = [path.name for path in CheckpointFolder(tmp_path / "checkpoints").files()]
    assert names == ["step-00000005.safetensors", "step-00000010.safetensors"]


def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(tmp_path: Path, fabric: Fabric) -> None:
    class Interrupting(Batches):
        def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for index, batch in enumerate(super().epoch(epoch, start)):
                if (epoch, index) == (1, 1):
                    signal.raise_signal(signal.SIGINT)
                yield batch

    whole, _, _ = run(tmp_path / "whole", fabric)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", fabric, batches=Interrupting(), checkpoint_minutes=60.0)
    assert CheckpointFolder(tmp_path / "cut" / "checkpoints").files()[-1].name == "step-00000007.safetensors"
    resumed, _, _ = run(tmp_path / "cut", fabric)
    assert same(whole, resumed)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_training_and_names_the_step(tmp_path: Path, fabric: Fabric, where: str) -> None:
    class Poisoned(Batches):
        def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for index, (images, labels) in enumerate(super().epoch(epoch, start)):
                if (epoch, index) == (1, 2) and where == "loss":
                    images[0, 0, 0, 0] = math.nan
                yield images, labels

    class PoisonedGradient(Recorder):
        def after_step(self, lr: float | None = None) -> None:
            super().after_step(lr)
            if self.steps == 7:
                self.model.first.weight.register_hook(lambda g: g * math.inf)

    loader = Poisoned()
    model = Net()
    hooks = Recorder(model) if where == "loss" else PoisonedGradient(model)
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(CannotError, match=r"step 8 \(stage train, epoch 2, batch 3 of 5\)"):
        fit(model, loader, Settings(epochs=3, checkpoint_minutes=0.0), fabric, hooks=hooks, checkpoints=folder)
    state = folder.load()
    assert state["position"]["step"] == 7
    assert all(torch.isfinite(t).all() for t in state["model"].values())


def test_checkpoints_of_another_network_are_refused(tmp_path: Path, fabric: Fabric) -> None:
    folder = CheckpointFolder(tmp_path)
    fit(Net(), Batches(), Settings(epochs=1), fabric, checkpoints=folder)
    with pytest.raises(CheckpointError, match="another network"):
        fit(Net(width=5), Batches(), Settings(epochs=2), fabric, checkpoints=folder)


def test_no_epochs_leave_the_weights_alone(tmp_path: Path, fabric: Fabric) -> None:
    seed_everything(7)
    fresh = Net()
    seed_everything(7)
    model = Net()
    result = fit(model, Batches(), Settings(epochs=0), fabric, checkpoints=CheckpointFolder(tmp_path))
    assert same(model, fresh) and result.steps == 0 and result.waiting_share == 0.0


def test_mixed_precision_trains(fabric: Fabric) -> None:
    torch.manual_seed(0)
    model = Net()
    mixed = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    before = evaluate(model, Batches(2), Confusion(CLASSES)).miou
    fit(model, Batches(), Settings(epochs=6, lr=0.05), mixed)
    assert evaluate(model, Batches(2), Confusion(CLASSES)).miou > before + 0.2
    assert model.first.weight.dtype == torch.float32


def test_hooks_see_gradients_of_their_true_size_behind_a_gradient_scaler() -> None:
    """In float16 the loss is scaled up by 65536; what a method adds to the gradients must not be dwarfed."""

    class Sizes(Recorder):
        def after_backward(self) -> None:
            assert self.model.norm.weight.grad is not None
            sizes.append(self.model.norm.weight.grad.abs().max().item())

    scaled = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu"))
    plain = Fabric(accelerator="cpu", devices=1)
    found = []
    for fabric in (scaled, plain):
        sizes: list[float] = []
        torch.manual_seed(0)
        model = Net()
        fit(model, Batches(), Settings(epochs=1, lr=1e-6), fabric, hooks=Sizes(model))
        found.append(sizes[0])
    assert found[0] == pytest.approx(found[1], rel=0.1)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(fabric: Fabric, terminal: bool) -> None:
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out, force_terminal=terminal, width=120))
    display_every = Settings(epochs=2, evaluate_every=1)
    scores = Scores(miou=0.625, macc=0.5, accuracy=0.5, per_class={})

    class Slow(Batches):
        def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in super().epoch(epoch, start):
                time.sleep(0.06)
                yield batch

    fit(Net(), Slow(), display_every, fabric, evaluate=lambda _: scores, display=display)
    text = out.getvalue()
    assert "train 2/2  loss" in text and "images/s  waiting" in text and "mIoU 62.5 %" in text
    assert ("━" in text and "img/s" in text and "epoch 2/2" in text) == terminal


def test_metrics_are_rewound_also_past_a_half_written_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "events")
    log.write({"stage": "train", "step": 5, "loss": 1.0}, 5)
    log.write({"stage": "finetune", "step": 5, "loss": math.nan}, 15)
    log.close()
    with log.path.open("a") as file:
        file.write('{"stage": "finetune", "st')
    log.rewind(lambda line: line["stage"] == "train")
    assert log.path.read_text() == '{"stage": "train", "step": 5, "loss": 1.0}\n'
    assert len(list((tmp_path / "events").iterdir())) == 1


# Measuring


def test_scores_are_those_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    model = Net()
    model.train()
    hits, labelled, predicted = [0] * CLASSES, [0] * CLASSES, [0] * CLASSES
    for images, labels in Batches(3).epoch(0):
        model.eval()
        guess = model(images).argmax(1)
        model.train()
        for k in range(CLASSES):
            valid = labels != 255
            hits[k] += int(((guess == k) & (labels == k)).sum())
            labelled[k] += int((labels == k).sum())
            predicted[k] += int(((guess == k) & valid).sum())
    iou = [h / (a + b - h) for h, a, b in zip(hits, labelled, predicted, strict=True)]
    confusion = Confusion(CLASSES)
    for _ in range(2):  # what was counted before is forgotten
        scores = evaluate(model, Batches(3), confusion)
    assert scores.miou == pytest.approx(sum(iou) / CLASSES, rel=1e-6)
    assert scores.accuracy == pytest.approx(sum(hits) / sum(labelled), rel=1e-6)
    assert model.training and model.norm.training


def test_small_main_logits_are_evaluated_at_the_labels_size() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return F.avg_pool2d(x, 2), torch.zeros(len(x), CLASSES, 1, 1)

    images, _ = next(Batches().epoch(0))
    expected = F.interpolate(F.avg_pool2d(images, 2), size=(8, 12), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(predict(Half(), images), expected)


def test_recalibration_gives_the_mean_of_the_batches_moments() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.9), nn.Conv2d(2, CLASSES, 1))
    norm = model[1]
    norm.running_mean.fill_(99.0)
    weights = [p.clone() for p in model.parameters()]
    model.train()
    model[1].eval()  # frozen by the user: it stays so
    means, variances = [], []
    for images, _ in Batches(3).epoch(0):
        features = model[0](images).detach().transpose(0, 1).flatten(1)
        means.append(features.mean(1))
        variances.append(features.var(1))
    assert recalibrate(model, Batches(5), 3) == 3
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-5, atol=1e-6)
    assert norm.momentum == 0.1 and not norm.training and model.training and model[2].training
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_recalibration_of_no_batches_changes_nothing() -> None:
    model = Net()
    model.norm.running_mean.fill_(3.0)  # type: ignore[union-attr]
    assert recalibrate(model, Batches(), 0) == 0
    assert model.norm.running_mean.eq(3.0).all()  # type: ignore[union-attr]


def test_latency_is_the_median_time_of_a_pass_in_milliseconds() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            time.sleep(0.2 if self.calls in (1, 5) else 0.01)  # the first call and an outlier
            return x

    model = Slow()
    assert 10 <= latency(model, torch.zeros(1, 3, 4, 4), repeats=5) < 60
    assert model.calls == 8 and model.training


def test_distillation_is_the_published_loss() -> None:
    """Against a literal loop over the pixels, in float64."""
    generator = torch.Generator().manual_seed(1)
    taught, learnt = (torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    teacher = nn.Module()
    teacher.forward = lambda images: {"out": taught}  # type: ignore[method-assign]
    temperature, distance = 2.0, 0.0
    for n in range(2):
        for y in range(2):
            for x in range(2):
                p = (taught[n, :, y, x] / temperature).exp()
                q = (learnt[n, :, y, x] / temperature).exp()
                p, q = p / p.sum(), q / q.sum()
                distance += sum(float(p[k] * (p[k].log() - q[k].log())) for k in range(3)) / 8
    task = torch.tensor(0.7, dtype=torch.float64)
    images = torch.zeros(2, 3, 2, 2)
    loss = Distillation(teacher, 0.25, temperature)(task, (learnt, taught), images)
    assert float(loss) == pytest.approx(0.75 * 0.7 + 0.25 * temperature**2 * distance, rel=1e-6)
    assert float(Distillation(teacher, 0.0)(task, learnt, images)) == pytest.approx(0.7)


def test_a_student_learns_from_its_teacher_alone(fabric: Fabric) -> None:
    torch.manual_seed(0)
    teacher, student = Net().eval(), Net()
    images = next(iter(Batches().epoch(0)))[0]
    with torch.no_grad():
        wanted = teacher(images).softmax(1)

    def distance() -> float:
        with torch.no_grad():
            return float((student.eval()(images).softmax(1) - wanted).abs().mean())

    before = distance()
    fit(student, Batches(), Settings(epochs=30, lr=0.02), fabric, distillation=Distillation(teacher, 1.0))
    assert distance() < 0.5 * before
    assert all(parameter.grad is None for parameter in teacher.parameters())


class Refusing(Net):
    """Runs into what a machine may refuse, in its third step."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls == 3:
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), r"Out of memory at step 3 .*shape \(.*batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "Out of memory at step 3"),
        (MemoryError(), "Out of memory at step 3"),
        (RuntimeError("DataLoader worker (pid(s) 42) exited unexpectedly"), "has died at step 3 .*data.workers"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "The disk is full.* at step 3 .*--resume"),
        (OSError("x: can't be written (I/O error: No space left on device (os error 28))"), "The disk is full"),
    ],
    ids=["GPU memory", "CPU memory", "Python memory", "worker", "disk", "disk, of a library"],
)  # fmt: skip
def test_what_the_machine_refuses_is_said_with_a_way_out(
    tmp_path: Path, fabric: Fabric, error: Exception, said: str
) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    settings = Settings(epochs=2, checkpoint_minutes=0)
    with pytest.raises(CannotError, match=said):
        fit(Refusing(error), Batches(), settings, fabric, checkpoints=checkpoints)
    state = checkpoints.load()
    assert state is not None and state["position"]["step"] == 2  # the last good one is there


def test_running_out_of_memory_is_said_with_a_way_out(tmp_path: Path, fabric: Fabric) -> None:
    class Hungry(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.empty(1 << 50)  # four million gigabytes

    with pytest.raises(CannotError, match=r"Out of memory at step 1 .*shape \(2, 3, 8, 12\).*train\.batch_size"):
        fit(Hungry(), Batches(), Settings(epochs=1), fabric, checkpoints=CheckpointFolder(tmp_path))


def test_other_errors_are_left_as_they_are(fabric: Fabric) -> None:
    for error in (RuntimeError("shapes do not fit"), OSError(errno.ENOENT, "no such file")):
        with pytest.raises(type(error), match=r"shapes do not fit|no such file"):
            fit(Refusing(error), Batches(), Settings(epochs=1), fabric)
