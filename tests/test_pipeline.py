"""The whole pipeline on a few tiny drawn streets: what a run leaves, and how it refuses."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import methods
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.data.augment import normalise
from secateur.errors import (
    BudgetError,
    CannotError,
    CheckpointError,
    DataError,
    MethodError,
    ModelError,
    NothingPrunableError,
    PlanError,
    RecipeError,
    RunFolderError,
    SecateurError,
)
from secateur.pipeline import Experiment
from secateur.pipeline.judge import Judge
from secateur.recipe import Recipe, load_recipe
from secateur.training import ProgressDisplay

TINY: dict[str, dict[str, Any]] = {
    "data": {"name": "streets", "size": (32, 48), "length": 8, "workers": 0},
    "model": {"name": "unet", "width": 4},
    "method": {"name": "l1"},
    "train": {"epochs": 2},
    "sparsify": {"epochs": 1},
    "finetune": {"epochs": 1},
    "evaluate": {"latency_repeats": 2, "recalibrate_batches": 2, "pictures": 2},
    "run": {"tensorboard": False, "accelerator": "cpu"},
}


def tiny(**sections: dict[str, Any]) -> Recipe:
    """The tiny recipe with some keys replaced."""
    names = {*TINY, *sections}
    return Recipe.model_validate({name: {**TINY.get(name, {}), **sections.get(name, {})} for name in names})


def experiment(recipe: Recipe, out: Path, **options: Any) -> Experiment:
    return Experiment(recipe, out, progress=ProgressDisplay(quiet=True), **options)


def unet() -> torch.nn.Module:
    return secateur.create_model("unet", classes=11, width=4)


def same(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def pruned_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny recipe with l1."""
    out = tmp_path_factory.mktemp("runs") / "l1 run"
    experiment(tiny(), out).run()
    return out


