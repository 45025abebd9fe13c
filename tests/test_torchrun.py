"""The whole pipeline under torchrun, with two processes on the CPU: through the cuts, to what one process comes to.

The network computes in float64: in float32 torch's own batch norms round by so much on the CPU that two ways to add up
the same numbers lead to weights that differ in the third digit after a few steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from killed_runs import RECIPE
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.pipeline import Experiment
from secateur.recipe import Recipe, dump_recipe
from secateur.training import ProgressDisplay


class Precise(nn.Module):
    """Batch norms, a pooling for CAP to sit at, a concatenation."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(24, classes, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x.double())
        deep = F.interpolate(self.deep(F.max_pool2d(x, 2)), scale_factor=2.0, mode="bilinear")
        return self.head(torch.cat([x, deep], 1))


SECTIONS: dict[str, Any] = {
    **RECIPE,
    "model": {"name": f"{__file__}:Precise"},
    "train": {"epochs": 2, "optimizer": "sgd", "lr": 0.02, "ema": 0.9},
    "schedule": {"steps": 2, "epochs": 1},
    "finetune": {"epochs": 2, "schedule": "rewind"},
    # as many batches of another size would give other statistics
    "evaluate": {"latency_repeats": 0, "recalibrate_batches": 0, "pictures": 1},
    "run": {**RECIPE["run"], "sync_batchnorm": True},
}


def recipe(batch_size: int) -> Recipe:
    return Recipe.model_validate({**SECTIONS, "train": {**SECTIONS["train"], "batch_size": batch_size}})


def torchrun(path: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "secateur"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, "run", str(path), "--out", str(out), "--json", *more],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any], dict[str, Any]]:
    """The run folders of two processes and of one, and what each told."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.yaml").write_text(dump_recipe(recipe(batch_size=2)))
    done = torchrun(folder / "recipe.yaml", folder / "two")
    assert done.returncode == 0, done.stderr
    alone = Experiment(recipe(batch_size=4), folder / "one", progress=ProgressDisplay(quiet=True)).run()
    return folder / "two", folder / "one", json.loads(done.stdout), json.loads(json.dumps(alone))


def test_two_processes_train_cut_and_train_on_as_one_does(runs: Any) -> None:
    two, one, _, _ = runs
    assert (two / "plan.json").read_bytes() == (one / "plan.json").read_bytes()
    numbers = []
    for name in ("parent", "model"):
        expected, found = load_file(one / f"{name}.safetensors"), load_file(two / f"{name}.safetensors")
        numbers.append(sum(tensor.numel() for tensor in found.values()))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert numbers[1] < 0.7 * numbers[0]


def test_two_processes_leave_one_run_and_one_word_of_it(runs: Any) -> None:
    two, one, told, alone = runs
    assert told == json.loads((two / "result.json").read_text())
    for ours, theirs in zip(told["stages"], alone["stages"], strict=True):
        assert ours["params"] == theirs["params"] and ours["miou"] == pytest.approx(theirs["miou"], abs=1e-5)
    records = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (two, one)]
    assert [(r["stage"], r["step"]) for r in records[0]] == [(r["stage"], r["step"]) for r in records[1]]
    assert [r["loss"] for r in records[0]] == pytest.approx([r["loss"] for r in records[1]], rel=1e-5)
