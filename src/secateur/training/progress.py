"""Progress on standard error: a bar on a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

import logging
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["ProgressDisplay"]

log = logging.getLogger(__name__)


class ProgressDisplay:
    """Shows how a stage of training goes. Every line shown is also logged.

    Args:
        console: where to write; standard error by default.
        quiet: write nothing (lines are still logged).

    Attributes:
        ahead: optimizer steps of the trainings behind this one, for the estimate of the time that all will take.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(file=sys.stderr)
        self.quiet = quiet
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._shown = 0.0
        self._estimate: Estimate | None = None
        self.ahead = 0
        self.miou: float | None = None

    def start(self, stage: str, steps: int, done: int = 0) -> None:
        """Begins the stage `stage` of `steps` optimizer steps, `done` of which an earlier attempt has made."""
        self.miou = None
        self._estimate = Estimate(stage, steps)
        if self.quiet or not self.console.is_terminal or not steps:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %  {task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            speed_estimate_period=60,
        )
        self._task = self._bar.add_task(stage, total=steps, completed=done, numbers="")
        self._bar.start()

    def step(self, done: int, epoch: int, epochs: int, loss: float, images_per_s: float, waiting: float) -> None:
        """Shows the numbers of the epoch in progress; at most five times a second."""
        now = time.monotonic()
        if self._estimate is not None and (told := self._estimate.after(done, now, self.ahead)):
            self._estimate = None
            self.line(f"{told} at {images_per_s:.1f} images/s, evaluations not counted")
        if self._bar is None or now - self._shown < 0.2:
            return
        self._shown = now
        score = "" if self.miou is None else f"mIoU {100 * self.miou:.1f} %  "
        numbers = f"epoch {epoch + 1}/{epochs}  loss {loss:.3f}  {score}{images_per_s:.1f} img/s  wait {waiting:.0%}"
        self._bar.update(self._task, completed=done, numbers=numbers)

    def line(self, text: str) -> None:
        """One line that stays: above the bar, or by itself."""
        log.info("%s", text)
        self.show(text)

    def show(self, text: str) -> None:
        """As `line`, but not logged."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Estimate:
    """How long a stage will take, once some steps show how long one takes.

    The first steps are slower than all others, and do not count.
    """

    WARM_UP, STEPS, SECONDS, WORTH = 2, 5, 3.0, 10.0

    def __init__(self, stage: str, steps: int) -> None:
        self.stage, self.steps = stage, steps
        self._calls = 0
        self._begin = (0, 0.0)

    def after(self, done: int, now: float, ahead: int) -> str | None:
        """What can be told after step `done`, at the time `now` in seconds; None before, and of what is over soon."""
        self._calls += 1
        if self._calls == self.WARM_UP:
            self._begin = (done, now)
        steps, seconds = done - self._begin[0], now - self._begin[1]
        if self._calls < self.WARM_UP + self.STEPS or seconds < self.SECONDS:
            return None
        here, later = ((self.steps - done) * seconds / steps, ahead * seconds / steps)
        if here + later < self.WORTH:
            return None
        after = f", and {duration(later)} for the trainings after it," if ahead else ""
        return f"{self.stage}: about {duration(here)} to go{after}"


def duration(seconds: float) -> str:
    """'40 s', '12 min', '3 h 20 min' or '2 days 5 h'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"