@pytest.mark.parametrize("method", ["l1", "cap", "none"])
def test_a_run_leaves_everything_that_is_promised(tmp_path: Path, method: str) -> None:
    out = tmp_path / "a run"
    recipe = tiny(method={"name": method}, run={"tensorboard": True})
    returned = experiment(recipe, out, command="secateur run tiny.yaml").run()
    result = json.loads((out / "result.json").read_text())
    assert result == returned
    ladder = ["unpruned", "pruned", "recalibrated", "finetuned"] if method != "none" else ["unpruned", "finetuned"]
    assert [row["stage"] for row in result["stages"]] == ladder
    for row in result["stages"]:
        assert all(0 <= row[key] <= 1 for key in ("miou", "macc", "accuracy"))
        assert len(row["per_class"]) == 11 and row["latency_ms"] > 0
        known = [value for value in row["per_class"].values() if value is not None]
        assert row["miou"] == pytest.approx(sum(known) / len(known))
    first, last = result["stages"][0], result["stages"][-1]
    assert first["params"] == sum(p.numel() for p in unet().parameters())
    final = secateur.load(out / "model.safetensors", unet())
    assert last["params"] == sum(p.numel() for p in final.parameters())
    if method == "none":
        assert result["budget"] is None and result["verification"] is None
        assert (last["params"], last["macs"]) == (first["params"], first["macs"])
    else:
        assert result["budget"]["asked"] == {"params": 0.5}
        assert last["params"] / first["params"] == pytest.approx(result["budget"]["achieved"]["params"])
        assert 0.3 < result["budget"]["achieved"]["params"] <= 0.5
        assert result["verification"]["ok"] and result["verification"]["relative_error"] <= 1e-5
        assert last["macs"] < first["macs"] and last["paper_flops"] < first["paper_flops"]
    plan = secateur.Plan.from_json((out / "plan.json").read_text())
    assert same_shapes(secateur.apply(unet(), plan), final)
    assert load_file(out / "parent.safetensors").keys() == unet().state_dict().keys()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        ("train", 1),
        ("train", 2),
        ("sparsify", 1),
        ("finetune", 1),
    ]
    assert ("gamma_median" in lines[2]) == (method == "cap")
    assert load_recipe(out / "recipe.yaml") == recipe
    assert (out / "pictures" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").iterdir())
    assert "finetuned: mIoU" in (out / "log.txt").read_text()
    assert (result["seed"], result["command"], result["method"]["name"]) == (0, "secateur run tiny.yaml", method)
    assert result["versions"]["torch"] == torch.__version__
    assert set(result["waiting_share"]) == {"train", "sparsify", "finetune"}
    assert all(seconds >= 0 for seconds in result["seconds"].values())


def same_shapes(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return {n: t.shape for n, t in a.state_dict().items()} == {n: t.shape for n, t in b.state_dict().items()}


def test_one_stage_after_the_other_ends_like_the_whole_run(tmp_path: Path, pruned_run: Path) -> None:
    out = tmp_path / "run"
    first = experiment(tiny(), out).train()
    assert [row["stage"] for row in first["stages"]] == ["unpruned"]
    assert not (out / "result.json").exists()
    second = experiment(tiny(), out, resume=True).prune()
    assert [row["stage"] for row in second["stages"]] == ["unpruned", "pruned", "recalibrated"]
    experiment(tiny(), out, resume=True).finetune()
    result = experiment(tiny(), out, resume=True).evaluate()
    assert len(result["stages"]) == 4 and (out / "result.json").exists()
    assert same(out / "model.safetensors", pruned_run / "model.safetensors")
    assert same(out / "parent.safetensors", pruned_run / "parent.safetensors")
    # all done: nothing is done again
    assert experiment(tiny(), out, resume=True).run()["seconds"] == result["seconds"]


def whole() -> secateur.Cost:
    return secateur.cost(unet(), torch.zeros(1, 3, 32, 48))


GOALS: dict[str, tuple[dict[str, float], list[float]]] = {
    "a fraction": ({"params": 0.4}, [0.8, 0.6, 0.4]),
    "an absolute budget": ({"macs": 0.4 * whole().macs}, [0.8, 0.6, 0.4]),
    "a ratio": ({"pruning_ratio": 0.6}, [0.2, 0.4, 0.6]),
}


@pytest.mark.parametrize("name", GOALS)
def test_several_cuts_lead_to_the_budget(tmp_path: Path, name: str) -> None:
    budget, goals = GOALS[name]
    [(what, limit)] = budget.items()
    method = {"name": "cap", "options": {"pull": [0.1, 0.2], "update": "proximal"}}
    recipe = tiny(budget=budget, schedule={"steps": 3, "epochs": 1}, method=method)
    out = tmp_path / "run"
    experiment(recipe, out).train()
    partial = experiment(recipe, out, resume=True).prune()
    result = experiment(recipe, out, resume=True).run()
    assert [row["stage"] for row in result["stages"]] == ["unpruned", "pruned", "recalibrated", "finetuned"]
    assert [row["stage"] for row in result["schedule"]] == ["step-1", "step-2"] and partial["schedule"] == result[
        "schedule"
    ]
    for row, goal in zip(result["schedule"], goals, strict=False):
        assert row["budget"]["asked"] == {what: pytest.approx(goal)}
        achieved = row["budget"]["achieved"][what]
        assert (goal - 0.01 if what == "pruning_ratio" else goal - 0.1) <= achieved <= goal + 1e-9
        if what != "pruning_ratio":  # counted without any memory of the steps
            assert row[what] / getattr(whole(), what) == pytest.approx(achieved)
        assert row["verification"]["ok"] and 0 <= row["miou"] <= 1 and 0 <= row["trained_miou"] <= 1
    assert result["budget"]["asked"] == {what: limit} and result["verification"]["ok"]
    sizes = [result["stages"][0], *result["schedule"], result["stages"][1]]
    assert all(a["params"] > b["params"] for a, b in itertools.pairwise(sizes))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["train", "train", "sparsify", "step-2", "step-3", "finetune"]
    assert ["gamma_median" in line for line in lines] == [False, False, True, True, True, False]
    assert result["steps"]["prune"] == result["steps"]["step-2"] == result["steps"]["finetune"]
    final = secateur.load(out / "model.safetensors", unet())
    assert result["stages"][-1]["params"] == sum(p.numel() for p in final.parameters())
    assert "step-1: mIoU" in (out / "log.txt").read_text()


def test_between_cuts_a_pull_goes_on_at_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, float]] = []
    begin = secateur.Pruner.begin

    def noted(pruner: secateur.Pruner, steps: int, lr_sum: float, *rest: Any) -> None:
        told.append((steps, lr_sum))
        begin(pruner, steps, lr_sum, *rest)

    monkeypatch.setattr(secateur.Pruner, "begin", noted)
    method = {"name": "network_slimming", "options": {"pull": 0.1, "update": "proximal"}}
    recipe = tiny(method=method, sparsify={"epochs": 2}, schedule={"steps": 2, "epochs": 1})
    experiment(recipe, tmp_path / "run").run()
    assert len(told) == 2 and told[0] == told[1] and told[0][0] == 4


