"""Every data set, as it is published, through a whole run: read, trained on, pruned, evaluated, drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import miniatures
import pytest
import torch

from secateur.data import list_datasets
from secateur.pipeline import Experiment
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.judge import Judge
from secateur.recipe import Recipe, recipe_schema
from secateur.training import ProgressDisplay

SMALL = {
    "model": {"name": "unet", "width": 4},
    "method": {"name": "l1"},
    "budget": {"params": 0.6},
    "train": {"epochs": 1, "batch_size": 2},
    "sparsify": {"epochs": 0},
    "finetune": {"epochs": 1},
    "evaluate": {"latency_repeats": 0, "recalibrate_batches": 1, "pictures": 2},
    "run": {"threads": 1, "accelerator": "cpu", "tensorboard": False},
}
SLIDE = {"mode": "slide", "scales": [0.75, 1.0], "flip": True, "boundary": 0.02}


def run(out: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    names = {*SMALL, *sections}
    values = {name: {**SMALL.get(name, {}), **sections.get(name, {})} for name in names}
    values["data"] = {"workers": 0, **values["data"]}
    return Experiment(Recipe.model_validate(values), out, progress=ProgressDisplay(quiet=True)).run()


def segmentation_data(name: str, root: Path) -> dict[str, Any]:
    """The section `data` of a recipe."""
    if name == "folder":
        return {"root": miniatures.folder(root), "size": [32, 48], "mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]}
    getattr(miniatures, name)(root)
    own_sizes = {"size": None, "crop": [32, 40], "scale": [0.5, 2.0], "translate": 0.0, "blur": 0.5}
    return {
        "cityscapes": {"size": [48, 64], "crop": [40, 40], "val_split": "train"},
        "camvid32": {"size": [32, 48], "val_split": "test"},
        "ade20k": own_sizes,
        "voc2012": {
            **own_sizes,
            "train_split": "trainaug",
            "options": {"sbd": str(root / "benchmark_RELEASE/dataset")},
        },
    }[name] | {"root": root}


def test_a_recipe_knows_every_data_set() -> None:
    assert sorted(recipe_schema()["$defs"]["Data"]["properties"]["name"]["enum"]) == list_datasets()


def test_a_judge_sees_as_many_images_as_it_should_also_one_by_one(tmp_path: Path) -> None:
    data = {"name": "ade20k", "workers": 0, **segmentation_data("ade20k", tmp_path), "val_split": "train"}
    inputs = Inputs(Recipe.model_validate({**SMALL, "data": data}))
    seen: list[torch.Size] = []
    network = inputs.network()
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    Judge(inputs, images=2, batches=0)(network)
    assert [tuple(shape) for shape in seen] == [(1, 3, 48, 64), (1, 3, 64, 64)]


@pytest.mark.parametrize("name", ["cityscapes", "camvid32", "ade20k", "voc2012", "folder"])
def test_a_data_set_goes_through_a_whole_run(tmp_path: Path, name: str) -> None:
    data = segmentation_data(name, tmp_path / "data")
    evaluate = {} if name in ("camvid32", "folder") else SLIDE
    result = run(tmp_path / "run", data={"name": name, **data}, evaluate={**SMALL["evaluate"], **evaluate})
    assert [row["stage"] for row in result["stages"]] == ["unpruned", "pruned", "recalibrated", "finetuned"]
    assert result["verification"]["ok"] and result["steps"]["train"] >= 1
    confusion = json.loads((tmp_path / "run" / "confusion.json").read_text())
    assert len(confusion["classes"]) == {"cityscapes": 19, "ade20k": 150, "voc2012": 21, "folder": 3}.get(name, 11)
    counted, right = sum(map(sum, confusion["pixels"])), sum(row[i] for i, row in enumerate(confusion["pixels"]))
    last = result["stages"][-1]
    assert last["accuracy"] == pytest.approx(right / counted)
    assert 0 <= last["fwiou"] <= 1 and ("boundary_iou" in last) == bool(evaluate)
    for picture in ("confusion.png", "compare.png"):
        assert cv2.imread(str(tmp_path / "run" / "pictures" / picture)) is not None
    if name in ("ade20k", "voc2012"):  # whole images of their own sizes are evaluated, though crops are trained on
        sizes = {"ade20k": [(48, 64), (56, 64), (64, 64)], "voc2012": [(48, 64), (48, 64)]}[name]
        assert 0.8 * sum(h * w for h, w in sizes) < counted <= sum(h * w for h, w in sizes)


def test_scores_can_be_those_of_the_labels_own_size(tmp_path: Path) -> None:
    root = miniatures.cityscapes(tmp_path / "data")
    data = {"name": "cityscapes", "root": root, "size": [24, 32]}
    counted = {}
    for full_size in (False, True):
        out = tmp_path / str(full_size)
        run(out, data=data, evaluate={**SMALL["evaluate"], "full_size": full_size, "boundary": 0.02})
        counted[full_size] = sum(map(sum, json.loads((out / "confusion.json").read_text())["pixels"]))
        assert (out / "pictures" / "compare.png").exists()
    assert counted[True] == 4 * counted[False]  # the blocks of the miniature are even


@pytest.mark.parametrize("binary", [False, True])
def test_a_classifier_goes_through_a_whole_run(tmp_path: Path, binary: bool) -> None:
    root = miniatures.cifar10(tmp_path / "data", binary)
    result = run(
        tmp_path / "run",
        data={"name": "cifar10", "root": root, "size": [32, 32], "val_split": "test"},
        model={"name": "resnet18_cifar", "width": 4},
        train={"epochs": 2, "batch_size": 8, "class_weights": "none"},
    )
    confusion = json.loads((tmp_path / "run" / "confusion.json").read_text())
    assert sum(map(sum, confusion["pixels"])) == 3  # one label an image
    assert result["stages"][-1]["accuracy"] * 3 == pytest.approx(round(result["stages"][-1]["accuracy"] * 3))
    assert not (tmp_path / "run" / "pictures" / "compare.png").exists()


def test_costs_are_those_of_a_training_crop(tmp_path: Path) -> None:
    root = miniatures.cityscapes(tmp_path / "data")
    costs = {}
    for key, data in {"crop": {"crop": [32, 32]}, "whole": {}, "small": {"size": [32, 32]}}.items():
        section = {"name": "cityscapes", "root": root, "size": [48, 64], **data}
        row = run(tmp_path / key, data=section, finetune={"epochs": 0}, train={"epochs": 0})["stages"][0]
        costs[key] = row["macs"]
    assert costs["crop"] == costs["small"] < costs["whole"]


def test_every_method_of_the_pipeline_finds_its_data_cropped(tmp_path: Path) -> None:
    """Passes over training images, recalibration and guards, where images differ in size."""
    data = segmentation_data("voc2012", tmp_path / "data")
    result = run(
        tmp_path / "run",
        data={"name": "voc2012", **data},
        method={"name": "taylor"},
        guard={"miou": 90.0, "recalibrate_batches": 1},
        compensate={"mode": "mean", "batches": 1},
    )
    assert [row["stage"] for row in result["stages"]][1:3] == ["pruned", "compensated"]
