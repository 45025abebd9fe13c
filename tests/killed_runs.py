"""Tiny runs that are killed with SIGKILL again and again, and resumed until they end. Run by test_resume.py.

    python killed_runs.py '{"run folder": ["moment", ...], ...}' '{"section": {...}, ...}'

Each attempt is a process of its own, forked from this one so that nothing is imported twice. A moment is `event:n`: the
process kills itself at the n-th event of that name in the attempt; or `after:seconds`: it is killed from outside. The
last attempt is one that nothing kills. The sections are put into the recipe of all runs. Prints how the attempts of
each run ended, as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur.training.checkpoint as checkpoint
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


def kill_at(event: str, n: int) -> None:
    """Arranges that this process dies at the n-th `event`."""
    count = itertools.count(1)

    def dying(function: Callable[..., Any], before: Callable[..., None] | None = None) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(count) == n:
                if before is not None:
                    before(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapped

    if event == "step":  # before an optimizer step
        for kind in (torch.optim.AdamW, torch.optim.SGD):
            kind.step = dying(kind.step)  # type: ignore[method-assign]
    elif event == "fsync":  # the file is written, and not known to be on the disk
        os.fsync = dying(os.fsync)
    elif event == "replace":  # the new file is there under its temporary name
        Path.replace = dying(Path.replace)  # type: ignore[method-assign]
    elif event == "half":  # in the middle of writing a checkpoint
        checkpoint.save_file = dying(
            checkpoint.save_file, lambda _, path: Path(path).write_bytes(b"\x88\x01\0\0\0\0\0\0{half")
        )
    elif event == "unlink":  # the new checkpoint is there, the old ones are not removed yet
        Path.unlink = dying(Path.unlink)  # type: ignore[method-assign]
    else:
        raise ValueError(event)


def attempt(out: Path, recipe: Recipe, moment: str | None) -> str:
    """One attempt to finish the run; returns 'done' or 'killed'."""
    event, _, number = (moment or "never:0").partition(":")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if event not in ("never", "after"):
                kill_at(event, int(number))
            Experiment(recipe, out, resume=True, progress=ProgressDisplay(quiet=True)).run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if event == "after":
        time.sleep(float(number))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return "killed"
    if os.WEXITSTATUS(status) == 0:
        return "done"
    raise SystemExit(f"the attempt {moment} failed")


def main() -> None:
    torch.set_num_threads(1)
    runs = json.loads(sys.argv[1])
    recipe = Recipe.model_validate({**RECIPE, **json.loads(sys.argv[2])})
    ends = {out: [attempt(Path(out), recipe, moment) for moment in [*moments, None]] for out, moments in runs.items()}
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
