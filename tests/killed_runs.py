"""Tiny runs that are killed with SIGKILL, or refused by their disk, again and again, and resumed until they end.

    python killed_runs.py '{"run folder": ["moment", ...], ...}' '{"section": {...}, ...}'

Run by test_resume.py and test_full_disk.py. Each attempt is a process of its own, forked from this one so that nothing
is imported twice. The last attempt of a run is one that nothing disturbs. The sections are put into the recipe of all
runs. A moment is one of

    event:n         the process kills itself at the n-th event of that name in the attempt; see EVENTS
    after:seconds   it is killed from outside
    random:k:seed   stands for k moments in all stages: killed from outside, a few milliseconds after some event
    full:n          the disk is full at the n-th thing that is written, of which half is there already
    failing:n       the n-th fsync or rename fails, as NFS tells it
    disk:size       the file system that the run folder is, a tmpfs, is mounted anew with this size before the attempt

Prints, as JSON, of each run how the attempts ended, how many optimizer steps they made, and the stages in which they
were killed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur.pipeline.measuring as measuring
import secateur.surgery.tensor_file as tensor_file
import secateur.training.checkpoint as checkpoint
from secateur.errors import CannotError
from secateur.pipeline import Experiment
from secateur.recipe import Recipe
from secateur.training import ProgressDisplay


class Small(nn.Module):
    """Everything that makes resuming hard: batch norm, dropout, pooling for CAP to sit at."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Conv2d(24, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        deep = F.interpolate(self.deep(self.pool(x)), scale_factor=2.0, mode="bilinear")
        return self.head(torch.cat([x, deep], 1))


RECIPE = {
    "data": {"name": "streets", "size": (32, 48), "length": 12, "workers": 0},
    "model": {"name": f"{__file__}:Small"},
    "method": {"name": "cap", "options": {"pull": (0.1, 1.0), "update": "proximal"}},
    "train": {"epochs": 2, "batch_size": 4, "evaluate_every": 1},
    "sparsify": {"epochs": 1},
    "finetune": {"epochs": 1, "optimizer": "sgd"},
    "evaluate": {"latency_repeats": 1, "recalibrate_batches": 2, "pictures": 1},
    "run": {"checkpoint_minutes": 0.0, "tensorboard": False, "accelerator": "cpu", "threads": 1},
}


# name -> the functions whose calls are these events
EVENTS: dict[str, list[tuple[Any, str]]] = {
    "step": [(torch.optim.AdamW, "step"), (torch.optim.SGD, "step")],  # before an optimizer step
    "evaluate": [(measuring, "evaluate")],
    "half": [(checkpoint, "save_file")],  # in the middle of writing a checkpoint
    "weights": [(tensor_file, "save_file")],  # of writing other tensors
    "text": [(Path, "write_text")],  # of writing a record
    "fsync": [(os, "fsync")],  # the file is written, and not known to be on the disk
    "replace": [(Path, "replace")],  # the new file is there under its temporary name
    "unlink": [(Path, "unlink")],  # the new checkpoint is there, the old ones are not removed yet
}
WRITES = ("half", "weights", "text", "fsync", "replace")


def before(events: tuple[str, ...], act: Callable[[str, tuple[Any, ...]], None]) -> None:
    """From now on `act` is called in front of all of these, with the event's name and the function's arguments."""

    def preceded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            act(name, arguments)
            return function(*arguments, **options)

        return wrapped

    for name in events:
        for owner, attribute in EVENTS[name]:
            setattr(owner, attribute, preceded(name, getattr(owner, attribute)))