def test_without_a_schedule_there_is_none(pruned_run: Path) -> None:
    result = json.loads((pruned_run / "result.json").read_text())
    assert result["schedule"] == [] and result["compensation"] is None


@pytest.mark.parametrize("network", ["unet", "segnet", "residual"])
@pytest.mark.parametrize("method", methods.PRUNING)
def test_every_method_runs_the_whole_pipeline(tmp_path: Path, method: str, network: str) -> None:
    model = {"name": network, "width": 8}
    if network == "residual":
        model = {"name": f"{Path(__file__).with_name('own_networks.py')}:residual", "width": 32}
    recipe = tiny(
        method={"name": method},
        model=model,
        budget={"params": 0.6},
        train={"epochs": 1},
        sparsify={"epochs": 2},
        evaluate={"latency_repeats": 0, "pictures": 0},
    )
    result = experiment(recipe, tmp_path / "run").run()
    assert 0.59 <= result["budget"]["achieved"]["params"] <= 0.6
    assert result["verification"]["ok"] and result["verification"]["relative_error"] <= 1e-5
    stages = {row["stage"]: row for row in result["stages"]}
    assert 0.59 <= stages["finetuned"]["params"] / stages["unpruned"]["params"] <= 0.6


def test_the_unpruned_network_teaches_in_the_fine_tuning(tmp_path: Path, pruned_run: Path) -> None:
    taught = experiment(tiny(finetune={"epochs": 1, "distill": 0.5, "temperature": 2.0}), tmp_path / "run")
    result, plain = taught.run(), json.loads((pruned_run / "result.json").read_text())
    assert result["stages"][:-1] == [{**row, "latency_ms": result["stages"][i]["latency_ms"]}
                                     for i, row in enumerate(plain["stages"][:-1])]  # fmt: skip
    assert result["stages"][-1]["per_class"] != plain["stages"][-1]["per_class"]


@pytest.mark.parametrize("mode", ["mean", "least_squares"])
def test_what_was_cut_is_carried_over_into_what_stays(tmp_path: Path, pruned_run: Path, mode: str) -> None:
    recipe = tiny(compensate={"mode": mode, "batches": 2}, finetune={"epochs": 0})
    result = experiment(recipe, tmp_path / "run").run()
    ladder = ["unpruned", "pruned", "compensated", "recalibrated", "finetuned"]
    if mode == "least_squares":
        ladder.remove("recalibrated")
    assert [row["stage"] for row in result["stages"]] == ladder
    assert (result["recalibration_batches"] == 0) == (mode == "least_squares")
    before = json.loads((pruned_run / "result.json").read_text())["stages"]
    assert result["stages"][1]["per_class"] == before[1]["per_class"]  # the same cut
    assert result["stages"][2]["per_class"] != before[1]["per_class"]
    assert result["compensation"]["mode"] == mode and result["compensation"]["consumers"] >= 3
    assert result["compensation"]["left_alone"] == []
    if mode == "least_squares":  # nothing changes the network afterwards
        assert result["stages"][-1]["per_class"] == result["stages"][2]["per_class"]


