"""`secateur sweep`: methods x ratios x seeds of one recipe, as processes or as jobs of a launcher."""

from __future__ import annotations

import json
import sys
import time

import pytest
from typer.testing import CliRunner

from secateur.cli import app
from secateur.errors import RecipeError, UserError
from secateur.pipeline.launch import Processes, Submitit, launcher
from secateur.recipe import load_sweep
from secateur.recipe.sweep import numbers

RECIPE = """
data: {name: streets, size: [32, 48], length: 4, workers: 0}
model: {name: unet, width: 8}
method: {name: cap, options: {side: both}}
budget: {pruning_ratio: 0.9, scope: group}
train: {epochs: 1, batch_size: 4}
sparsify: {epochs: 0}
finetune: {epochs: 0}
evaluate: {pictures: 1, latency_repeats: 0, recalibrate_batches: 0}
run: {seed: 7, tensorboard: false, threads: 1}
"""


def secateur(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.1:0.9:0.1", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("0.2:0.9:0.3", [0.2, 0.5, 0.8]),
        ("0.5,0.25, 0.5", [0.5, 0.25]),
        ("3", [3.0]),
        ("2:2:1", [2.0]),
    ],
)
def test_numbers(text, found):
    assert numbers(text, "--ratios") == found


@pytest.mark.parametrize(
    "text", ["", "a", "0.1:0.9", "0.9:0.1:0.1", "0:1:0", "0:1:-1", "0:1:1e-9", "nan", "0:inf:1", "1,,2"]
)
def test_what_are_no_numbers_is_named(text):
    with pytest.raises(RecipeError, match="--ratios"):
        numbers(text, "--ratios")


def test_rows_are_methods_times_ratios_times_seeds(recipe):
    rows = load_sweep(recipe, ["train.epochs=3"], ["l1", "cap"], [0.3, 0.6], "params", [0, 2])
    assert [row.name for row in rows] == [
        f"{method}-params_{ratio}-{seed}" for method in ("l1", "cap") for ratio in (0.3, 0.6) for seed in (0, 2)
    ]
    assert all(row.recipe.budget.scope == "group" and row.recipe.budget.pruning_ratio is None for row in rows)
    assert {row.recipe.train.epochs for row in rows} == {3}
    assert rows[-1].recipe.method.options == {"side": "both"} and rows[0].recipe.method.options == {}


def test_what_is_not_said_is_the_recipes_own(recipe):
    (row,) = load_sweep(recipe, [], [], [], "pruning_ratio", [])
    assert (row.label, row.recipe.method.options, row.recipe.budget.pruning_ratio) == ("cap", {"side": "both"}, 0.9)
    assert row.recipe.run.seed == 7


def test_of_a_comparison_rows_are_chosen_by_label(tmp_path):
    path = tmp_path / "several.yaml"
    path.write_text(RECIPE.replace("method: {name: cap, options: {side: both}}\n", "") + """
compare: {seeds: [1, 2]}
methods: [l1, {label: strong, method: {name: cap, options: {lambda1: 0.5}}}, {method: {name: random}}]
""")  # fmt: skip
    rows = load_sweep(path, [], ["random", "strong"], [0.5], "pruning_ratio", [])
    assert [row.name for row in rows] == [f"{n}-pruning_ratio_0.5-{s}" for n in ("random", "strong") for s in (1, 2)]
    assert len(load_sweep(path, [], [], [], "params", [0])) == 3
    with pytest.raises(RecipeError, match=r"no row 'stron'.*strong"):
        load_sweep(path, [], ["stron"], [0.5], "params", [])


