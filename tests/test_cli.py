"""The command line: exit codes, one message and no traceback, nothing written; JSON that is only JSON."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load
from typer.testing import CliRunner

from secateur.cli import app

RECIPE = """
data: {name: camvid, root: camvid, size: [32, 48], workers: 0}
model: {name: unet, width: 4}
method: {name: l1}
budget: {params: 0.6}
train: {epochs: 1, batch_size: 2, evaluate_every: 1}
sparsify: {epochs: 0}
finetune: {epochs: 1}
evaluate: {recalibrate_batches: 1, latency_repeats: 1, pictures: 1}
run: {threads: 1, accelerator: cpu, tensorboard: false}
"""


def secateur(*arguments: str):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def folder(tmp_path, monkeypatch, camvid_mini):
    """A working directory with a recipe and a miniature CamVid."""
    place = tmp_path / "working here"
    place.mkdir()
    camvid_mini.rename(place / "camvid")
    (place / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the recipe on drawn scenes, for tests that only look at it or copy it."""
    place = tmp_path_factory.mktemp("finished")
    (place / "r.yaml").write_text(RECIPE.replace("name: camvid, root: camvid", "name: streets, length: 4, limit: 4"))
    result = secateur("run", place / "r.yaml", "--out", place / "run")
    assert result.exit_code == 0, result.output
    return place / "run"


# -- mistakes ---


def a_label(folder: Path) -> Path:
    return sorted((folder / "camvid" / "trainannot").iterdir())[0]


def an_image(folder: Path) -> Path:
    return sorted((folder / "camvid" / "train").iterdir())[0]


def remove_label(folder):
    a_label(folder).unlink()


def label_out_of_range(folder):
    label = cv2.imread(str(a_label(folder)), cv2.IMREAD_UNCHANGED)
    label[0, 0] = 77
    cv2.imwrite(str(a_label(folder)), label)


def label_of_other_size(folder):
    cv2.imwrite(str(a_label(folder)), np.zeros((20, 30), np.uint8))


def break_image(folder):
    an_image(folder).write_bytes(an_image(folder).read_bytes()[:200])


def take_the_folder(folder):
    (folder / "runs" / "r").mkdir(parents=True)
    (folder / "runs" / "r" / "recipe.yaml").write_text(RECIPE)


def fill_the_folder(folder):
    (folder / "runs" / "r").mkdir(parents=True)
    (folder / "runs" / "r" / "thesis.txt").write_text("three years of work")


def broken_weights(folder):
    (folder / "w.safetensors").write_bytes(b'\x10\x00\x00\x00\x00\x00\x00\x00{"a":')


def nothing(folder):
    pass