def test_compensation_is_measured_on_training_images_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stage does is what `secateur.compensate` does with the first plain training batches."""
    seen: dict[str, Any] = {}

    def noted(model: Any, graph: Any, plan: Any, data: Any, mode: str, **options: Any) -> secateur.Compensated:
        seen.update(images=[images for images, _ in itertools.islice(data, 2)], options=options)
        seen["result"] = secateur.compensate(model, graph, plan, seen["images"], mode, new_biases=False)
        return seen["result"]

    monkeypatch.setattr("secateur.pipeline.experiment.compensate", noted)
    recipe = tiny(compensate={"mode": "least_squares", "batches": 2}, data={"flip": 1.0, "scale": (0.5, 0.5)})
    run = experiment(recipe, tmp_path / "run")
    run.train()
    run.prune()
    samples = [torch.from_numpy(normalise(run.inputs.data["train"].read(i).image)).permute(2, 0, 1) for i in range(8)]
    assert seen["options"] == {"batches": 2, "new_biases": False} and len(seen["images"]) == 2
    for image in torch.cat(seen["images"]):
        assert any(torch.equal(image, sample) for sample in samples)
    pruned = secateur.load(tmp_path / "run" / "checkpoints" / "pruned.safetensors", unet()).state_dict()
    assert all(torch.equal(pruned[name], tensor) for name, tensor in seen["result"].model.state_dict().items())


@pytest.mark.parametrize("stage", ["prune", "finetune", "evaluate"])
def test_a_stage_without_the_one_before_says_which_is_missing(tmp_path: Path, stage: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunFolderError, match="no finished stage 'train'"):
        getattr(experiment(tiny(), out, resume=True), stage)()
    assert not out.exists()


def test_the_seed_decides_the_result(tmp_path: Path, pruned_run: Path) -> None:
    experiment(tiny(run={"seed": 1}), tmp_path / "other").run()
    assert not same(tmp_path / "other" / "parent.safetensors", pruned_run / "parent.safetensors")


def test_the_run_seed_is_the_methods_unless_it_is_given(tmp_path: Path) -> None:
    run = {"seed": 5}
    assert experiment(tiny(method={"name": "random"}, run=run), tmp_path).inputs.method_options["seed"] == 5
    given = tiny(method={"name": "random", "options": {"seed": 2}}, run=run)
    assert experiment(given, tmp_path).inputs.method_options["seed"] == 2


def test_a_trained_parent_is_taken_over_and_can_go_straight_to_the_cut(tmp_path: Path, pruned_run: Path) -> None:
    parent = pruned_run / "parent.safetensors"
    recipe = tiny(model={"weights": parent}, train={"epochs": 0}, sparsify={"epochs": 0}, finetune={"epochs": 0})
    result = experiment(recipe, tmp_path / "run").run()
    assert same(tmp_path / "run" / "parent.safetensors", parent)
    before = json.loads((pruned_run / "result.json").read_text())["stages"][0]
    assert result["stages"][0]["per_class"] == before["per_class"]
    assert result["stages"][2]["per_class"] == result["stages"][3]["per_class"]


def test_the_pruned_widths_can_be_trained_from_scratch(tmp_path: Path, pruned_run: Path) -> None:
    recipe = tiny(model={"plan": pruned_run / "plan.json"}, method={"name": "none"})
    result = experiment(recipe, tmp_path / "run").run()
    pruned = json.loads((pruned_run / "result.json").read_text())["stages"][-1]
    assert [row["params"] for row in result["stages"]] == [pruned["params"]] * 2
    final = secateur.load(tmp_path / "run" / "model.safetensors", unet())
    assert same_shapes(final, secateur.load(pruned_run / "model.safetensors", unet()))


def test_a_folder_in_use_is_left_alone(tmp_path: Path, pruned_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in pruned_run.rglob("*")}
    with pytest.raises(RunFolderError, match="already holds a run"):
        experiment(tiny(), pruned_run)
    with pytest.raises(RunFolderError, match=r"train\.epochs was 2, now 3"):
        experiment(tiny(train={"epochs": 3}), pruned_run, resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in pruned_run.rglob("*")}
    (tmp_path / "thesis.tex").write_text("mine")
    for resume in (False, True):
        with pytest.raises(RunFolderError, match="holds no run"):
            experiment(tiny(), tmp_path, resume=resume)
    with pytest.raises(RunFolderError, match="is a file"):
        experiment(tiny(), tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_does_not_change_the_result_may_differ_when_resuming(pruned_run: Path) -> None:
    changed = tiny(run={"threads": 1, "checkpoint_minutes": 1.0})
    assert len(experiment(changed, pruned_run, resume=True).run()["stages"]) == 4


NETS = """
import torch
def five(classes):
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 5, 1))
def linear(classes):
    return torch.nn.Linear(7, classes)
def single(classes):
    return torch.nn.Conv2d(3, classes, 1)
