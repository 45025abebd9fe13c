"""`secateur compare`: rows out of one file, stages shared between them, failures that stay alone, tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from secateur.cli.app import app
from secateur.errors import CannotError, RecipeError
from secateur.pipeline.comparison import Comparison, stage_key
from secateur.pipeline.launch import Processes
from secateur.recipe import load_comparison

SHARED = """
data: {name: streets, size: [32, 48], length: 8, workers: 0}
model: {name: unet, width: 8}
train: {epochs: 1, batch_size: 4}
sparsify: {epochs: 1}
finetune: {epochs: 1}
evaluate: {pictures: 0, latency_repeats: 0, recalibrate_batches: 1}
run: {tensorboard: false, threads: 1}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "several.yaml"
    path.write_text(SHARED + text, encoding="utf-8")
    return path


def test_rows_are_methods_times_budgets_times_seeds(tmp_path: Path) -> None:
    rows = load_comparison(
        written(
            tmp_path,
            """
method: {name: cap, options: {side: both}}
budget: {scope: cost}
compare: {seeds: [3, 4], budgets: [{params: 0.4}, {macs: 0.3}]}
methods:
  - l1
  - {label: "Strong CAP", method: {options: {lambda1: 0.5}}}
  - {label: unpruned, method: {name: none}}
  - {scratch: l1}
""",
        ),
        ["train.epochs=2"],
    )
    assert [row.name for row in rows] == [
        "l1-params_0.4-3", "l1-params_0.4-4", "l1-macs_0.3-3", "l1-macs_0.3-4",
        "strong_cap-params_0.4-3", "strong_cap-params_0.4-4", "strong_cap-macs_0.3-3", "strong_cap-macs_0.3-4",
        "unpruned-3", "unpruned-4",
        "as_l1_from_scratch-params_0.4-3", "as_l1_from_scratch-params_0.4-4",
        "as_l1_from_scratch-macs_0.3-3", "as_l1_from_scratch-macs_0.3-4",
    ]  # fmt: skip
    by_name = {row.name: row for row in rows}
    l1, cap = by_name["l1-macs_0.3-4"].recipe, by_name["strong_cap-params_0.4-3"].recipe
    assert (l1.method.name, l1.method.options, l1.run.seed, l1.train.epochs) == ("l1", {}, 4, 2)
    assert (l1.budget.macs, l1.budget.params, l1.budget.scope) == (0.3, None, "cost")
    assert (cap.method.name, cap.method.options, cap.budget.params) == ("cap", {"lambda1": 0.5}, 0.4)
    assert by_name["unpruned-3"].recipe.method.name == "none" and by_name["unpruned-3"].heading == "unpruned"
    scratch = by_name["as_l1_from_scratch-macs_0.3-3"]
    assert scratch.scratch == "l1" and scratch.recipe.method.name == "none" and scratch.heading.endswith("macs 0.3")


