"""Every published count of a network, recomputed, to the integer where an integer is known."""

from __future__ import annotations

import inspect
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from typer.testing import CliRunner

import secateur
from secateur.cli import app
from secateur.models import NETWORKS
from secateur.models.csp import ConvBlock
from secateur.report.published import CAP_TABLE, USES, Setting, Use
from secateur.report.recounted import count, count_pruned, recounted_text

# network, options, classes, size: parameters, FLOPs as the paper counts them in G with its digits, MACs
UNPRUNED: list[tuple[str, dict[str, Any], int, tuple[int, int], int, float, int | None]] = [
    ("pspnet101", {}, 19, (713, 713), 70_437_350, 557.043, 555_489_814_720),
    ("pspnet50", {}, 19, (713, 713), 51_445_222, 402.995, 402_076_592_320),
    ("icnet", {}, 19, (1024, 2048), 12_214_521, 40.1323, 39_773_011_968),
    ("segnet", {}, 19, (512, 1024), 29_454_009, 326.588, 325_545_099_264),
    ("segnet", {}, 12, (360, 480), 29_449_956, 106.726, 106_387_292_160),
    ("pspnet101", {"auxiliary": False}, 19, (713, 713), 65_707_475, 518.731, None),
    ("pspnet50", {"auxiliary": False}, 19, (713, 713), 46_715_347, 364.683, None),
]
FPGM = [
    (36_094_275, 280.682, 279_354_296_055),
    (27_058_775, 207.311, 206_533_578_855),
    (6_451_416, 22.9603, 22_680_084_480),
    (15_634_041, 100.511, 99_958_652_928),
    (15_632_004, 32.5972, 32_420_044_800),
]
# YOLOv5: parameters with the batch norms fused into the convolutions, FLOPs as its table counts them in G, at 640x640
YOLOV5 = [("yolov5s", 7_266_973, 17.01), ("yolov5m", 21_356_877, 51.33), ("yolov5l", 47_025_981, 115.45)]
YOLOV5 += [("yolov5x", 87_730_285, 218.79)]
ORDER = {("pspnet101", 19): 0, ("pspnet50", 19): 1, ("icnet", 19): 2, ("segnet", 19): 3, ("segnet", 12): 4}
WHOLE = {  # the convolutions that the reference network's FPGM row leaves whole
    "segnet": r"encoder\.stage5.*|decoder\.stage5\.block[12]\.conv|decoder\.stage1\.block2\.conv",
    "others": r".*layer\d\.\d+\.(conv3|downsample\.0)|(auxiliary\.)?classifier|fusion.*",
}
SETTINGS = sorted(CAP_TABLE, key=lambda setting: ORDER[setting.network, setting.classes])
NAMES = [f"{setting.network}-{setting.data}" for setting in SETTINGS]


def digits(value: float) -> float:
    """Half of the last digit that is written."""
    return 0.5 * 10.0 ** -len(str(value).partition(".")[2])


@pytest.mark.parametrize(("name", "options", "classes", "size", "params", "flops", "macs"), UNPRUNED)
def test_unpruned_networks_have_the_published_counts(
    name: str, options: dict, classes: int, size: tuple[int, int], params: int, flops: float, macs: int | None
) -> None:
    counted = count(Use(name, "", classes, size, options))
    assert counted.params == params
    assert counted.paper_flops / 1e9 == pytest.approx(flops, abs=digits(flops))
    assert macs is None or counted.macs == macs


@pytest.mark.parametrize(("name", "params", "flops"), YOLOV5)
def test_yolov5_has_the_published_counts_when_its_batch_norms_are_fused(name: str, params: int, flops: float) -> None:
    assert count(Use(name, "", 80, (640, 640))).yolo_flops / 1e9 == pytest.approx(flops, abs=digits(flops))
    with torch.device("meta"):
        model = secateur.create_model(name, classes=80).eval()
    for block in model.modules():
        if isinstance(block, ConvBlock):
            block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    assert sum(p.numel() for p in model.parameters()) == params


@pytest.mark.parametrize(
    ("name", "options", "classes", "size", "params", "macs"),
    [
        ("unet", {}, 11, (360, 480), 13.396e6, 81.568e9),
        ("resnet18_cifar", {}, 10, (32, 32), 11_173_962, 140.187e6),
        ("resnet18_cifar", {"max_pool": False}, 10, (32, 32), 11_173_962, 555.423e6),
    ],
)
def test_what_is_known_to_three_decimals(
    name: str, options: dict, classes: int, size: tuple[int, int], params: float, macs: float
) -> None:
    counted = count(Use(name, "", classes, size, options))
    assert counted.params == pytest.approx(params, abs=500 if isinstance(params, float) else 0)
    assert counted.macs == pytest.approx(macs, abs=500_000 if macs > 1e9 else 500)