def plain(classes):
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, classes, 1))
"""

# What is wrong -> (sections, error, what the message must say); {tmp} and {run} are folders
MISTAKES: dict[str, tuple[dict[str, dict[str, Any]], type[SecateurError], str]] = {
    "no data": ({"data": {"name": "camvid", "root": "{tmp}/nowhere"}}, DataError, "nowhere"),
    "unknown method": ({"method": {"name": "capp"}}, MethodError, "did you mean 'cap'"),
    "unknown option": ({"method": {"name": "cap", "options": {"lambda3": 1}}}, MethodError, "lambda3"),
    "wrong option": ({"method": {"name": "cap", "options": {"pull": 1}}}, MethodError, "two numbers"),
    "option of none": ({"method": {"name": "none", "options": {"pull": 1}}}, MethodError, "pull"),
    "unknown network": ({"model": {"name": "unett"}}, ModelError, "did you mean 'unet'"),
    "network option": ({"model": {"options": {"depht": 3}}}, ModelError, "depht"),
    "other head": ({"model": {"name": "{tmp}/nets.py:five", "width": None}}, ModelError, "has 5 classes.* has 11"),
    "network fails": ({"model": {"name": "{tmp}/nets.py:linear", "width": None}}, ModelError, r"\(1, 3, 32, 48\)"),
    "nothing prunable": (
        {"model": {"name": "{tmp}/nets.py:single", "width": None}, "budget": {"pruning_ratio": 0.5}},
        NothingPrunableError,
        "output of the network",
    ),
    "no scales": (
        {"model": {"name": "{tmp}/nets.py:plain", "width": None}, "method": {"name": "cap"}},
        MethodError,
        "no batch norm",
    ),
    "truncated weights": ({"model": {"weights": "{tmp}/short.safetensors"}}, CheckpointError, "short.* truncated"),
    "no weights": ({"model": {"weights": "{tmp}/no.safetensors"}}, CheckpointError, "no such file"),
    "foreign weights": (
        {"model": {"weights": "{tmp}/foreign.safetensors"}},
        CheckpointError,
        r"missing in the file: .* \d+ more; not in the network: head; of another shape: classifier\.weight \(2,\)",
    ),
    "other width": ({"model": {"weights": "{run}/parent.safetensors", "width": 6}}, CheckpointError, "another shape"),
    "no plan": ({"model": {"plan": "{tmp}/no.json"}, "method": {"name": "none"}}, PlanError, r"no\.json"),
    "bad plan": ({"model": {"plan": "{tmp}/nets.py"}, "method": {"name": "none"}}, PlanError, "not a plan"),
    "plan and method": ({"model": {"plan": "{run}/plan.json"}}, RecipeError, r"method\.name=none"),
    "other plan": (
        {"model": {"plan": "{run}/plan.json", "width": 6}, "method": {"name": "none"}},
        PlanError,
        "does not fit",
    ),
    "geometric to nothing": (
        {"budget": {"pruning_ratio": 1.0}, "schedule": {"steps": 2, "kind": "geometric"}},
        MethodError,
        "never comes to nothing",
    ),
    "budget out of reach": ({"budget": {"params": 1e-4}}, BudgetError, r"\d%\) is the least"),
    "half precision": ({"run": {"precision": 16}}, RecipeError, "needs a GPU"),
}


def filled(value: Any, **folders: Path) -> Any:
    if isinstance(value, dict):
        return {key: filled(item, **folders) for key, item in value.items()}
    return value.format(**folders) if isinstance(value, str) else value


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_before_anything_is_written(tmp_path: Path, pruned_run: Path, name: str) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "short.safetensors").write_bytes((pruned_run / "parent.safetensors").read_bytes()[:-7])
    save_file({"classifier.weight": torch.ones(2), "head": torch.ones(1)}, tmp_path / "foreign.safetensors")
    sections, error, message = MISTAKES[name]
    with pytest.raises(error, match=message) as caught:
        experiment(tiny(**filled(sections, tmp=tmp_path, run=pruned_run)), tmp_path / "out")
    assert caught.value.exit_code == (3 if issubclass(error, CannotError) else 2)
    assert not (tmp_path / "out").exists()


def test_a_damaged_data_set_is_found_before_anything_is_written(tmp_path: Path, camvid_mini: Path) -> None:
    sections = {"data": {"name": "camvid", "root": camvid_mini}}
    experiment(tiny(**sections), tmp_path / "out")
    image = sorted((camvid_mini / "val").glob("*.jpg"))[1]
    image.write_bytes(image.read_bytes()[:20])
    with pytest.raises(DataError, match=image.name):
        experiment(tiny(**sections), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_diverging_training_stops_with_exit_code_3_and_can_be_looked_at(tmp_path: Path) -> None:
    recipe = tiny(train={"epochs": 3, "lr": 1e30, "optimizer": "sgd", "warmup_epochs": 0.0})
    with pytest.raises(CannotError, match=r"step \d+ \(stage train"):
        experiment(recipe, tmp_path / "out").run()
    assert not (tmp_path / "out" / "result.json").exists()
    assert "stopped by CannotError" in (tmp_path / "out" / "log.txt").read_text()


def test_a_class_that_occurs_nowhere_is_null_in_the_result(tmp_path: Path) -> None:
    result = experiment(tiny(data={"limit": 2}), tmp_path / "out").run()
    text = (tmp_path / "out" / "result.json").read_text()
    assert "NaN" not in text
    assert all(math.isfinite(row["miou"]) for row in result["stages"])


def test_a_guard_in_the_recipe_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard falls from the unpruned network's scores, and is given to the cut."""
    seen: list[secateur.Guard] = []
    finish = secateur.Pruner.finish

    def noted(self: secateur.Pruner, **options: Any) -> secateur.Result:
        if options.get("guard"):
            seen.append(options["guard"])
        return finish(self, **options)

    monkeypatch.setattr(secateur.Pruner, "finish", noted)
    guard = {"classes": {"Road": 100.0}, "miou": 100.0, "images": 4, "recalibrate_batches": 1}
    experiment(tiny(guard=guard), tmp_path / "run").run()
    assert len(seen) == 1 and dict(seen[0].limits) == {"Road": 1.0, "mIoU": 1.0} and seen[0].evaluations == 1
    unpruned = json.loads((tmp_path / "run" / "result.json").read_text())["stages"][0]
    assert seen[0].base is not None and set(seen[0].base) == {"mIoU", *unpruned["per_class"]}

    # as if every parameter that stays were a loss
    def judged(_: Judge, model: torch.nn.Module) -> dict[str, float]:
        return {"mIoU": 0.0, "Road": -sum(p.numel() for p in model.parameters())}

    monkeypatch.setattr(Judge, "__call__", judged)
    monkeypatch.setattr(Judge, "whole", lambda _, model: {"mIoU": 0.0, "Road": 0.0})
    experiment(tiny(guard={"classes": {"Road": 1e8}}), tmp_path / "wide").run()
    with pytest.raises(BudgetError, match=r"Road may lose 10000\) forbids it"):
        experiment(tiny(guard={"classes": {"Road": 1e6}}), tmp_path / "narrow").run()
    with pytest.raises(RecipeError, match=r"no 'road'.*did you mean 'Road'"):
        experiment(tiny(guard={"classes": {"road": 1.0}}), tmp_path / "wrong")
    with pytest.raises(ValidationError, match="cuts nothing; expected no limits"):
        tiny(guard={"miou": 1.0}, method={"name": "none"})


def test_sensitivity_of_a_run(pruned_run: Path) -> None:
    runner = CliRunner()
    command = ["sensitivity", str(pruned_run), "--ratios", "0.5,0.25", "--group", "encoder.*", "--images", "4"]
    done = runner.invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record == json.loads((pruned_run / "sensitivity.json").read_text())
    assert record["ratios"] == [0.25, 0.5] and len(record["curves"]) >= 5
    for curve in record["curves"]:
        assert curve["group"].startswith("encoder.")
        assert [point["removed"] for point in curve["points"]] == [0.0, 0.25, 0.5]
        assert curve["points"][0] == record["curves"][0]["points"][0]
    assert (pruned_run / "pictures" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    shown = runner.invoke(app, command)
    assert "hurts most" in shown.stdout and "encoder.stage1.conv1" in shown.stdout
    for wrong, said in ((["--ratios", "a"], "numbers between 0 and 1"), (["--group", "x.*"], "'x.*'")):
        done = runner.invoke(app, [*command[:2], *wrong])
        assert done.exit_code == 2 and said in done.output
    assert runner.invoke(app, ["sensitivity", str(pruned_run / "pictures")]).exit_code == 2