def test_stages_are_shared_where_nothing_differs(tmp_path: Path) -> None:
    rows = load_comparison(
        written(
            tmp_path,
            """
compare: {seeds: [0, 1], budgets: [{params: 0.4}, {params: 0.2}]}
methods: [l1, random, cap, sfp]
""",
        )
    )
    recipes = {row.name: row.recipe for row in rows}

    def same(a: str, b: str, stage: str) -> bool:
        return stage_key(recipes[a], stage) == stage_key(recipes[b], stage)

    assert same("l1-params_0.4-0", "sfp-params_0.2-0", "train")
    assert not same("l1-params_0.4-0", "l1-params_0.4-1", "train")
    assert same("l1-params_0.4-0", "random-params_0.2-0", "sparsify")  # ordinary training for both
    assert same("cap-params_0.4-0", "cap-params_0.2-0", "sparsify")  # the budget counts at the cut only
    assert not same("l1-params_0.4-0", "cap-params_0.4-0", "sparsify")
    assert not same("sfp-params_0.4-0", "sfp-params_0.2-0", "sparsify")  # it is told the budget beforehand


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a list `methods:`"),
        ("methods: []", "expected a list `methods:`"),
        ("methods: [l7]", r"number 1 \(l7\): method.name: unknown method 'l7'"),
        ("methods: [l1, l1]", "a second row of this label"),
        ("methods: [l1, {label: L1, method: {name: l1}}]", "the folders of another row"),
        ("methods: [3]", "expected a method's name or sections"),
        ("methods: [{budget: {params: 0.5}}]", "expected a method's name, or a label"),
        ("methods: [{method: {name: l1}, trian: {epochs: 3}}]", "unknown section 'trian'; .*did you mean 'train'"),
        ("methods: [{method: l1}]", "method: expected keys with values"),
        ("methods: [l1, {scratch: l2}]", "scratch: no row 'l2'"),
        ("methods: [l1]\ncompare: {seeds: []}", "compare.seeds"),
        ("methods: [l1]\ncompare: {budgets: [{parms: 0.5}]}", "budget.parms: unknown key"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_comparison(written(tmp_path, text))


@pytest.mark.slow
def test_the_runs_are_made_once_and_share_their_parent(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
compare: {budgets: [{params: 0.5}]}
methods:
  - {label: unpruned, method: {name: none}}
  - l1
  - {scratch: l1}
""",
    )
    lines: list[str] = []
    comparison = Comparison(load_comparison(path), tmp_path / "out", Processes(2), lines.append)
    record = comparison.run()
    assert [run["row"] for run in record["runs"]] == ["unpruned", "l1", "as l1, from scratch"]
    out = tmp_path / "out"
    parents = [load_file(out / name / "parent.safetensors") for name in ("unpruned-0", "l1-params_0.5-0")]
    assert all(torch.equal(value, parents[1][key]) for key, value in parents[0].items())
    stages = [
        json.loads((out / f / "checkpoints" / "stages.json").read_text()) for f in ("unpruned-0", "l1-params_0.5-0")
    ]
    assert stages[0]["train"] == stages[1]["train"] and stages[0]["sparsify"] == stages[1]["sparsify"]
    log = (out / "l1-params_0.5-0" / "metrics.jsonl").read_text()
    logged = [json.loads(line)["stage"] for line in log.splitlines()]
    assert logged == ["train", "sparsify", "finetune"]
    pruned, scratch = (record["runs"][i]["result"]["stages"][-1] for i in (1, 2))
    assert scratch["macs"] <= pruned["macs"] and scratch["macs"] > 0.9 * pruned["macs"]
    table = (out / "comparison.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:5]] == [
        "| unpruned", "| l1, params 0.5", "| as l1, from scratch, params 0.5",
    ]  # fmt: skip

    before = len(lines)
    assert comparison.run() == record and len(lines) == before  # nothing is left to do


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others_alone_and_can_be_run_again(tmp_path: Path) -> None:
    path = written(tmp_path, "compare: {budgets: [{params: 0.5}]}\nmethods: [l1, random]\n")
    comparison = Comparison(load_comparison(path), tmp_path / "out", say=lambda _: None)
    broken = tmp_path / "out" / "l1-params_0.5-0"
    broken.mkdir(parents=True)
    (broken / "model.safetensors").mkdir()  # in the way of what the run wants to write
    (broken / "recipe.yaml").write_text("", encoding="utf-8")
    with pytest.raises(RecipeError, match="empty"):
        Comparison(load_comparison(path), tmp_path / "out")
    (broken / "recipe.yaml").unlink()
    with pytest.raises(CannotError, match=r"1 of 2 runs failed.*\n  l1-params_0.5-0: exit code"):
        comparison.run()
    assert (tmp_path / "out" / "random-params_0.5-0" / "result.json").is_file()
    (broken / "model.safetensors").rmdir()
    again = Comparison(load_comparison(path), tmp_path / "out", say=lambda _: None)
    assert len(again.run()["runs"]) == 2


def test_folders_side_by_side(tmp_path: Path) -> None:
    def result(miou: float) -> dict:
        stages = [
            {"stage": "unpruned", "miou": 0.6, "macc": 0.7, "per_class": {"a": 0.5, "b": 0.7}, "params": 4_000_000,
             "macs": 2_000_000_000, "latency_ms": None},
            {"stage": "finetuned", "miou": miou, "macc": 0.6, "per_class": {"a": miou - 0.1, "b": miou + 0.1},
             "params": 1_000_000, "macs": 500_000_000, "latency_ms": 7.0},
        ]  # fmt: skip
        return {"stages": stages, "minority": ["a"], "sparsified_miou": None, "seconds": {"train": 60.0, "prune": 60.0}}

    for name, miou in (("x-0", 0.4), ("x-1", 0.5), ("y", 0.3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result(miou)))
    runner = CliRunner()
    done = runner.invoke(app, ["compare", f"X={tmp_path}/x-0,{tmp_path}/x-1", f"{tmp_path}/y"])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[2] == "| X | 60.0 | - | - | - | 45.0 (40.0, 50.0) | 35.0 | 60.0 | 1.000 | 0.500 | 7.0 | 2 |"
    assert lines[3].startswith("| y | 60.0 | - | - | - | 30.0 | 20.0 |")
    assert lines[5:] == ["| IoU, fine-tuned | a | b |", "|---|---:|---:|", "| X | 35.0 | 55.0 |", "| y | 20.0 | 40.0 |"]
    done = runner.invoke(app, ["compare", "--json", f"{tmp_path}/y"])
    assert json.loads(done.stdout)["y"][0]["minority"] == ["a"]
    done = runner.invoke(app, ["compare", f"{tmp_path}/z"])
    assert done.exit_code == 2 and "expected run folders" in done.output
