"""The papers' tables as recipes: each file runs for a few steps on a miniature of its data set in the real format."""

from __future__ import annotations

import re
from pathlib import Path

import miniatures
import pytest

from secateur.pipeline import Experiment
from secateur.recipe import Row, load_comparison
from secateur.report.published import CAP_TABLE
from secateur.training import ProgressDisplay

PAPERS = sorted((Path(__file__).parents[1] / "recipes" / "papers").glob("*.yaml"))
SMALL = (
    "data.workers=0 train.batch_size=2 sparsify.epochs=2 finetune.epochs=1 evaluate.recalibrate_batches=1 "
    "evaluate.latency_repeats=0 evaluate.pictures=0 run.threads=1 run.accelerator=cpu run.tensorboard=false"
).split()
WIDTHS = {"segnet": 4, "unet": 4, "pspnet50": 8, "pspnet101": 8, "icnet": 8, "resnet18_cifar": 8}


def small(path: Path, root: Path) -> list[Row]:
    """The rows of a recipe at a size that runs in seconds."""
    rows = load_comparison(path)
    data, network = rows[0].recipe.data, rows[0].recipe.model.name
    sizes = [f"model.width={WIDTHS[network]}", f"data.root={root}", "data.limit=4"]
    if data.name != "cifar10":
        sizes.append("data.size=[96,128]")
    if data.crop is not None:
        sizes += ["data.crop=[96,96]", "evaluate.window=[96,96]"]
    if data.name in ("camvid", "cityscapes"):  # what the miniatures have
        sizes.append(f"data.val_split={'val' if data.name == 'camvid' else 'train'}")
    if rows[0].recipe.train.epochs:
        sizes.append("train.epochs=1")
    return load_comparison(path, [*SMALL, *sizes])


def miniature(name: str, root: Path, camvid: Path) -> Path:
    if name == "camvid":
        return camvid
    made = getattr(miniatures, name)(root)
    return made if isinstance(made, Path) else root


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_row_of_every_table_runs(tmp_path: Path, camvid_mini: Path, path: Path) -> None:
    data = load_comparison(path)[0].recipe.data
    rows = small(path, miniature(data.name, tmp_path / "data", camvid_mini))
    row = next(row for row in rows if row.recipe.method.name == path.stem.partition("_")[0])
    result = Experiment(row.recipe, tmp_path / "run", progress=ProgressDisplay(quiet=True)).run()
    assert result["verification"]["ok"]
    assert result["stages"][-1]["params"] < result["stages"][0]["params"]
    assert sum(result["steps"].values()) >= 2


@pytest.mark.parametrize("setting", CAP_TABLE, ids=lambda setting: f"{setting.title} {setting.data}")
def test_every_row_of_the_cap_table_is_there(setting) -> None:
    path = next(p for p in PAPERS if p.stem == f"cap_{setting.title}_{setting.data}".lower())
    rows = {row.label: row.recipe for row in load_comparison(path)}
    assert list(rows) == [row.method.replace("Ours", "CAP") for row in setting.rows]
    text = path.read_text(encoding="utf-8")
    for row in setting.rows:
        assert f"{row.miou:.2f} mIoU on the test set, {row.params:.2f} M, {row.flops:.2f} G" in text
        ratio = re.search(r"-(\d+)%", row.method)
        if ratio:
            assert rows[row.method.replace("Ours", "CAP")].budget.pruning_ratio == int(ratio[1]) / 100
    assert rows["FPGM"].budget.ratios == dict.fromkeys(setting.layers, setting.share)
    assert rows["Unpruned"].data.name == setting.data.lower()
    if rows["Unpruned"].data.crop is None:
        assert rows["Unpruned"].data.size == setting.size
    else:
        assert rows["Unpruned"].data.crop == setting.size


@pytest.mark.parametrize("path", [p for p in PAPERS if p.stem.startswith("acosp")], ids=lambda path: path.stem)
def test_random_changes_of_acosp_are_those_of_its_training_code(path: Path) -> None:
    data = load_comparison(path)[0].recipe.data
    if data.name == "cifar10":  # torchvision's crop of 32 pixels out of an image with 4 around it
        assert (data.scale, data.rotate, data.translate * 32, data.flip, data.blur) == ((1, 1), 0, 4, 0.5, 0)
        return
    assert (data.rotate, data.translate, data.flip, data.blur) == (10, 0, 0.5, 0.5)
    assert data.scale == ((0.25, 1) if "segnet" in path.stem else (0.5, 2))
