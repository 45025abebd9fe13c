"""`secateur export`: files that compute the same, or are not kept."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from shipping import finished_run, secateur
from torch import nn

import secateur as library
from secateur.errors import CannotError
from secateur.ship import agreement as agreements
from secateur.ship import onnx_file
from secateur.ship.agreement import agreement, tensors_of
from secateur.ship.export import write_checked

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

DEEPER = {
    "pspnet101": "pspnet50",
    "resnet101": "resnet50",
    "yolov5m": "yolov5s",
    "yolov5l": "yolov5s",
    "yolov5x": "yolov5s",
}
SIZE = (64, 96)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("exporting"))


def batches(*sizes: tuple[int, int], count: int = 3) -> list[torch.Tensor]:
    """One image, and several."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, *size, generator=generator) for size in sizes for n in (1, count)]


@pytest.mark.slow
@pytest.mark.parametrize("pruned", [False, True], ids=["unpruned", "pruned"])
@pytest.mark.parametrize("name", [name for name in library.list_models() if name not in DEEPER])
def test_every_network_comes_out_as_onnx_that_computes_the_same(name, pruned, tmp_path):
    torch.manual_seed(0)
    network = library.create_model(name, classes=5, width=8).eval()
    if pruned:
        network = library.prune(network, torch.randn(1, 3, *SIZE), method="l1", budget={"params": 0.5}).model
    found = write_checked(network, tmp_path / "net.onnx", "onnx", 18, False, batches(SIZE))
    assert found.ok and found.shapes == ((1, 3, *SIZE), (3, 3, *SIZE))
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == 18


@pytest.mark.parametrize(("name", "tried"), DEEPER.items())
def test_networks_that_are_not_exported_here_are_made_of_the_same_modules(name, tried):
    deep, shallow = (library.create_model(each, classes=5, width=8) for each in (name, tried))
    assert {type(module) for module in deep.modules()} == {type(module) for module in shallow.modules()}


def test_height_and_width_may_be_free(tmp_path):
    """Pooling to bins and resizing by factors included, which are hardest to write for any size."""

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.end = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(16, 5, 1)
            self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(bins) for bins in (1, (3, 2)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            up = [nn.functional.interpolate(p(x), size=x.shape[-2:], mode="bilinear") for p in self.pools]
            return nn.functional.interpolate(self.end(torch.cat([x, up[0] + up[1]], 1)), scale_factor=2.0)

    torch.manual_seed(0)
    found = write_checked(
        Pyramid().eval(), tmp_path / "net.onnx", "onnx", 18, True, batches((32, 48), (46, 30), (64, 96))
    )
    assert found.ok and len(found.shapes) == 6


def test_a_run_is_exported_checked_and_made_of_eight_bits(run, tmp_path):
    out = tmp_path / "street.onnx"
    result = secateur("export", run, "--out", out, "--int8", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["relative_error"] <= 1e-4 and record["same_class"] >= 0.9999 and "streets, val" in record["images"]
    assert record["bytes"] == out.stat().st_size and record["input"] == ["N", 3, 32, 48] and record["opset"] == 18
    about = {each.key: json.loads(each.value) for each in onnx.load(out).metadata_props if "secateur" in each.key}
    assert len(about["secateur.classes"]) == 11 and about["secateur.mean"] == [0.485, 0.456, 0.406]
    rows = {row["network"]: row for row in record["int8"]["rows"]}
    assert rows["pruned, ONNX int8"]["bytes"] == (tmp_path / "street-int8.onnx").stat().st_size
    kinds = {node.op_type for node in onnx.load(tmp_path / "street-int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    stages = {each["stage"]: each["miou"] for each in json.loads((run / "result.json").read_text())["stages"]}
    assert rows["parent"]["miou"] == pytest.approx(stages["unpruned"], abs=1e-3)
    assert rows["pruned"]["miou"] == pytest.approx(stages["finetuned"], abs=1e-3)
    assert rows["pruned, ONNX"]["miou"] == pytest.approx(stages["finetuned"], abs=1e-3)
    assert abs(rows["pruned, ONNX int8"]["miou"] - stages["finetuned"]) < 0.1


def test_the_archive_of_torch_computes_the_same_on_given_images(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "mine.png"), pixels)
    out = tmp_path / "street.pt2"
    result = secateur(
        "export", run, "--out", out, "--format", "torch", "--images", tmp_path / "mine.png", "--size", "40x56"
    )
    assert result.exit_code == 0 and "1 of 1 given images" in result.stdout, result.output
    network = library.load(run / "model.safetensors", library.create_model("unet", classes=11, width=4)).eval()
    images = torch.randn(4, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(out).module()(images), network(images))


def test_what_computes_something_else_is_not_kept(run, tmp_path, monkeypatch):
    faithful = onnx_file.OnnxNetwork.outputs
    monkeypatch.setattr(
        "secateur.ship.export.OnnxNetwork.outputs", lambda self, x: [1.001 * y for y in faithful(self, x)]
    )
    result = secateur("export", run, "--out", tmp_path / "street.onnx")
    assert result.exit_code == 3 and "relative error 1.0e-03" in result.stderr
    assert [*tmp_path.iterdir()] == []


def test_agreement_is_the_largest_difference_and_the_share_of_equal_classes():
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0] = 10.0
    other = logits.clone()
    other[0, 1, 0, 0] = 11.0  # one of four pixels becomes class 1; it is off by 11 of 10
    found = agreement(Fixed(), lambda images: [other], [logits])
    assert found.relative_error == pytest.approx(1.1) and found.same_class == 0.75 and not found.ok
    assert agreement(Fixed(), lambda images: [images.clone()], [logits]).ok
    assert not agreement(Fixed(), lambda images: [images * torch.nan], [logits]).ok
    assert agreements.Agreement(1e-4, 0.9999, ()).ok and not agreements.Agreement(1e-4, 0.9998, ()).ok
    with pytest.raises(CannotError, match="puts out"):
        agreement(Fixed(), lambda images: [images[..., :2]], [logits])


def test_all_tensors_of_an_output_are_compared():
    one, two, three = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert tensors_of((one, [two, {"a": three, "b": None}])) == [one, two, three]


def test_a_network_that_has_no_graph_is_told(tmp_path):
    class Choosing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(CannotError, match="Choosing can't be exported"):
        write_checked(Choosing().eval(), tmp_path / "net.onnx", "onnx", 18, False, batches((8, 8)))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--size", "3by4"], 2, "expected height and width"),
        (["--opset", "7"], 3, "--opset 7"),
        (["--images", "nowhere"], 2, "there is no nowhere"),
        (["--format", "torch", "--int8"], 2, "--int8 goes with"),
    ],
)
def test_a_mistake_is_told_and_nothing_written(run, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = secateur("export", run, "--out", "street.onnx", *arguments)
    assert result.exit_code == code and message in result.stderr and [*tmp_path.iterdir()] == []


def test_nothing_is_overwritten_unasked(run, tmp_path):
    (tmp_path / "street.onnx").write_text("theirs")
    result = secateur("export", run, "--out", tmp_path / "street.onnx")
    assert result.exit_code == 2 and "--force" in result.stderr
    assert (tmp_path / "street.onnx").read_text() == "theirs"


def test_without_onnx_the_message_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = secateur("export", run, "--out", tmp_path / "street.onnx")
    assert result.exit_code == 2 and 'pip install "secateur[export]"' in result.stderr
