"""Whatever the README and the docs show is run: Python as it stands, commands on a small scale.

Commands that train get the overrides in `SMALL` behind their own, so that they take seconds; nothing else is changed.
They run in a folder that looks like a clone (recipes/, examples/) with miniatures of the data sets in data/.
"""

import re
import shlex
import shutil
from pathlib import Path

import miniatures
import pytest
from typer.testing import CliRunner

from secateur.cli import app
from secateur.recipe import Recipe, dump_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SMALL = (
    "data.size=[32,48] data.limit=4 data.length=4 data.workers=0 train.epochs=1 sparsify.epochs=1 finetune.epochs=1 "
    "evaluate.recalibrate_batches=1 evaluate.latency_repeats=1 evaluate.pictures=1 run.threads=1 run.accelerator=cpu "
    "run.tensorboard=false"
).split()
STORIES = ("engine.md",)  # each block goes on from the one above it; elsewhere each stands alone
TRAIN = ("run", "train", "prune", "finetune", "eval", "demo", "sweep")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    return [
        line for block in blocks(page, "sh") for line in block.splitlines() if line.strip() and not line.startswith("#")
    ]


@pytest.fixture
def clone(tmp_path, monkeypatch, camvid_mini):
    """A folder with what a command in the README finds around it."""
    folder = tmp_path / "clone"
    for name in ("recipes", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "data").mkdir()
    camvid_mini.rename(folder / "data" / "camvid")
    for name in ("ade20k", "voc2012", "cifar10"):  # their archives hold a folder of their own
        getattr(miniatures, name)(folder / "data")
    for name, place in (("cityscapes", "cityscapes"), ("camvid32", "camvid32"), ("folder", "mine")):
        getattr(miniatures, name)(folder / "data" / place)
    monkeypatch.chdir(folder)
    return folder


def run(command: str) -> None:
    """One shell command of a page."""
    program, *arguments = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets), command
    elif program == "pip":
        assert arguments == ["install", "-e", "."] and (ROOT / "pyproject.toml").exists(), command
    else:
        assert program == "secateur", f"do not know how to check {command!r}"
        makes_runs = arguments[0] == "compare" and arguments[1].endswith(".yaml")
        small = SMALL if arguments[0] in TRAIN or makes_runs else []
        result = CliRunner().invoke(app, [*arguments, *small])
        assert result.exit_code == 0, f"{command}: {result.output}"


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_run_one_after_the_other(page, clone):
    for command in commands(page):
        run(command)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs_as_it_stands(page, clone, monkeypatch):
    monkeypatch.syspath_prepend(str(clone / "examples"))
    if page.name == "run_folder.md":  # it reads what this command of the README leaves
        run(next(command for command in commands(ROOT / "README.md") if "runs/first" in command))
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        names = {**(names if page.name in STORIES else {}), "__name__": "__main__"}
        exec(compile(block, f"{page.name}", "exec"), names)


def test_examples_are_those_of_the_readme():
    shown = blocks(ROOT / "README.md", "python")
    for name in ("prune_your_network.py", "cap_in_your_loop.py"):
        assert (ROOT / "examples" / name).read_text(encoding="utf-8") in shown


def test_the_readme_keeps_its_promise_of_lengths():
    lengths = [len(block.splitlines()) for block in blocks(ROOT / "README.md", "python")]
    assert lengths[0] <= 12 and lengths[1] <= 20
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_the_page_of_recipes_shows_the_defaults():
    assert blocks(ROOT / "docs" / "recipes.md", "yaml") == [dump_recipe(Recipe())]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