def at(n: int, events: tuple[str, ...], act: Callable[[Path], None]) -> None:
    """`act` happens at the n-th of these events; of what is being written then, a part is there already."""
    count = itertools.count(1)

    def reached(event: str, arguments: tuple[Any, ...]) -> None:
        if next(count) != n:
            return
        path = Path(os.devnull)
        if event in ("half", "weights"):
            path = Path(arguments[1])
            path.with_name(".tmpA1b2C3").write_bytes(b"\x88\x01\0\0\0\0\0\0{half")  # the library's own name for it
        elif event == "text":
            path = Path(arguments[0])
            path.write_bytes(arguments[1].encode()[: len(arguments[1]) // 2])
        act(path)

    before(events, reached)


def die(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int) -> Callable[[Path], NoReturn]:
    def refusing(path: Path) -> NoReturn:
        raise OSError(number, os.strerror(number), str(path))

    return refusing


def disturb(moment: str) -> None:
    """Arranges in the process of the attempt what shall happen to it."""
    event, _, number = moment.partition(":")
    if event in EVENTS:
        at(int(number), (event,), die)
    elif event == "full":
        at(int(number), WRITES, refuse(errno.ENOSPC))
    elif event == "failing":
        at(int(number), ("fsync", "replace"), refuse(errno.EIO))


class Watch:
    """Sees the events of a run's attempts, and may want an attempt killed at one of them."""

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.stages: Counter[str] = Counter()
        self.stage = ""  # of the last event

    def begin(self) -> None:
        """An attempt begins."""

    def see(self, name: str, stage: str) -> float | None:
        """An event of that name is about to happen in that stage; returns after how many seconds to kill, if at all."""
        self.names[name] += 1
        self.stages[stage] += 1
        self.stage = stage
        return None


class Killer(Watch):
    """Kills so many attempts at moments drawn with a seed, in every stage in proportion to its events.

    Args:
        kills: how many.
        seed: draws the moments.
        whole: what was seen of the undisturbed run.
    """

    def __init__(self, kills: int, seed: int, whole: Watch) -> None:
        super().__init__()
        self.random, self.left, self.whole = random.Random(seed), kills, whole
        events, stages = sum(whole.stages.values()), [*whole.stages]
        # how many shall have happened by the end of each stage; what a stage was too short for is made up for later
        ends = [sum(whole.stages[stage] for stage in stages[: index + 1]) / events for index in range(len(stages))]
        self.by_the_end = {
            stage: kills - max(round(kills * (1 - end)), len(stages) - 1 - index)
            for index, (stage, end) in enumerate(zip(stages, ends, strict=True))
        }
        self.kills = kills

    def begin(self) -> None:
        self.at: int | None = None
        self.here = 0

    def see(self, name: str, stage: str) -> float | None:
        super().see(name, stage)
        wanted = self.by_the_end.get(stage, 0) - (self.kills - self.left)
        if wanted <= 0:
            return None
        if self.at is None:
            # less than would use the stage up, and what a kill undoes only makes it longer
            share = self.whole.stages[stage] / (self.by_the_end[stage] - self.before(stage))
            self.at = 1 + int(0.8 * share * self.random.random())
        self.here += 1
        if self.here < self.at:
            return None
        self.left -= 1
        return self.random.uniform(0, 0.008)

    def before(self, stage: str) -> int:
        """Kills that shall have happened before a stage."""
        earlier = [*self.by_the_end][: [*self.by_the_end].index(stage)]
        return self.by_the_end[earlier[-1]] if earlier else 0


def attempt(out: Path, recipe: Recipe, moment: str, watch: Watch) -> str:
    """One attempt to finish the run; returns 'done', 'killed' or 'refused'."""
    event, _, number = moment.partition(":")
    if event == "disk":
        subprocess.run(["mount", "-o", f"remount,size={number}", str(out)], check=True)
    told, tell = os.pipe()
    heed, go_on = os.pipe()
    child = os.fork()
    if child == 0:

        def tell_and_wait(name: str, _: object) -> None:
            os.write(tell, name.encode())
            os.read(heed, 1)

        os.close(told)
        code = 1
        try:
            disturb(moment)
            before(tuple(EVENTS), tell_and_wait)
            Experiment(recipe, out, resume=True, progress=ProgressDisplay(quiet=True)).run()
            code = 0
        except CannotError as error:
            traceback.print_exc()
            code = 3 if "The disk" in str(error) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(tell)
    os.close(heed)
    timer = threading.Timer(float(number) if event == "after" else 0, os.kill, (child, signal.SIGKILL))
    if event == "after":
        timer.start()
    watch.begin()
    while name := os.read(told, 1 << 10):
        delay = watch.see(name.decode(), stage_of(out))
        with contextlib.suppress(BrokenPipeError):
            os.write(go_on, b".")
        if delay is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            break  # processes that load data may live on for some seconds, and keep the pipe open
    timer.cancel()
    _, status = os.waitpid(child, 0)
    os.close(told)
    os.close(go_on)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return "killed"
    ends = {0: "done", 3: "refused"}
    if os.WEXITSTATUS(status) not in ends:
        raise SystemExit(f"the attempt {moment} failed")
    return ends[os.WEXITSTATUS(status)]


def stage_of(out: Path) -> str:
    """The first stage that is not done."""
    file = out / "checkpoints" / "stages.json"
    done = json.loads(file.read_text()) if file.is_file() else {}
    return next((stage for stage in ("train", "sparsify", "prune", "finetune", "evaluate") if stage not in done), "end")


def carried_out(out: Path, recipe: Recipe, moments: list[str], watch: Watch) -> dict[str, Any]:
    """The attempts of a run, one for every moment and then undisturbed ones, which only the watch may end, until it is
    done; how they ended, in which stages but for the last, and how many steps they made."""
    ends: list[str] = []
    stages: list[str] = []
    for moment in itertools.chain(moments, itertools.repeat("never")):
        if moment == "never" and ends[-1:] == ["done"]:
            break
        ends.append(attempt(out, recipe, moment, watch))
        stages.append(watch.stage)
    return {"ends": ends, "steps": watch.names["step"], "stages": stages[:-1]}


def main() -> None:
    torch.set_num_threads(1)
    recipe = Recipe.model_validate({**RECIPE, **json.loads(sys.argv[2])})
    report: dict[str, dict[str, Any]] = {}
    whole = Watch()  # the first run, which nothing disturbs
    for out, moments in json.loads(sys.argv[1]).items():
        watch = Watch() if report else whole
        if moments and moments[0].startswith("random:"):
            _, kills, seed = moments[0].split(":")
            moments, watch = [], Killer(int(kills), int(seed), whole)
        report[out] = carried_out(Path(out), recipe, moments, watch)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