MISTAKES = {
    "no such recipe": (nothing, ["run", "none.yaml"], 2, "none.yaml: there is no such recipe"),
    "recipe typo": (nothing, ["run", "r.yaml", "train.epoch=3"], 2, "did you mean 'epochs'?"),
    "unknown method": (nothing, ["run", "r.yaml", "method.name=cpa"], 2, "did you mean 'cap'?"),
    "unknown method option": (
        nothing,
        ["run", "r.yaml", "method.options.pul=1"],
        2,
        "method.options.pul: unknown option",
    ),
    "ratio above 1": (
        nothing,
        ["run", "r.yaml", "budget.pruning_ratio=1.5"],
        2,
        "expected a number >= 0 and <= 1, got 1.5",
    ),
    "ratio below 0": (
        nothing,
        ["run", "r.yaml", "budget.pruning_ratio=-1"],
        2,
        "expected a number >= 0 and <= 1, got -1",
    ),
    "budget out of reach": (nothing, ["run", "r.yaml", "budget.params=0.0001"], 3, "params"),
    "missing data root": (nothing, ["run", "r.yaml", "data.root=nowhere"], 2, "nowhere"),
    "missing label": (remove_label, ["run", "r.yaml"], 2, "0001TP_000000.png"),
    "label out of range": (label_out_of_range, ["run", "r.yaml"], 2, "77"),
    "label of another size": (label_of_other_size, ["run", "r.yaml"], 2, "0001TP_000000"),
    "broken image": (break_image, ["run", "r.yaml"], 2, "0001TP_000000.jpg"),
    "missing weights": (nothing, ["run", "r.yaml", "model.weights=none.safetensors"], 2, "none.safetensors"),
    "truncated weights": (broken_weights, ["run", "r.yaml", "model.weights=w.safetensors"], 2, "w.safetensors"),
    "missing plan": (nothing, ["run", "r.yaml", "method.name=none", "model.plan=p.json"], 2, "p.json"),
    "unknown network": (nothing, ["run", "r.yaml", "model.name=unett"], 2, "did you mean 'unet'?"),
    "unknown network option": (nothing, ["run", "r.yaml", "model.options.depht=3"], 2, "depht"),
    "folder holds a run": (take_the_folder, ["run", "r.yaml"], 2, "already holds a run"),
    "folder holds other things": (fill_the_folder, ["run", "r.yaml"], 2, "is not empty"),
    "other things, resumed": (fill_the_folder, ["run", "r.yaml", "--resume"], 2, "is not empty"),
    "out is a file": (nothing, ["run", "r.yaml", "--out", "r.yaml"], 2, "is a file"),
    "prune before train": (nothing, ["prune", "r.yaml"], 2, "no finished stage 'train'"),
    "finetune before train": (nothing, ["finetune", "r.yaml"], 2, "no finished stage"),
    "eval before train": (nothing, ["eval", "r.yaml"], 2, "no finished stage"),
    "folder without a recipe": (nothing, ["eval", "camvid"], 2, "camvid/recipe.yaml: there is no such recipe"),
    "no recipe at all": (nothing, ["run"], 2, "Missing argument"),
    "unknown flag": (nothing, ["run", "r.yaml", "--ouut", "x"], 2, "No such option"),
    "unknown command": (nothing, ["prun", "r.yaml"], 2, "No such command"),
    "inspect nothing": (nothing, ["inspect", "segnt", "--input", "3x32x32"], 2, "did you mean 'segnet'?"),
    "inspect no size": (nothing, ["inspect", "unet", "--input", "3x32xb"], 2, "joined by x"),
    "inspect a size of zero": (nothing, ["inspect", "unet", "--input", "3x0x32"], 2, "joined by x"),
    "inspect too small": (nothing, ["inspect", "segnet", "--input", "3x2x2"], 2, "SegNet"),
    "cost of no module": (nothing, ["cost", "nowhere.net:Net", "--input", "32x32"], 2, "nowhere"),
    "cost of a wrong option": (nothing, ["cost", "unet", "widht=3", "--input", "32x32"], 2, "width"),
    "cost of no option": (nothing, ["cost", "unet", "16", "--input", "32x32"], 2, "option=value"),
    "cost of no classes": (nothing, ["cost", "unet", "--classes", "0", "--input", "32x32"], 2, "classes"),
    "recipe of nothing": (nothing, ["recipe"], 2, "--defaults"),
    "recipe of two things": (nothing, ["recipe", "r.yaml", "--schema"], 2, "expected one of"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_message_and_writes_nothing(folder, mistake):
    prepare, arguments, code, fragment = MISTAKES[mistake]
    prepare(folder)
    before = contents(folder)
    result = secateur(*arguments)
    assert result.exit_code == code, result.output
    assert fragment in " ".join(result.stderr.split())
    assert "Traceback" not in result.output and result.stdout == ""
    assert contents(folder) == before


def test_weights_of_another_network_are_refused(folder, finished):
    result = secateur("run", "r.yaml", "model.name=segnet", f"model.weights={finished / 'parent.safetensors'}")
    assert result.exit_code == 2 and "parent.safetensors" in result.stderr
    assert not (folder / "runs").exists()


def test_a_damaged_checkpoint_is_refused_and_left_alone(folder, finished):
    run = folder / "run"
    shutil.copytree(finished, run)
    (run / "result.json").unlink()
    model = run / "model.safetensors"
    model.write_bytes(model.read_bytes()[:1000])
    stages = json.loads((run / "checkpoints" / "stages.json").read_text())
    (run / "checkpoints" / "stages.json").write_text(json.dumps({k: v for k, v in stages.items() if k != "evaluate"}))
    damaged = model.read_bytes()
    result = secateur("eval", run)
    assert result.exit_code == 2 and "model.safetensors" in result.stderr
    assert "Traceback" not in result.output
    assert model.read_bytes() == damaged


def test_a_run_is_not_resumed_with_another_recipe(folder, finished):
    run = folder / "run"
    shutil.copytree(finished, run)
    before = contents(run)
    result = secateur("run", run, "train.epochs=2", "--resume")
    assert result.exit_code == 2 and "train.epochs was 1, now 2" in result.stderr
    assert contents(run) == before


# -- endings that are nobody's mistake ---


def fail(error):
    def work(self):
        raise error

    return work


def test_a_bug_leaves_its_traceback_in_a_file_and_says_where(folder, monkeypatch):
    monkeypatch.setattr("secateur.pipeline.Experiment.run", fail(ZeroDivisionError("[red]x[/red]")))
    result = secateur("run", "r.yaml")
    assert result.exit_code == 1
    assert "ZeroDivisionError: [red]x[/red]" in result.stderr and "report it" in result.stderr
    assert "Traceback" not in result.output
    log = Path(result.stderr.partition("traceback is in ")[2].partition(": please")[0])
    assert "ZeroDivisionError" in log.read_text() and "Traceback" in log.read_text()
    log.unlink()


def test_a_bug_in_a_run_leaves_its_traceback_in_the_log_of_the_run(folder, finished, monkeypatch):
    run = folder / "run"
    shutil.copytree(finished, run)
    monkeypatch.setattr("secateur.pipeline.Experiment.evaluate", fail(ZeroDivisionError()))
    result = secateur("eval", run)
    assert result.exit_code == 1 and str(run / "log.txt") in result.stderr
    assert "ZeroDivisionError" in (run / "log.txt").read_text()


def test_an_interruption_by_the_user_ends_with_130(folder, monkeypatch):
    monkeypatch.setattr("secateur.pipeline.Experiment.run", fail(KeyboardInterrupt()))
    result = secateur("run", "r.yaml")
    assert result.exit_code == 130 and "interrupted" in result.stderr and "--resume" in result.stderr


def test_ctrl_c_leaves_a_checkpoint_and_resuming_ends_the_run(folder):
    command = [sys.executable, "-m", "secateur", "run", "r.yaml", "train.epochs=30", "train.evaluate_every=30"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as run:
        said = ""
        while "train 1/" not in said:
            line = run.stderr.readline()
            assert line, said
            said += line
        run.send_signal(signal.SIGINT)
        said += run.stderr.read()
    assert run.returncode == 130, said
    assert "Traceback" not in said and "--resume goes on" in said
    assert list((folder / "runs" / "r" / "checkpoints" / "train").iterdir())
    result = secateur("run", "runs/r", "--resume")
    assert result.exit_code == 0, result.output
    assert "train 1/30" not in result.stderr and "train 30/30" in result.stderr


# -- what is printed ---


def test_a_run_ends_with_the_ladder_and_its_folder(folder):
    result = secateur("run", "r.yaml", "--out", "out here")
    assert result.exit_code == 0, result.output
    for word in (
        "unpruned",
        "pruned",
        "recalibrated",
        "finetuned",
        "Bicyclist",
        "asked 60.00 %",
        "run folder: out here",
    ):
        assert word in result.stdout
    assert "train 1/1" in result.stderr and "train 1/1" not in result.stdout
    assert json.loads((folder / "out here" / "result.json").read_text())["command"]


def test_stages_one_by_one_leave_what_a_run_leaves(folder):
    assert secateur("run", "r.yaml", "--out", "at-once").exit_code == 0
    for stage in ("train", "prune", "finetune", "eval"):
        result = secateur(stage, "r.yaml", "--out", "stepwise")
        assert result.exit_code == 0, result.output
    one, other = contents(folder / "at-once"), contents(folder / "stepwise")
    assert one.keys() == other.keys() and one["plan.json"] == other["plan.json"]
    weights, others = load(one["model.safetensors"]), load(other["model.safetensors"])
    assert all(np.array_equal(weights[name], others[name]) for name in weights | others)


JSON = {
    "eval": lambda run: ["eval", run, "--json"],
    "inspect": lambda run: ["inspect", "unet", "width=4", "--input", "3x32x48", "--json"],
    "cost": lambda run: ["cost", "unet", "width=4", "--input", "32x48", "--json"],
    "models": lambda run: ["models", "--json"],
    "methods": lambda run: ["methods", "--json"],
    "schema": lambda run: ["recipe", "--schema"],
}


@pytest.mark.parametrize("what", JSON)
def test_json_is_all_that_is_printed(finished, what):
    result = secateur(*JSON[what](finished))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)


def test_json_of_a_run_is_its_result_and_progress_goes_to_standard_error(folder):
    result = secateur("run", "r.yaml", "--json")
    assert json.loads(result.stdout) == json.loads((folder / "runs" / "r" / "result.json").read_text())
    assert "train 1/1" in result.stderr


def test_cost_counts_what_the_reference_says():
    counted = json.loads(secateur("cost", "segnet", "--classes", "12", "--input", "360x480", "--json").stdout)
    assert (counted["params"], counted["macs"]) == (29_449_956, 106_387_292_160)
    assert sum(module["params"] for module in counted["modules"].values()) == counted["params"]
    shown = secateur("cost", "segnet", "--classes", "12", "--input", "360x480").stdout.splitlines()
    assert shown[-1].split()[:2] == ["29,449,956", "106,387,292,160"]


def test_inspect_shows_groups_couplings_and_pins():
    arguments = ["inspect", "unet", "width=4", "--input", "3x32x48"]
    document = json.loads(secateur(*arguments, "--json").stdout)
    assert sum(group["units"] for group in document["groups"]) == document["units"]
    assert any(group["pinned"] == "output of the network" for group in document["groups"])
    for group in document["groups"]:
        assert 0 < group["params_share"] <= 1 and 0 < group["macs_share"] <= 1
    shown = secateur(*arguments).stdout
    assert "pinned: output of the network" in shown
    assert f"{document['units']} units in {len(document['groups'])} groups, {document['prunable']} prunable" in shown


def test_networks_of_the_users_own_are_taken_from_a_file(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef make(depth):\n"
        "    return nn.Sequential(nn.Conv2d(3, depth, 3), nn.ReLU(), nn.Conv2d(depth, 2, 1))\n"
    )
    result = secateur("cost", f"{tmp_path / 'net.py'}:make", "depth=8", "--input", "10x10", "--json")
    assert json.loads(result.stdout)["macs"] == 8 * 8 * (27 * 8 + 8 * 2)


def test_the_defaults_are_a_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(secateur("recipe", "--defaults").stdout)
    result = secateur("recipe", tmp_path / "r.yaml", "train.epochs=3")
    assert result.exit_code == 0 and "  epochs: 3 " in result.stdout


def test_every_command_has_help_with_an_example():
    for command in app.registered_commands:
        result = secateur(command.name, "--help")
        assert result.exit_code == 0
        assert f"Example: secateur {command.name}" in " ".join(result.stdout.split())
        assert command.name in secateur("--help").stdout


def test_the_version_is_that_of_the_package():
    import secateur as package

    assert secateur("--version").stdout == f"secateur {package.__version__}\n"


def test_python_m_secateur_is_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "secateur", "run", "no.yaml"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr == "secateur: no.yaml: there is no such recipe\n" and done.stdout == ""


def test_pytorch_is_imported_only_when_a_command_runs():
    """What modules of the command line import at their top is the standard library, typer and each other."""
    allowed = {*sys.stdlib_module_names, "typer"}
    for path in (Path(__file__).parents[1] / "src" / "secateur" / "cli").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            wrong = [
                name
                for name in names
                if name.split(".")[0] not in allowed and not name.startswith(("secateur.cli", "secateur.errors"))
            ]
            assert wrong == [], path.name


# -- the demo ---

SMALL = ["data.size=[32,48]", "data.limit=4", "data.length=4", "data.workers=0", "model.width=4", "train.epochs=1"]
SMALL += [
    "sparsify.epochs=1",
    "finetune.epochs=1",
    "evaluate.latency_repeats=0",
    "run.accelerator=cpu",
    "run.tensorboard=false",
]


def test_the_demo_goes_on_where_it_was_and_never_overwrites(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = secateur("demo", *SMALL)
    assert first.exit_code == 0, first.output
    for stage in ("unpruned", "pruned", "finetuned"):
        assert stage in first.stdout
    finished = contents(tmp_path / "runs" / "demo")

    (tmp_path / "runs" / "demo" / "result.json").unlink()  # as if it had been killed on the last metre
    assert secateur("demo", *SMALL).exit_code == 0
    again = contents(tmp_path / "runs" / "demo")
    assert again["model.safetensors"] == finished["model.safetensors"] and "result.json" in again

    assert secateur("demo", *SMALL).exit_code == 0
    assert contents(tmp_path / "runs" / "demo") == again
    assert contents(tmp_path / "runs" / "demo-2")["plan.json"] == finished["plan.json"]