@pytest.mark.parametrize(("setting", "expected"), list(zip(SETTINGS, FPGM, strict=True)), ids=NAMES)
def test_fpgm_at_the_papers_layers_leaves_the_papers_counts(setting: Setting, expected: tuple[int, float, int]) -> None:
    params, flops, macs = expected
    _, counted = count_pruned(setting)
    assert (counted.params, counted.macs) == (params, macs)
    assert counted.paper_flops / 1e9 == pytest.approx(flops, abs=digits(flops))


def test_the_papers_flops_of_fpgm_on_camvid_are_those_with_19_classes() -> None:
    _, counted = count_pruned(replace(SETTINGS[4], classes=19))
    assert counted.paper_flops / 1e9 == pytest.approx(32.9504, abs=digits(32.9504))


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_fpgm_removes_its_share_of_each_of_its_layers_and_nothing_else(setting: Setting) -> None:
    torch.manual_seed(0)
    model, image = secateur.create_model(setting.network, classes=5, width=8), torch.randn(1, 3, 96, 96)
    small = secateur.prune(model, image, method="fpgm", ratios=dict.fromkeys(setting.layers, setting.share)).model
    whole = WHOLE["segnet" if setting.network == "segnet" else "others"]
    for (name, before), after in zip(model.named_modules(), small.modules(), strict=True):
        if isinstance(before, nn.Conv2d):
            gone = 0 if re.fullmatch(whole, name) else math.floor(setting.share * before.out_channels)
            assert before.out_channels - after.out_channels == gone, name


def test_floor_of_the_share_is_what_the_paper_keeps() -> None:
    assert [width - math.floor(0.4 * width) for width in (64, 128, 256, 512)] == [39, 77, 154, 308]


def test_yolo_flops_are_twice_the_macs_and_the_outputs_of_convolutions() -> None:
    with torch.device("meta"):
        model, image = secateur.create_model("icnet", classes=19), torch.empty(1, 3, 256, 512)
    outputs = 0

    def add(module: nn.Module, args: object, out: torch.Tensor) -> None:
        nonlocal outputs
        outputs += out.numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # all have a bias, or a batch norm behind them to be fused
            module.register_forward_hook(add)
    model.eval()(image)
    for side in (model.fusion24.side, model.fusion12.side):
        size = (16, 32) if side is model.fusion24.side else (32, 64)
        outputs += 19 * math.prod(size)
    expected = 2 * outputs
    counted = secateur.cost(model, image)
    assert counted.yolo_flops == 2 * counted.macs + expected


def test_the_batch_multiplies_all_flops_those_of_side_heads_too() -> None:
    with torch.device("meta"):
        model = secateur.create_model("pspnet50", classes=5, width=4)
        one, three = (secateur.cost(model, torch.empty(n, 3, 65, 65)) for n in (1, 3))
    assert one.params == three.params
    assert [3 * one.macs, 3 * one.paper_flops, 3 * one.yolo_flops] == [three.macs, three.paper_flops, three.yolo_flops]


def test_the_command_prints_every_cell_and_where_it_differs() -> None:
    result = CliRunner().invoke(app, ["tables", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    table, networks = document["cap"], document["networks"]
    assert len(table) == sum(len(setting.rows) for setting in CAP_TABLE) == 28
    for row in table:
        recounted = {row[what]["recomputed"] is not None for what in ("params", "paper_flops")}
        assert recounted == {row["method"] in ("Unpruned", "FPGM")}
    off = [
        (row["network"], row["data"], row["method"], what)
        for row in table
        for what in ("params", "paper_flops")
        if row[what]["agrees"] is False
    ]
    assert off == [("SegNet", "CamVid", "FPGM", "paper_flops")]
    assert [(row["network"], row["options"]) for row in networks] == [(use.network, dict(use.options)) for use in USES]
    assert networks[0]["macs"] == 555_489_814_720
    text = recounted_text(table, networks)
    assert "19 of 20 recomputed cells round to the published number." in text
    assert "  Unpruned       78.40       70.44   70.437350   -0.002650      557.04  557.042921   +0.002921" in text
    assert "SegNet, CamVid, FPGM: the published FLOPs are those with 19 classes, 32.950364." in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_page_of_networks_tells_names_options_and_counts() -> None:
    page = (Path(__file__).parents[1] / "docs" / "networks.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    rows = [row for row in rows if len(row) == 7]
    assert sorted(row[0].strip("`") for row in rows) == secateur.list_models()
    for name, _, options, size, classes, params, macs in rows:
        name = name.strip("`")
        defaults = {
            key: p.default for key, p in inspect.signature(NETWORKS[name]).parameters.items() if key != "classes"
        }
        assert options == " ".join(f"`{key}={str(value).lower()}`" for key, value in defaults.items())
        height, width = map(int, size.split("x"))
        counted = count(Use(name, "", int(classes), (height, width)))
        assert (params, macs) == (f"{counted.params:,}", f"{counted.macs:,}")
