"""A run that is killed with SIGKILL at any moment and resumed ends bit for bit like one that is left alone.

`make kills` kills a longer run 50 times at random moments (SECATEUR_KILLS, drawn with SECATEUR_SEED); the ordinary
tests kill it a few times.
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
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("killed_runs.py")

# The run makes 6 + 3 + 3 optimizer steps and writes a checkpoint after each.
CHAINS = {
    "at the steps": ["step:1", "step:4", "step:2", "step:5", "step:3"],
    "while checkpoints are written": ["half:1", "half:3", "fsync:1", "replace:4", "unlink:1", "half:2", "fsync:8"],
    # as the last files of a stage are about to appear: the parent, a stage's record twice, the sparsified weights, the
    # plan, the cut's record, the fine-tuning's record, the result
    "at the ends of stages": [
        "replace:8",
        "replace:2",
        "replace:6",
        "replace:3",
        "replace:2",
        "replace:6",
        "replace:4",
    ],
    "at any time": ["after:0.15", "after:0.5", "after:0.7", "after:0.9", "after:0.6"],
}

# Of three cuts, with a training of 3 steps in front of the second and the third: in the first of these trainings, and
# as its first checkpoint is written; later there; as the second cut's network is written, and as its record appears; in
# the other training, and as the pruned network is about to appear.
STEPS = {"schedule": {"steps": 3, "epochs": 1}, "compensate": {"mode": "least_squares", "batches": 2}}
BETWEEN_CUTS = ["step:10", "half:1", "step:3", "half:2", "replace:2", "step:2", "replace:4"]

KILLS = int(os.environ.get("SECATEUR_KILLS", "6"))
SEED = int(os.environ.get("SECATEUR_SEED", "0"))

Runs = tuple[Path, dict[str, dict[str, Any]]]


def disturbed(folder: Path, chains: dict[str, list[str]], sections: dict[str, object]) -> Runs:
    """A folder with an undisturbed run, "whole", and one for every chain; and how the attempts of each ended."""
    plan = {str(folder / name): moments for name, moments in {"whole": [], **chains}.items()}
    command = [sys.executable, str(SCRIPT), json.dumps(plan), json.dumps(sections)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, {Path(out).name: told for out, told in json.loads(done.stdout).items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return disturbed(tmp_path_factory.mktemp("killed runs"), CHAINS, {})


def lines(run: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("images_per_s", "waiting_share")} for r in records]


@pytest.mark.parametrize("chain", CHAINS)
def test_a_run_killed_again_and_again_ends_bit_identically(runs: Runs, chain: str) -> None:
    folder, told = runs
    ends = told[chain]["ends"]
    assert told["whole"]["ends"] == ["done"]
    if chain == "at any time":  # how far each attempt comes depends on the machine
        assert (ends[0], ends[-1]) == ("killed", "done")
    else:
        assert ends == ["killed"] * len(CHAINS[chain]) + ["done"]
    check_the_same(folder / chain, folder / "whole")


def test_a_run_of_several_cuts_killed_between_them_ends_bit_identically(tmp_path: Path) -> None:
    folder, told = disturbed(tmp_path, {"chain": BETWEEN_CUTS}, STEPS)
    assert told["whole"]["ends"] == ["done"]
    assert told["chain"]["ends"] == ["killed"] * len(BETWEEN_CUTS) + ["done"]
    check_the_same(folder / "chain", folder / "whole")
    for name in ("cut-1", "cut-2", "pruned"):
        file = Path("checkpoints") / f"{name}.safetensors"
        expected, found = load_file(folder / "whole" / file), load_file(folder / "chain" / file)
        assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    assert len(json.loads((folder / "chain" / "result.json").read_text())["schedule"]) == 2


def test_kills_at_random_moments_lose_a_step_each_at_most(tmp_path: Path) -> None:
    """Moments that nobody chose, from outside; with a process that loads data, and TensorBoard."""
    epochs = 1 + KILLS // 10
    sections = {
        "data": {"name": "streets", "size": (32, 48), "length": 12, "workers": 1},
        "train": {"epochs": 2 * epochs, "batch_size": 4, "evaluate_every": 1},
        "sparsify": {"epochs": epochs},
        "finetune": {"epochs": epochs},
        "run": {"checkpoint_minutes": 0.0, "accelerator": "cpu", "threads": 1},
    }
    folder, told = disturbed(tmp_path, {"killed": [f"random:{KILLS}:{SEED}"]}, sections)
    print(json.dumps(told))
    assert told["killed"]["ends"] == ["killed"] * KILLS + ["done"]
    assert {*told["killed"]["stages"]} >= {"train", "sparsify", "prune", "finetune", "evaluate"}
    check_the_same(folder / "killed", folder / "whole")
    steps = 3 * 4 * epochs
    assert told["whole"]["steps"] == steps  # after each of which a checkpoint is written
    assert steps <= told["killed"]["steps"] <= steps + KILLS


def check_the_same(out: Path, whole: Path) -> None:
    """What two runs leave is the same, but for times."""
    for name in ("parent.safetensors", "model.safetensors"):
        expected, found = load_file(whole / name), load_file(out / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    assert (out / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    assert lines(out) == lines(whole)
    result, expected = (json.loads((run / "result.json").read_text()) for run in (out, whole))
    rows, others = (run["stages"] + run["schedule"] for run in (result, expected))
    for row, other in zip(rows, others, strict=True):
        assert {**row, "latency_ms": 0} == {**other, "latency_ms": 0}
    assert not [path for path in out.rglob(".*")]
