"""One stage of training, on Lightning Fabric, that can be killed at any moment and goes on as if nothing had been."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from secateur.errors import CheckpointError
from secateur.metrics import Scores
from secateur.training.checkpoint import CheckpointFolder
from secateur.training.distill import Distillation
from secateur.training.evaluate import Loader
from secateur.training.events import scales_of
from secateur.training.failures import refusals_told
from secateur.training.hooks import Hooks
from secateur.training.interrupt import Interrupt
from secateur.training.metrics_log import MetricsLog
from secateur.training.optimize import (
    Settings,
    lay_out_like_parameters,
    learning_rate,
    learning_rate_sum,
)
from secateur.training.progress import ProgressDisplay
from secateur.training.random_state import get_random_state, set_random_state
from secateur.training.step import Batch, Step
from secateur.training.synchronised import synchronised

__all__ = ["StageResult", "fit"]


@dataclass(frozen=True)
class StageResult:
    """What a finished stage cost: optimizer steps, seconds of training over all its attempts, and the share of them
    spent waiting for data; `scores` of its last evaluation, if any; `unreadable`: what is wrong with samples that could
    not be used, and how many times others took their place."""

    steps: int
    seconds: float
    waiting_share: float
    scores: Scores | None
    unreadable: dict[str, int] = field(default_factory=dict)


@dataclass
class Position:
    """Where a stage is; together with the tensors, all that a checkpoint needs."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # batches of the current epoch finished
    step: int = 0  # optimizer steps finished
    loss_sum: float = 0.0  # of the current epoch, over images
    images: int = 0  # of the current epoch
    seconds: float = 0.0  # of training, over the whole stage
    waited: float = 0.0  # of these, for data
    epoch_seconds: float = 0.0
    epoch_waited: float = 0.0
    unreadable: dict[str, int] = field(default_factory=dict)  # as of a StageResult

    def finish_epoch(self) -> None:
        self.epoch += 1
        self.batch = self.images = 0
        self.loss_sum = self.epoch_seconds = self.epoch_waited = 0.0

    def add_time(self, seconds: float, waited: float) -> None:
        self.seconds += seconds
        self.epoch_seconds += seconds
        self.waited += waited
        self.epoch_waited += waited


def fit(
    model: nn.Module,
    loader: Loader,
    settings: Settings,
    fabric: Fabric,
    *,
    stage: str = "train",
    first_epoch: int = 0,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    hooks: Hooks | None = None,
    hooks_follow: Settings | None = None,
    distillation: Distillation | None = None,
    evaluate: Callable[[nn.Module], Scores] | None = None,
    checkpoints: CheckpointFolder | None = None,
    metrics: MetricsLog | None = None,
    display: ProgressDisplay | None = None,
    pictures: Callable[[nn.Module], np.ndarray] | None = None,
    gammas: bool = False,
    replaced: Callable[[], Mapping[str, int]] | None = None,
) -> StageResult:
    """Trains `model` in place for `settings.epochs` epochs, going on from the newest checkpoint if there is one.

    Resuming is exact: on the CPU the weights are those of the uninterrupted run, bit for bit, if the caller seeds
    alike and `loader.epoch(e)` yields the same bits each time. On several devices, give each its own shard as `loader`,
    all of them of as many batches; a step is then of the batches of all devices together.

    With `settings.ema` the network is evaluated with the average of its weights, and has them in the end; in the last
    epoch this is before the hooks' `after_epoch`, so that what a method chooses there holds for what is kept.

    Args:
        model: moved to Fabric's device; its weights on entry are the starting point of the first attempt.
        loader: training batches.
        fabric: launched already when there is more than one device.
        stage: name in logs.
        first_epoch: number of the loader's epoch to begin with, so that stages do not repeat each other's augmentation.
        class_weights: (K,) for the loss.
        ignore_index: the label that counts for nothing.
        hooks: a training-time pruning method, attached to `model`.
        hooks_follow: the training whose length and learning rates the hooks are told, where this one only goes on with
            what they did there: a pull that is given as a total then goes on at its rate. Its own by default.
        distillation: a teacher that the network learns from as well.
        evaluate: called with `model` every `settings.evaluate_every` epochs and at the end.
        checkpoints: where to keep them; None keeps none.
        metrics: gets one line per epoch.
        display: gets the progress.
        pictures: draws what the network makes of some images, uint8 (H, W, 3), for TensorBoard at every evaluation.
        gammas: histograms of the batch norms' scales go to TensorBoard after every epoch.
        replaced: what could not be read since it was asked last, and how often; `secateur.data.Loader.replaced`.

    Raises:
        CannotError: the loss or a gradient is not finite; names the step. The last good checkpoint is left as it is.
        CheckpointError: the checkpoints are damaged, or of another network.
        KeyboardInterrupt: Ctrl-C was pressed; the step was finished and a checkpoint written before.
    """
    if class_weights is not None:
        class_weights = class_weights.to(fabric.device)
    return _Stage(
        Step(model, settings, fabric, class_weights, ignore_index, hooks, distillation),
        loader,
        stage,
        first_epoch,
        hooks_follow or settings,
        evaluate,
        checkpoints,
        metrics,
        display or ProgressDisplay(quiet=True),
        pictures,
        gammas,
        replaced,
    ).run()


