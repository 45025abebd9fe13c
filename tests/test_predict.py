"""`secateur predict`: pictures of any photo, at its own size; a clear message of what is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import miniatures
import numpy as np
import pytest
import torch
from PIL import Image
from shipping import finished_run, secateur

import secateur as library
from secateur.data import Normalise, open_dataset
from secateur.data.classes import classes_of
from secateur.data.files import read_image, read_label, resize_image
from secateur.metrics import main_logits
from secateur.recipe import load_recipe
from secateur.ship import predict as predictions
from secateur.training import Inference, predict


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("predicting"))


@pytest.fixture
def photo() -> np.ndarray:
    return cv2.resize(np.random.default_rng(0).integers(0, 255, (9, 14, 3), dtype=np.uint8), (70, 45))


def expected(run: Path, image: np.ndarray, inference: Inference | None = None, weights: str = "model") -> np.ndarray:
    """The classes of every pixel, worked out by hand."""
    recipe = load_recipe(run / "recipe.yaml")
    network = library.create_model("unet", classes=11, width=4)
    if weights == "model":
        network = library.load(run / "model.safetensors", network)
    else:
        from safetensors.torch import load_file

        network.load_state_dict(load_file(run / "parent.safetensors"))
    shown = Normalise(recipe.data.mean, recipe.data.std)(resize_image(image, (32, 48)))
    batch = torch.from_numpy(shown).permute(2, 0, 1)[None]
    if inference is not None:
        return predict(network, batch, inference, image.shape[:2])[0].numpy()
    with torch.no_grad():
        return main_logits(network.eval()(batch), image.shape[:2])[0].argmax(0).numpy()


def test_label_maps_and_overlays_are_those_of_the_network_at_the_photo_s_size(run, tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "street.png")
    result = secateur("predict", run, tmp_path / "street.png", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    classes, (names, palette) = expected(run, photo), classes_of("streets", None)
    assert (read_label(tmp_path / "out/labels/street.png") == classes).all()
    shown = np.asarray(Image.open(tmp_path / "out/labels/street.png").convert("RGB"))
    assert (shown == np.array(palette, np.uint8)[classes]).all()
    overlay = read_image(tmp_path / "out/overlays/street.png").astype(int)
    assert np.abs(overlay - (photo.astype(int) + np.array(palette)[classes]) / 2).max() <= 1
    record = json.loads((tmp_path / "out/predictions.json").read_text())
    assert record["classes"] == list(names)
    shares = record["inputs"][0]["shares"]
    assert shares == {n: s for k, n in enumerate(names) if (s := pytest.approx((classes == k).mean())) != 0}
    assert 0 < record["networks"][0]["ms"] and "ms an image" in result.stdout


def test_the_network_is_asked_as_the_recipe_says(run, tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "street.png")
    text = (run / "recipe.yaml").read_text()
    recipe = tmp_path / "asked.yaml"
    for key, value in (
        ("mode: whole", "mode: slide"),
        ("window: null", "window: [24, 40]"),
        ("flip: false", "flip: true"),
    ):
        assert key in text
        text = text.replace(key, value)
    recipe.write_text(text)
    shutil.copy(run / "model.safetensors", tmp_path / "away.safetensors")
    result = secateur("predict", tmp_path / "away.safetensors", tmp_path / "street.png", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "--recipe" in result.stderr
    result = secateur(
        "predict", tmp_path / "away.safetensors", tmp_path / "street.png", "--out", tmp_path / "out", "--recipe", recipe
    )
    assert result.exit_code == 0, result.output
    asked = expected(run, photo, Inference("slide", (24, 40), 1 / 3, (1.0,), True))
    assert (read_label(tmp_path / "out/labels/street.png") == asked).all()
    assert (asked != expected(run, photo)).any()


def test_two_networks_stand_beside_the_photo(run, tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "street.png")
    parent = run / "parent.safetensors"
    result = secateur("predict", run, tmp_path / "street.png", "--beside", parent, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    names = [each["name"] for each in json.loads(result.stdout)["networks"]]
    assert names == ["run", "run/parent.safetensors"]
    sheet = read_image(tmp_path / "out/beside/street.png").astype(int)[-45:]
    palette = np.array(classes_of("streets", None)[1])
    assert (sheet[:, :70] == photo).all()
    for column, weights in ((1, "model"), (2, "parent")):
        blended = (photo.astype(int) + palette[expected(run, photo, weights=weights)]) / 2
        assert np.abs(sheet[:, 74 * column :][:, :70] - blended).max() <= 1
    alone = secateur("predict", run, tmp_path / "street.png", "--stage", "parent", "--out", tmp_path / "alone")
    assert alone.exit_code == 0, alone.output
    assert (read_label(tmp_path / "alone/labels/street.png") == expected(run, photo, weights="parent")).all()


def test_photos_of_every_kind_come_out_at_their_own_size(run, tmp_path, photo):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(np.dstack([photo, photo[..., 0]])).save(folder / "alpha.png")
    Image.fromarray(photo[..., 0]).save(folder / "grey.png")
    cv2.imwrite(str(folder / "deep.png"), photo.astype(np.uint16)[..., ::-1] * 257)
    Image.fromarray(photo[:1, :1]).save(folder / "one.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned to the right
    Image.fromarray(photo).save(folder / "grey.jpg", exif=turned)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("nor this")
    result = secateur("predict", run, folder, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "2 of 7 entries are no images" in result.stderr and "notes.txt" in result.stderr
    sizes = {path.name: read_label(path).shape for path in (tmp_path / "out/labels").iterdir()}
    assert sizes == {
        "alpha.png": (45, 70), "deep.png": (45, 70), "grey.png": (70, 45), "grey-2.png": (45, 70), "one.png": (1, 1)
    }  # fmt: skip
    for name in ("alpha.png", "deep.png"):
        assert (read_label(tmp_path / "out/labels" / name) == expected(run, photo)).all(), name
    grey = np.repeat(photo[..., :1], 3, axis=2)
    assert (read_label(tmp_path / "out/labels/grey-2.png") == expected(run, grey)).all()


def test_a_video_becomes_a_video(run, tmp_path, photo):
    writer = cv2.VideoWriter(str(tmp_path / "drive.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (70, 44))
    for _ in range(3):
        writer.write(photo[:44])
    writer.release()
    result = secateur("predict", run, tmp_path / "drive.mp4", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    film = cv2.VideoCapture(str(tmp_path / "out/overlays/drive.mp4"))
    assert film.get(cv2.CAP_PROP_FPS) == 10 and film.read()[1].shape == (44, 70, 3)
    labels = sorted(path.name for path in (tmp_path / "out/labels/drive").iterdir())
    assert labels == ["000000.png", "000001.png", "000002.png"]
    assert json.loads(result.stdout)["inputs"][0]["frames"] == 3


def test_broken_files_are_named_and_the_others_done(run, tmp_path, photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(photo).save(folder / "good.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:300])
    (folder / "empty.mp4").write_bytes(b"")
    result = secateur("predict", run, folder, "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert "cut.png is truncated" in result.stderr and "empty.mp4 is broken" in result.stderr
    assert [path.name for path in (tmp_path / "out/labels").iterdir()] == ["good.png"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["nowhere.png"], "there is no nowhere.png"),
        (["text.png"], "text.png is broken or no image"),
        (["empty"], "no image or video in it"),
        (["text.png", "nowhere"], "there is no nowhere"),
    ],
)
def test_a_mistake_is_told_and_nothing_written(run, tmp_path, monkeypatch, inputs, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.png").write_text("no image")
    result = secateur("predict", run, *inputs, "--out", "out")
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
    assert not Path("out").exists()


def test_nothing_is_overwritten_unasked(run, tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "street.png")
    theirs = tmp_path / "out/overlays/street.png"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    result = secateur("predict", run, tmp_path / "street.png", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "--force" in result.stderr and theirs.read_text() == "theirs"
    assert secateur("predict", run, tmp_path / "street.png", "--out", tmp_path / "out", "--force").exit_code == 0
    assert read_image(theirs).shape == photo.shape


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nothing", "there is no such run folder or file"),
        ("photos", "holds no run"),
        ("half", "not finished; its parent can be had: --stage parent"),
        ("run/recipe.yaml", "recipe.yaml"),
    ],
)
def test_what_is_no_network_is_told(run, tmp_path, monkeypatch, photo, model, message):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    shutil.copytree(run, "run")
    shutil.copytree(run, "half", ignore=shutil.ignore_patterns("model.safetensors"))
    Image.fromarray(photo).save("street.png")
    result = secateur("predict", model, "street.png", "--out", "out")
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output


def test_a_network_that_fails_on_a_photo_names_it(run, tmp_path, photo):
    text = (run / "recipe.yaml").read_text()
    assert "size: [32, 48]" in text and "crop: null" in text
    recipe = tmp_path / "own.yaml"
    recipe.write_text(text.replace("size: [32, 48]", "size: null").replace("crop: null", "crop: [32, 48]"))
    Image.fromarray(photo[:1, :1]).save(tmp_path / "dot.png")
    arguments = ("predict", run / "model.safetensors", tmp_path / "dot.png", "--recipe", recipe)
    result = secateur(*arguments, "--out", tmp_path / "out")
    assert result.exit_code in (0, 2) and "Traceback" not in result.output
    assert result.exit_code == 0 or "dot.png (1x1)" in result.stderr


def test_a_photo_of_very_many_pixels_is_decided_smaller(run, tmp_path, photo, monkeypatch):
    monkeypatch.setattr(predictions, "LOGITS", 11 * 32 * 48)
    Image.fromarray(photo).save(tmp_path / "street.png")
    assert secateur("predict", run, tmp_path / "street.png", "--out", tmp_path / "out").exit_code == 0
    found = read_label(tmp_path / "out/labels/street.png")
    assert found.shape == (45, 70) and (found == expected(run, photo)).mean() > 0.7


def test_classes_are_known_without_the_images(tmp_path):
    for name, root in (("camvid32", "camvid32"), ("cityscapes", "cityscapes"), ("folder", "folder")):
        getattr(miniatures, name)(tmp_path / root)
    for name in ("ade20k", "voc2012", "cifar10"):
        getattr(miniatures, name)(tmp_path)
    roots = {"camvid32": tmp_path / "camvid32", "cityscapes": tmp_path / "cityscapes", "folder": tmp_path / "folder"}
    for name in ("camvid32", "cityscapes", "folder", "ade20k", "voc2012", "cifar10"):
        dataset = open_dataset(name, roots.get(name, tmp_path), "val" if name != "cifar10" else "test")
        assert classes_of(name, roots.get(name)) == (dataset.classes, dataset.palette), name
    streets = open_dataset("streets", None, "val")
    assert classes_of("streets", None) == classes_of("camvid", None) == (streets.classes, streets.palette)


def test_a_folder_s_classes_come_from_the_run_where_its_description_is_gone(run, tmp_path, photo):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    text = (moved / "recipe.yaml").read_text()
    assert "name: streets" in text and "root: null" in text
    (moved / "recipe.yaml").write_text(
        text.replace("name: streets", "name: folder").replace("root: null", "root: gone/dataset.yaml")
    )
    Image.fromarray(photo).save(tmp_path / "street.png")
    result = secateur("predict", moved, tmp_path / "street.png", "--out", tmp_path / "out")
    assert result.exit_code == 0 and "gone/dataset.yaml" in result.stderr
    record = json.loads((tmp_path / "out/predictions.json").read_text())
    assert record["classes"] == list(classes_of("streets", None)[0])
