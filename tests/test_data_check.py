"""`secateur data check`: what it counts, what it finds wrong, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import miniatures
import numpy as np
import pytest
from typer.testing import CliRunner

from secateur.cli import app
from secateur.data import open_dataset, scan
from secateur.data.parallel import in_parallel


def secateur(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("workers", [1, 3])
def test_a_scan_counts_at_the_images_own_sizes(tmp_path: Path, workers: int) -> None:
    dataset = open_dataset("ade20k", miniatures.ade20k(tmp_path), size=(24, 24))
    seen: list[tuple[int, int]] = []
    found = scan(dataset, workers, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 4) for n in range(1, 5)] and found.ok and found.samples == 4
    labels = [dataset.load(index).label for index in range(4)]
    every = np.concatenate([label.ravel() for label in labels])
    assert list(found.pixels.values()) == [(every == k).sum() for k in range(150)]
    assert list(found.images.values()) == [sum((label == k).any() for label in labels) for k in range(150)]
    assert found.void == (every == 255).sum() > 0
    assert found.sizes == {"48x64": 1, "56x64": 1, "64x64": 1, "72x64": 1}
    assert sum(each["share"] for each in found.as_dict()["classes"].values()) == pytest.approx(1)


def test_results_come_in_order_and_an_error_ends_it() -> None:
    assert list(in_parallel(lambda n: n * n, 50, 4)) == [n * n for n in range(50)]
    begun: list[int] = []

    def fail(number: int) -> int:
        begun.append(number)
        return 1 // (3 - number)

    results = in_parallel(fail, 10_000, 2)
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert len(begun) < 100


def damage(root: Path) -> None:
    """Of cityscapes' val: an image that is gone, a label cut short, an image of another size; train is left whole."""
    images, labels = root / "leftImg8bit/val/frankfurt", root / "gtFine/val/frankfurt"
    (images / "frankfurt_000000_000019_leftImg8bit.png").unlink()
    label = labels / "frankfurt_000001_000019_gtFine_labelIds.png"
    label.write_bytes(label.read_bytes()[:60])
    cv2.imwrite(str(labels / "frankfurt_000002_000019_gtFine_labelIds.png"), np.zeros((8, 8), np.uint8))


def test_a_data_set_in_order_is_shown_as_a_table(tmp_path: Path) -> None:
    root = miniatures.cityscapes(tmp_path / "cityscapes")
    result = secateur("data", "check", "cityscapes", "--root", root)
    assert result.exit_code == 0, result.output
    assert "traffic light" in result.stdout and "train: 4 samples, 48x64 (4); " in result.stdout
    assert "val: 3 samples, 48x64 (3); " in result.stdout and "0 files missing, 0 samples damaged" in result.stdout
    assert result.stderr == ""  # a bar is for terminals


def test_everything_that_is_wrong_is_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    root = miniatures.cityscapes(tmp_path / "cityscapes")
    damage(root)
    result = secateur("data", "check", "cityscapes", "--root", root, "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)["splits"]
    assert found["train"]["ok"] and not found["train"]["missing"]
    # an image that is gone is no sample: cities are listed by their images
    assert found["val"]["samples"] == 2 and found["val"]["sizes"] == {}
    assert len(found["val"]["damaged"]) == 2 and "is truncated" in found["val"]["damaged"][0]
    assert "is 48x64 but its label" in found["val"]["damaged"][1]
    assert "cityscapes is not in order; val: 0 files are missing, 2 samples can't be used" in result.stderr
    for path in (root / "gtFine/train/bochum").glob("*_labelIds.png"):
        path.unlink()
    result = secateur("data", "check", "cityscapes", "--root", root, "--split", "train", "--workers", "2")
    assert result.exit_code == 2 and "train: 4 samples, 48x64 (2); " in result.stdout
    assert "missing: label" in result.stderr and "bochum_000001_000019_gtFine_labelIds.png" in result.stderr
    assert "train: 2 files are missing, 0 samples can't be used" in result.stderr


def test_many_offenders_are_cut_short_unless_json_is_asked_for(tmp_path: Path, camvid_mini: Path) -> None:
    lines = "".join(f"train/none{n}.jpg trainannot/none{n}.png\n" for n in range(15))
    (camvid_mini / "train.txt").write_text(lines)
    result = secateur("data", "check", "camvid", "--root", camvid_mini, "--split", "train")
    assert (
        result.exit_code == 2 and result.stderr.count("missing: ") == 20 and "(10 more than are named" in result.stderr
    )
    result = secateur("data", "check", "camvid", "--root", camvid_mini, "--split", "train", "--json")
    assert len(json.loads(result.stdout)["splits"]["train"]["missing"]) == 30


def test_a_recipe_names_its_data_set(tmp_path: Path) -> None:
    root = miniatures.voc2012(tmp_path / "voc")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "data: {name: voc2012, size: null, crop: [32, 32], train_split: trainaug, "
        f"options: {{sbd: '{root / 'benchmark_RELEASE/dataset'}'}}}}\n"
    )
    result = secateur("data", "check", recipe, f"data.root={root}")
    assert result.exit_code == 0, result.output
    assert "trainaug: 5 samples, 56x40 (3), 48x64 (2)" in result.stdout and "val: 2 samples" in result.stdout
    result = secateur("data", "check", recipe, f"data.root={root}", "data.limit=1", "--json")
    assert [each["samples"] for each in json.loads(result.stdout)["splits"].values()] == [1, 1]


def test_a_recipe_of_several_methods_names_one_too(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {name: streets, size: [32, 48], length: 8}\nmethods: [l1, fpgm]\n")
    result = secateur("data", "check", recipe)
    assert result.exit_code == 0 and "train: 8 samples, 32x48 (8)" in result.stdout


def test_drawn_data_and_classification_are_checked_too(tmp_path: Path) -> None:
    result = secateur("data", "check", "streets", "length=4", "--split", "val")
    assert result.exit_code == 0 and "val: 1 samples, 180x240 (1)" in result.stdout
    result = secateur("data", "check", "cifar10", "--root", miniatures.cifar10(tmp_path), "--json")
    splits = json.loads(result.stdout)["splits"]
    assert (
        list(splits) == ["train", "test"] and sum(each["pixels"] for each in splits["train"]["classes"].values()) == 20
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["camvid"], "camvid needs a root"),
        (["camvid", "--root", "nowhere"], "nowhere does not exist"),
        (["streets", "--split", "trian"], "no split 'trian'"),
        (["streets", "lenght=3"], "no option 'lenght'"),
        (["streets", "size=3"], "expected option=value"),
        (["camvit"], "camvit is neither a recipe nor a data set; known: ade20k, camvid"),
        (["r.yaml", "--root", "x"], "--root goes with a data set"),
        (["r.yaml", "data.limt=3"], "did you mean 'limit'"),
        ([], "Missing argument"),
    ],
)
def test_mistakes_end_with_2_and_one_message(tmp_path: Path, monkeypatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("data: {name: streets}\n")
    result = secateur("data", "check", *arguments)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()) and "Traceback" not in result.output
    assert result.stdout == ""


def test_help_says_what_it_does() -> None:
    text = " ".join(secateur("data", "check", "--help").stdout.split())
    assert "Count the classes and sizes" in text and "Example: secateur data check camvid" in text
    assert "check" in secateur("data", "--help").stdout and "data" in secateur("--help").stdout