@dataclass
class _Stage:
    """The moving parts of one call of `fit`."""

    step: Step
    loader: Loader
    stage: str
    first_epoch: int
    hooks_follow: Settings
    evaluate: Callable[[nn.Module], Scores] | None
    checkpoints: CheckpointFolder | None
    metrics: MetricsLog | None
    display: ProgressDisplay
    pictures: Callable[[nn.Module], np.ndarray] | None
    gammas: bool
    replaced: Callable[[], Mapping[str, int]] | None
    at: Position = field(default_factory=Position)
    scores: Scores | None = None
    random_state: dict[str, Any] | None = None
    saved: float = 0.0  # when the last checkpoint was written
    batch_shape: tuple[int, ...] = ()  # of the images in the last step

    def __post_init__(self) -> None:
        step = self.step
        self.model, self.settings, self.fabric, self.hooks = step.model, step.settings, step.fabric, step.hooks

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.loader) // self.settings.accumulate)

    def run(self) -> StageResult:
        settings = self.settings
        total = settings.epochs * self.steps_per_epoch
        if self.hooks is not None:
            adaptive = settings.optimizer != "sgd"
            momentum, told = 0.0 if adaptive else settings.momentum, self.hooks_follow
            lr_sum = learning_rate_sum(told, self.steps_per_epoch)
            self.hooks.begin(told.epochs * self.steps_per_epoch, lr_sum, momentum, adaptive, told.epochs)
        self.restore()
        if self.metrics is not None and self.fabric.is_global_zero:
            self.metrics.rewind(lambda line: line.get("stage") != self.stage or line.get("step", 0) <= self.at.step)
        self.display.start(self.stage, total, self.at.step)
        try:
            with ExitStack() as stack:
                interrupt = stack.enter_context(Interrupt())
                stack.enter_context(refusals_told(self.where, lambda: self.batch_shape))
                if settings.sync_batchnorm:
                    stack.enter_context(synchronised(self.model))
                self.saved = time.monotonic()
                while self.at.epoch < settings.epochs:
                    self.train_epoch(interrupt)
                    self.end_epoch()
                    if self.anywhere(interrupt.requested):
                        self.stop_here(saved=True)
        finally:
            self.display.stop()
        share = self.at.waited / self.at.seconds if self.at.seconds else 0.0
        return StageResult(self.at.step, self.at.seconds, share, self.scores, self.at.unreadable)

    def train_epoch(self, interrupt: Interrupt) -> None:
        at, settings = self.at, self.settings
        batches = self.batches()
        self.step.wrapped.train()
        while True:
            begin = time.perf_counter()
            try:
                group = list(islice(batches, settings.accumulate))
            except (RuntimeError, ConnectionError, EOFError):
                # Ctrl-C reaches the loader's processes too, and the loader may complain of their end
                if not interrupt.requested:
                    raise
                self.stop_here()
            waited = time.perf_counter() - begin
            if not group:
                break
            self.train_step(group)
            at.add_time(time.perf_counter() - begin, waited)
            speed, last_loss = at.images * self.fabric.world_size / at.epoch_seconds, self.step.finite.last_loss
            self.display.step(at.step, at.epoch, settings.epochs, last_loss, speed, at.epoch_waited / at.epoch_seconds)
            if at.batch < len(self.loader):  # otherwise the end of the epoch writes one
                if self.interrupted(interrupt):
                    self.stop_here()
                if time.monotonic() - self.saved >= 60 * settings.checkpoint_minutes:
                    self.save()

    def batches(self) -> Iterator[Batch]:
        """The epoch's remaining batches; the random generators are where the last checkpoint left them."""
        if self.random_state is not None:
            set_random_state(self.random_state)
            self.random_state = None
        return iter(self.loader.epoch(self.first_epoch + self.at.epoch, self.at.batch))

    def train_step(self, batches: list[Batch]) -> None:
        at, self.batch_shape = self.at, tuple(batches[0][0].shape)
        at.loss_sum += self.step(batches, learning_rate(self.settings, at.step, self.steps_per_epoch), self.where())
        at.step += 1
        at.batch += len(batches)
        at.images += sum(len(images) for images, _ in batches)
        if self.fabric.world_size == 1:
            self.count_unreadable()

    def count_unreadable(self) -> None:
        """Of all processes, which must all call this."""
        if self.replaced is None:
            return
        found: list[Mapping[str, int]] = [self.replaced()]
        if self.fabric.world_size > 1:
            found = found * self.fabric.world_size
            dist.all_gather_object(found, found[0])
        for what, times in (item for each in found for item in each.items()):
            self.at.unreadable[what] = self.at.unreadable.get(what, 0) + times

    def anywhere(self, here: bool) -> bool:
        """Whether it is so in any of the processes; all of them must ask."""
        return self.over_processes(float(here), "sum") > 0

    def over_processes(self, number: float, how: str) -> float:
        """The "sum" or "mean" of a number of every process; all of them must ask."""
        if self.fabric.world_size == 1:
            return number
        own = torch.tensor(number, dtype=torch.float64, device=self.fabric.device)
        whole = self.fabric.all_reduce(own, reduce_op=how)
        assert isinstance(whole, Tensor)
        return whole.item()

    def interrupted(self, interrupt: Interrupt) -> bool:
        """Processes stop behind the same step. They ask each other when their numbers are looked at anyway."""
        if self.fabric.world_size > 1 and self.at.step % self.step.finite.every:
            return False
        return self.anywhere(interrupt.requested)

    def end_epoch(self) -> None:
        at, settings, average = self.at, self.settings, self.step.average
        at.loss_sum += self.step.finite.flush()
        self.count_unreadable()
        last = at.epoch + 1 == settings.epochs
        if average is not None and last:
            average.exchange()  # for good
        self.step.share_buffers()
        if self.hooks is not None:
            self.hooks.after_epoch(at.epoch)
        record: dict[str, Any] = {
            "stage": self.stage,
            "epoch": at.epoch + 1,
            "step": at.step,
            "loss": self.over_processes(at.loss_sum / max(at.images, 1), "mean"),
            "lr": learning_rate(settings, max(at.step - 1, 0), self.steps_per_epoch),
            "images_per_s": at.images * self.fabric.world_size / max(at.epoch_seconds, 1e-9),
            "waiting_share": at.epoch_waited / max(at.epoch_seconds, 1e-9),
        }
        if self.hooks is not None:
            record.update(self.hooks.log())
        if self.evaluate is not None and (last or (at.epoch + 1) % settings.evaluate_every == 0):
            with ExitStack() as stack:
                if average is not None and not last:
                    stack.enter_context(average.shown())
                    self.step.share_buffers()
                self.scores = self.evaluate(self.model)
                self.draw()
            record.update(miou=self.scores.miou, macc=self.scores.macc, accuracy=self.scores.accuracy)
            self.display.miou = self.scores.miou
        if self.fabric.is_global_zero:
            if self.metrics is not None:
                self.metrics.write(record, self.run_step)
                if self.gammas:
                    scales = scales_of(self.model)
                    self.metrics.show(lambda events: events.histograms(scales, self.run_step), self.run_step)
            self.display.line(self.summary(record))
        at.finish_epoch()
        self.save()

    @property
    def run_step(self) -> int:
        """Optimizer steps since the beginning of the run."""
        return self.first_epoch * self.steps_per_epoch + self.at.step

    def draw(self) -> None:
        """A few predictions of the network that was just evaluated."""
        draw, name = self.pictures, f"{self.stage}/predictions"
        if draw is not None and self.metrics is not None and self.fabric.is_global_zero:
            self.metrics.show(lambda events: events.picture(name, draw(self.model), self.run_step), self.run_step)

    def summary(self, record: dict[str, Any]) -> str:
        score = f"  mIoU {100 * record['miou']:.1f} %" if "miou" in record else ""
        return (
            f"{self.stage} {record['epoch']}/{self.settings.epochs}  loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
            f"{record['images_per_s']:.1f} images/s  waiting {record['waiting_share']:.0%}{score}"
        )

    def where(self) -> str:
        at, of = self.at, len(self.loader)
        return f"step {at.step + 1} (stage {self.stage}, epoch {at.epoch + 1}, batch {at.batch + 1} of {of})"

    def stop_here(self, saved: bool = False) -> NoReturn:
        if not saved:
            self.save()
        kept = "nothing was saved" if self.checkpoints is None else "a checkpoint was written"
        self.display.line(f"{self.stage}: interrupted after step {self.at.step}; {kept}")
        raise KeyboardInterrupt

    def save(self) -> None:
        self.at.loss_sum += self.step.finite.flush()
        if self.checkpoints is not None and self.fabric.is_global_zero:
            self.checkpoints.save(
                self.at.step,
                {
                    "position": asdict(self.at),
                    "scores": None if self.scores is None else asdict(self.scores),
                    "model": dict(self.model.state_dict()),
                    "optimizer": self.step.optimizer.state_dict(),
                    "average": None if self.step.average is None else self.step.average.state_dict(),
                    "precision": self.fabric.strategy.precision.state_dict(),
                    "hooks": None if self.hooks is None else self.hooks.state_dict(),
                    "random": get_random_state(),
                },
            )
        self.saved = time.monotonic()

    def restore(self) -> None:
        state = None if self.checkpoints is None else self.checkpoints.load()
        if state is None:
            return
        assert self.checkpoints is not None
        try:
            self.model.load_state_dict(state["model"])
            self.step.optimizer.load_state_dict(state["optimizer"])
            if self.step.average is not None:
                self.step.average.load_state_dict(state["average"])
            if self.hooks is not None:
                self.hooks.load_state_dict(state["hooks"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"The checkpoints in {self.checkpoints.path} are of another network or optimizer: {error}"
            ) from error
        lay_out_like_parameters(self.step.optimizer)
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.at = Position(**state["position"])
        self.scores = None if state["scores"] is None else Scores(**state["scores"])
        self.random_state = state["random"]
        if self.scores is not None:
            self.display.miou = self.scores.miou
        self.display.line(f"{self.stage}: going on after step {self.at.step} (epoch {self.at.epoch + 1})")