def test_mistakes_are_named_before_anything_is_written(recipe, tmp_path):
    for arguments, said in (
        (["--ratios", "1.5"], "pruning_ratio"),
        (["--of", "parameters", "--ratios", "0.5"], "params"),
        (["--methods", "l1,nonsense"], "nonsense"),
        (["budget.scope=cost", "--ratios", "0.5"], "--of params"),
        (["--seeds", "0.5"], "whole numbers"),
        (["--launcher", "slurm"], "processes or submitit"),
        (["--set", "timeout_min=3"], "--launcher submitit"),
        (["--launcher", "submitit", "--set", "timeout"], "key=value"),
    ):
        done = secateur("sweep", recipe, *arguments, "--out", tmp_path / "out")
        assert done.exit_code == 2 and said in done.output, done.output
        assert not (tmp_path / "out" / "cap-7").exists()


def test_a_sweep_shares_its_parent_and_goes_on_where_it_stopped(recipe, tmp_path):
    out = tmp_path / "out"
    first = secateur("sweep", recipe, "--methods", "l1", "--ratios", "0.3", "--out", out)
    assert first.exit_code == 0, first.output
    made = (out / "l1-pruning_ratio_0.3-7" / "model.safetensors").stat().st_mtime_ns
    both = secateur("sweep", recipe, "--methods", "l1,random", "--ratios", "0.3,0.6", "--out", out, "--jobs", 2)
    assert both.exit_code == 0, both.output
    assert (out / "l1-pruning_ratio_0.3-7" / "model.safetensors").stat().st_mtime_ns == made
    parents = {(folder / "parent.safetensors").read_bytes() for folder in out.glob("*-7")}
    assert len(parents) == 1
    record = json.loads((out / "comparison.json").read_text())
    assert [run["folder"] for run in record["runs"]] == [
        f"{m}-pruning_ratio_{r}-7" for m in ("l1", "random") for r in (0.3, 0.6)
    ]
    assert "mIoU by the share of the parameters removed" in (out / "report.html").read_text()


def test_processes_share_the_threads(tmp_path):
    job = Processes(1).start(
        [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS']); exit(3)"], tmp_path / "c", 5
    )
    while job.poll() is None:
        time.sleep(0.01)
    assert job.poll() == 3 and (tmp_path / "c").read_text() == "5\n"


submitit = pytest.mark.skipif(
    "not __import__('importlib.util').util.find_spec('submitit')", reason="submitit is not installed"
)


@submitit
def test_jobs_of_submitit_run_fail_and_die_as_processes_do(tmp_path):
    jobs = Submitit(tmp_path / "jobs", 2, {"timeout_min": 5})
    codes = {}
    for name, code in (("good", "print('here')"), ("bad", "exit(3)")):
        codes[name] = jobs.start([sys.executable, "-c", code], tmp_path / name, 1)
    began = time.monotonic()
    while any(job.poll() is None for job in codes.values()) and time.monotonic() - began < 120:
        time.sleep(0.1)
    assert {name: job.poll() for name, job in codes.items()} == {"good": 0, "bad": 3}
    assert (tmp_path / "good").read_text() == "here\n"
    killing = "import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(1)"
    dead = jobs.start([sys.executable, "-c", killing], tmp_path / "dead", 1)
    while dead.poll() is None and time.monotonic() - began < 240:
        time.sleep(0.1)
    assert dead.poll() == 1 and "job" in (tmp_path / "dead").read_text()


@submitit
def test_a_sweep_on_submitit_is_the_sweep_of_processes(recipe, tmp_path):
    results = []
    for name in ("submitit", "processes"):
        done = secateur(
            "sweep", recipe, "--methods", "l1", "--ratios", "0.5", "--launcher", name, "--out", tmp_path / name
        )
        assert done.exit_code == 0, done.output
        results.append((tmp_path / name / "l1-pruning_ratio_0.5-7" / "model.safetensors").read_bytes())
    assert results[0] == results[1]


@submitit
def test_settings_that_submitit_refuses_are_named(tmp_path):
    with pytest.raises(UserError, match="submitit refuses"):
        launcher("submitit", tmp_path, 1, ["nonsense=3"])
    assert launcher("submitit", tmp_path, 3, ["cpus_per_task=4"]).threads == 4
