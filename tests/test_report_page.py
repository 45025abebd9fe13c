"""The report: one HTML file that needs nothing else, from what runs left on disk."""

import csv
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from secateur.cli import app
from secateur.errors import RecipeError, RunFolderError
from secateur.pipeline.exhibits import keep_pictures, scales_of, widths_of
from secateur.report.page import report_page
from secateur.report.run_record import read_rows
from secateur.report.variants import latex_table, variants_csv, variants_of

CLASSES = {"Road": (128, 64, 128), "Pole": (10, 200, 30)}


def run_folder(folder, miou=0.5, seed=0, exhibits=True, method="cap", params=400):
    """A run folder as `secateur run` leaves it, with little in it."""
    folder.mkdir(parents=True)

    def rung(stage, miou, params):
        classes = {"Road": 0.9, "Pole": 2 * miou - 0.9}
        return {"stage": stage, "miou": miou, "macc": miou, "accuracy": miou, "params": params, "macs": 10 * params,
                "paper_flops": 11 * params, "latency_ms": None, "per_class": classes}  # fmt: skip

    result = {
        "stages": [rung("unpruned", 0.6, 1000), rung("finetuned", miou, params)],
        "network": "unet", "minority": ["Pole"], "seed": seed, "command": "secateur run a.yaml", "warnings": [],
        "method": {"name": method, "options": {}}, "seconds": {"train": 90.0}, "versions": {"torch": "2.13.0"},
        "verification": {"relative_error": 3e-7, "ok": True}, "device": "cpu", "threads": 1,
        "pinned": [{"name": "head", "units": 2, "why": "output of the network"}],
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "model.safetensors").write_bytes(b"x" * 2_500_000)
    rows = [
        {"stage": s, "epoch": e, "loss": 1 / e, "miou": miou * e / 4} for s in ("train", "finetune") for e in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "trai')
    if exhibits:
        image = np.full((40, 60, 3), 90, np.uint8)
        label = np.zeros((40, 60), np.uint8)
        label[:, 30:] = 1
        label[0] = 255
        maps = {"truth": [label], "unpruned": [label * 0], "final": [1 - label.clip(0, 1)]}
        (folder / "pictures").mkdir()
        samples = keep_pictures(folder / "pictures", ["a/street <1>.png"], [image], maps, [*CLASSES.values()])
        record = {
            "samples": samples,
            "legend": {name: f"rgb{colour}" for name, colour in CLASSES.items()},
            "widths": {"stem.conv": [64, 20], "head": [2, 2]},
            "scales": {"edges": [0.0, 0.5, 1.0], "counts": {"before": [1, 9], "after": [6, 4]}},
        }
        (folder / "exhibits.json").write_text(json.dumps(record))
    return folder


def secateur(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Page(HTMLParser):
    """Elements in order; refuses what is not balanced."""

    VOID = frozenset({"meta", "img", "input", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def rows(tmp_path):
    folders = [run_folder(tmp_path / f"cap-{seed}", 0.5 + 0.02 * seed, seed) for seed in (0, 1)]
    other = run_folder(tmp_path / "l1", 0.4, method="l1", params=200, exhibits=False)
    return read_rows(["CAP <i>&=" + ",".join(map(str, folders)), f"L1={other}"])


def test_the_page_is_whole_and_needs_nothing_else(rows):
    text = report_page(rows, 'a "title" <b>')
    page = Page(text)
    for tag, attrs in page.elements:
        for key in ("src", "href", "xlink:href", "action", "data"):
            value = attrs.get(key) or ""
            assert not value or value.startswith(("#", "data:")), f"<{tag} {key}={value[:60]}>"
        assert not any(key.startswith("on") for key in attrs)
    assert "@import" not in text and "url(http" not in text
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"].removeprefix("#") in ids
    assert all(svg.get("aria-label") for svg in page.all("svg")) and page.all("svg")
    assert page.all("html")[0]["lang"] == "en"
    assert "CAP <i>&" in page.text and not page.all("i") and not page.all("b")  # names are text, not markup


def test_the_page_says_what_the_runs_came_to(rows):
    page = Page(report_page(rows, "t"))
    for said in ("51.0", "(50.0, 52.0)", "40.0", "2.50", "output of the network", "3.0e-07", "secateur run a.yaml",
                 "street <1>.png", "stem.conv", "20 of 64"):  # fmt: skip
        assert said in page.text, said
    assert "-20.0" not in page.text  # Pole before: 0.3
    assert "-18.0" in page.text  # CAP's Pole: 0.12
    titles = [svg["aria-label"] for svg in page.all("svg")]
    for chart in ("mIoU over parameters", "mIoU over MACs", "Scales of the batch norms: CAP", "Channels of every layer",
                  "mIoU on the validation images"):  # fmt: skip
        assert any(chart in title for title in titles), chart
    assert not any("latency" in title for title in titles)  # not measured
    samples = json.loads(page.text[page.text.index('[{"name": "a/street') :].split("\n")[0].partition("</")[0].strip())
    assert {*samples[0]["pictures"]} == {"image", "truth", "unpruned", "CAP <i>&"}
    assert len(page.all("option")) == 2 * 4


def test_two_budgets_of_a_method_make_a_curve(tmp_path):
    rows = read_rows([f"{n}={run_folder(tmp_path / str(n), 0.5, params=n)}" for n in (400, 200)])
    titles = [svg["aria-label"] for svg in Page(report_page(rows, "t")).all("svg")]
    assert "mIoU by the share of the parameters removed" in titles


def test_csv_and_latex(rows):
    variants = variants_of(rows)
    table = list(csv.DictReader(io.StringIO(variants_csv(variants))))
    assert [row["variant"] for row in table] == ["unet before pruning", "CAP <i>&", "L1"]
    assert [float(row["miou"]) for row in table] == pytest.approx([0.6, 0.51, 0.4])
    assert (table[1]["params"], table[1]["latency_ms"]) == ("400.0", "")
    assert float(table[1]["iou Pole"]) == pytest.approx(0.12)
    latex = latex_table(variants)
    assert r"CAP <i>\& & 51.0 & 12.0 &" in latex and r"mIoU \%" in latex and " ms " not in latex
    head, *lines = latex.splitlines()
    columns = head.partition("{l")[2].count("r")
    assert {line.replace(r"\&", "").count("&") for line in lines if line.endswith(r"\\")} == {columns}


def test_runs_of_older_days_have_a_page_too():
    folder = Path(__file__).parent.parent / "results" / "camvid_mini_unet"
    page = Page(report_page(read_rows([f"CAP={folder / 'cap-0'},{folder / 'cap-1'}", str(folder / "l1-0")]), "t"))
    assert "60.3" in page.text and "Pictures" not in page.text


def test_a_comparison_is_read_from_its_folder(tmp_path):
    for name in ("a-0", "a-1", "b"):
        run_folder(tmp_path / name)
    runs = [
        {"row": n[0].upper(), "budget": "params 0.4" if n[0] == "a" else "", "folder": n} for n in ("a-0", "a-1", "b")
    ]
    (tmp_path / "comparison.json").write_text(json.dumps({"runs": runs}))
    rows = read_rows([str(tmp_path)])
    assert {name: len(runs) for name, runs in rows.items()} == {"A, params 0.4": 2, "B": 1}
    (tmp_path / "comparison.json").write_text('{"runs": [{"row": 3}]}')
    with pytest.raises(RecipeError, match="damaged"):
        read_rows([str(tmp_path)])


def test_mistakes_are_named(tmp_path):
    with pytest.raises(RunFolderError, match="there is no such file; expected run folders"):
        read_rows([str(tmp_path / "none")])
    run = run_folder(tmp_path / "r")
    with pytest.raises(RunFolderError, match="two rows are called x"):
        read_rows([f"x={run}", f"x={run}"])
    (run / "result.json").write_text("[1, 2]")
    with pytest.raises(RecipeError, match="no result of a run"):
        read_rows([str(run)])
    (run / "result.json").write_text("{")
    with pytest.raises(RecipeError, match="not JSON"):
        read_rows([str(run)])


def test_the_command_writes_beside_the_run_and_nowhere_else(tmp_path):
    run, other = run_folder(tmp_path / "r"), run_folder(tmp_path / "o")
    done = secateur("report", str(run))
    assert done.exit_code == 0, done.output
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert secateur("report", str(run)).exit_code == 0  # the page of a run is made anew
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    refused = secateur("report", str(run), str(other), "--out", str(mine))
    assert refused.exit_code == 2 and "--force" in refused.output and mine.read_text() == "mine"
    assert secateur("report", str(run), str(other), "--out", str(mine), "--force").exit_code == 0


def test_exhibits_of_networks(tmp_path):
    before = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 6, 2), nn.Linear(6, 2))
    after = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ConvTranspose2d(5, 4, 2), nn.Linear(4, 2))
    assert widths_of(before, after) == {"0": [8, 5], "2": [6, 4], "3": [2, 2]}
    state = {k: v.clone() for k, v in before.state_dict().items()}
    state["1.weight"] = torch.tensor([0.0] * 6 + [-2.0, 1.0])
    scales = scales_of(before, {"before": before.state_dict(), "after": state})
    assert sum(scales["counts"]["before"]) == sum(scales["counts"]["after"]) == 8
    assert scales["counts"]["after"][0] == 6 and scales["counts"]["after"][-1] == 1 and scales["edges"][-1] == 2
    assert scales_of(nn.Linear(2, 2), {"before": nn.Linear(2, 2).state_dict()})["counts"] == {}


def test_pictures_are_kept_as_they_are(tmp_path):
    image = np.zeros((2000, 1000, 3), np.uint8)
    image[..., 0] = 200  # red
    label = np.zeros((2000, 1000), np.int64)
    label[1000:] = 1
    (tmp_path / "pictures").mkdir()
    kept = keep_pictures(tmp_path / "pictures", ["x"], [image], {"truth": [label]}, [*CLASSES.values()])
    pictures = kept[0]["pictures"]
    small = cv2.imread(str(tmp_path / pictures["image"]))[..., ::-1]
    assert small.shape == (960, 480, 3) and abs(small.astype(int) - (200, 0, 0)).max() < 8
    colours = cv2.imread(str(tmp_path / pictures["truth"]))[..., ::-1]
    assert tuple(colours[10, 10]) == CLASSES["Road"] and tuple(colours[-10, 10]) == CLASSES["Pole"]


def test_in_a_browser(rows, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: browser)")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    path = tmp_path / "report.html"
    path.write_text(report_page(rows, "t"), encoding="utf-8")
    wrong = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for width in (1280, 360):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme="light")
            page.on("console", lambda message: wrong.append(message.text))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda request: wrong.append(request.url))
            page.goto(path.as_uri())
            used(page, width)
        browser.close()
    assert [url for url in wrong if not url.startswith(("file:", "data:"))] == []


