"""The tables say what the result says; the picture shows what it is given."""

import cv2
import numpy as np
import pytest
from rich.console import Console

from secateur.report import ladder_table, per_class_table, picture

PALETTE = ((128, 128, 128), (128, 0, 0), (0, 128, 192))
NAMES = ("sky", "building", "bicyclist")


def stage(name, miou, params, latency=12.3456):
    return {
        "stage": name,
        "miou": miou,
        "macc": 0.6,
        "accuracy": 0.9,
        "per_class": {"sky": miou, "[building]": 0.125, "bicyclist": None},
        "params": params,
        "macs": 1000 * params,
        "paper_flops": 1002 * params,
        "latency_ms": latency,
    }


def text_of(table) -> str:
    console = Console(width=80, record=True, file=None, quiet=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.fixture
def result():
    return {
        "stages": [
            stage("unpruned", 0.5513, 13_400_000),
            stage("pruned", 0.1, 5_333_200),
            stage("finetuned", 0.5, 5_333_200),
        ],
        "budget": {"asked": {"params": 0.4}, "achieved": {"params": 0.398}},
        "verification": {"relative_error": 3.21e-7, "ok": True},
    }


def rows_of(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}


def test_the_ladder_has_a_row_per_stage_with_scores_in_per_cent_and_what_remains(result):
    rows = rows_of(text_of(ladder_table(result)))
    assert rows["unpruned"] == ["55.1", "60.0", "90.0", "13.4", "M", "13.4", "G", "13.4", "G", "12.35"]
    assert rows["pruned"][:6] == ["10.0", "60.0", "90.0", "5.33", "M", "40%"]
    assert list(rows).index("finetuned") > list(rows).index("pruned")


def test_the_ladder_says_asked_achieved_and_how_exact(result):
    text = text_of(ladder_table(result))
    assert "budget, params: asked 40.00 %, achieved 39.80 %" in text
    assert "relative error 3.2e-07, exact" in text
    result["verification"]["ok"] = False
    assert "NOT EXACT" in text_of(ladder_table(result))


def test_an_absolute_budget_is_shown_as_an_amount(result):
    result["budget"] = {"asked": {"macs": 5.0e9}, "achieved": {"macs": 4.98e9}}
    assert "budget, macs: asked 5.00 G, achieved 4.98 G" in text_of(ladder_table(result))


def test_the_ladder_fits_a_terminal_of_80_columns(result):
    assert "…" not in text_of(ladder_table(result))


def test_an_unpruned_run_has_no_budget_and_no_verification(result):
    result.update(budget=None, verification=None)
    text = text_of(ladder_table(result))
    assert "budget" not in text and "error" not in text


def test_a_score_that_does_not_exist_is_a_dash(result):
    result["stages"][0].update(miou=float("nan"), latency_ms=None)
    assert rows_of(text_of(ladder_table(result)))["unpruned"][0] == "-"
    assert rows_of(text_of(ladder_table(result)))["unpruned"][-1] == "-"


def test_the_class_table_has_a_column_per_stage_and_takes_names_literally(result):
    rows = rows_of(text_of(per_class_table(result)))
    assert rows["class"] == ["unpruned", "pruned", "finetuned"]
    assert rows["sky"] == ["55.1", "10.0", "50.0"]
    assert rows["[building]"] == ["12.5"] * 3
    assert rows["bicyclist"] == ["-"] * 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (999, "999"),
        (999.6, "1.00 k"),
        (1000, "1.00 k"),
        (9_996, "10.0 k"),
        (99_960, "100 k"),
        (999_600, "1.00 M"),
        (1.5e12, "1.50 T"),
    ],
)
def test_amounts_have_three_digits(result, value, shown):
    result["stages"][0]["params"] = value
    assert f" {shown} " in text_of(ladder_table({**result, "stages": result["stages"][:1]}))


def draw(tmp_path, count=2, height=30, width=40, **changes):
    """A picture of samples whose truth is class 0 on the left, 1 on the right and void in a corner."""
    label = np.zeros((height, width), np.uint8)
    label[:, width // 2 :] = 1
    label[: height // 3, : width // 4] = 255
    image = np.full((height, width, 3), (10, 200, 90), np.uint8)
    given = {
        "images": [image] * count,
        "labels": [label] * count,
        "rows": {"unpruned": [np.full((height, width), 2)] * count, "pruned": [label.astype(np.int64)] * count},
        "palette": PALETTE,
        "names": NAMES,
    }
    path = tmp_path / "p.png"
    picture(path, **{**given, **changes})
    return cv2.imread(str(path))[..., ::-1]


def cell(drawn, row, column, x, y, height=180, width=240):
    """The colour at the share (x, y) of a cell of the picture."""
    return tuple(drawn[24 + row * (height + 6) + int(y * height), 6 + column * (width + 6) + int(x * width)].tolist())


@pytest.mark.parametrize("row", [0, 1])
def test_the_picture_shows_image_truth_and_predictions_in_the_palette(tmp_path, row):
    drawn = draw(tmp_path)
    assert cell(drawn, row, 0, 0.5, 0.5) == (10, 200, 90)
    assert cell(drawn, row, 1, 0.3, 0.8) == PALETTE[0]
    assert cell(drawn, row, 1, 0.8, 0.5) == PALETTE[1]
    assert cell(drawn, row, 1, 0.1, 0.1) == (0, 0, 0)  # void
    assert cell(drawn, row, 2, 0.3, 0.3) == PALETTE[2]
    assert cell(drawn, row, 3, 0.8, 0.5) == PALETTE[1]


def test_the_legend_shows_every_colour_below_the_samples(tmp_path):
    legend = draw(tmp_path)[24 + 2 * 186 :].reshape(-1, 3)
    colours = {tuple(colour) for colour in legend.tolist()}
    assert {*PALETTE, (0, 0, 0)} <= colours


def test_a_picture_of_nothing_or_of_other_sizes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no image"):
        draw(tmp_path, images=[])
    with pytest.raises(ValueError, match="'pruned' must hold one map per image"):
        draw(tmp_path, rows={"pruned": [np.zeros((30, 40))]})
    with pytest.raises(ValueError, match="'truth' must hold"):
        draw(tmp_path, labels=[np.zeros((30, 41))] * 2)
    assert not (tmp_path / "p.png").exists()