def used(page, width):
    """Everything on the page that can be pressed, pressed."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    first, score = page.locator("#table tbody tr th").first, page.get_by_role("button", name="mIoU %")
    score.click()
    assert first.inner_text() == "unet before pruning"
    score.click()
    assert first.inner_text() == "L1"
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.locator("#theme").click()
    assert page.evaluate(paper) != "rgb(255, 255, 255)"
    over = page.locator("figure img").nth(1)
    page.locator("figure input").fill("20")
    assert "80%" in over.evaluate("image => image.style.clipPath")
    page.locator("#left").select_option("truth")
    assert over.evaluate("async image => (await image.decode(), image.naturalWidth)") == 60
    assert over.get_attribute("alt") == "a/street <1>.png: truth"


def test_a_run_ends_with_its_page(tmp_path):
    (tmp_path / "r.yaml").write_text("""
data: {name: streets, length: 4, limit: 4, size: [32, 48], workers: 0}
model: {name: unet, width: 4}
method: {name: network_slimming}
budget: {params: 0.6}
train: {epochs: 1, batch_size: 2, evaluate_every: 1}
sparsify: {epochs: 1}
finetune: {epochs: 1}
evaluate: {recalibrate_batches: 1, latency_repeats: 1, pictures: 2}
run: {threads: 1, accelerator: cpu, tensorboard: false}
""")
    done = secateur("run", tmp_path / "r.yaml", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    (run,) = read_rows([str(tmp_path / "run")])["run"]
    assert [*run.exhibits["scales"]["counts"]] == ["before the sparsity training", "after it"]
    assert all(after <= before for before, after in run.exhibits["widths"].values())
    assert sum(after for _, after in run.exhibits["widths"].values()) < sum(
        b for b, _ in run.exhibits["widths"].values()
    )
    for sample in run.exhibits["samples"]:
        shapes = {cv2.imread(str(run.folder / file)).shape for file in sample["pictures"].values()}
        assert [*sample["pictures"]] == ["image", "truth", "unpruned", "final"] and shapes == {(32, 48, 3)}
    assert run.result["pinned"] and all(group["why"] for group in run.result["pinned"])
    page = Page((run.folder / "report.html").read_text(encoding="utf-8"))
    assert page.all("figure") and "output of the network" in page.text
