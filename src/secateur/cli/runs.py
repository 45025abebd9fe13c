"""`secateur run` and its stages one by one: `train`, `prune`, `finetune`, `eval`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.guard import guarded, remember_run

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe, or a run folder (its recipe and its place).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="section.key=value", help="Values that replace the recipe's, as in train.epochs=10."),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder; default: runs/<name of the recipe>.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run in this folder was interrupted.")]
Json = Annotated[bool, typer.Option("--json", help="Print result.json and nothing else on standard output.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    example = "recipes/streets_unet_cap.yaml"
    app.command("run", epilog=f"Example: secateur run {example} train.epochs=10 --out runs/first")(guarded(run))
    app.command("train", epilog=f"Example: secateur train {example} --out runs/first")(guarded(train))
    app.command("prune", epilog="Example: secateur prune runs/first")(guarded(prune))
    app.command("finetune", epilog="Example: secateur finetune runs/first")(guarded(finetune))
    app.command("eval", epilog="Example: secateur eval runs/first --json")(guarded(evaluate))


def run(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, resume: Resume = False, as_json: Json = False
) -> None:
    """Train, sparsify, prune, fine-tune, evaluate."""
    _perform(recipe, overrides, out, resume, as_json, lambda experiment: experiment.run())


def train(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, resume: Resume = False, as_json: Json = False
) -> None:
    """Train the unpruned network, sparsify it."""
    _perform(recipe, overrides, out, resume, as_json, lambda experiment: experiment.train())


def prune(recipe: RecipePath, overrides: Overrides = None, out: Out = None, as_json: Json = False) -> None:
    """Prune the trained network of a run."""
    _perform(recipe, overrides, out, None, as_json, lambda experiment: experiment.prune())


def finetune(recipe: RecipePath, overrides: Overrides = None, out: Out = None, as_json: Json = False) -> None:
    """Fine-tune the pruned network of a run."""
    _perform(recipe, overrides, out, None, as_json, lambda experiment: experiment.finetune())


def evaluate(recipe: RecipePath, overrides: Overrides = None, out: Out = None, as_json: Json = False) -> None:
    """Evaluate the networks of a run."""
    _perform(recipe, overrides, out, None, as_json, lambda experiment: experiment.evaluate())


def show(result: dict[str, Any], out: Path) -> None:
    """Prints what a run has come to: the ladder, IoU per class, and where everything lies."""
    from rich.console import Console

    from secateur.report import ladder_table, per_class_table

    console = Console(highlight=False)
    console.print(ladder_table(result))
    console.print(per_class_table(result))
    typer.echo(f"run folder: {out}")


def command_line() -> str:
    """The command as it was given, for the record."""
    return shlex.join(["secateur", *sys.argv[1:]])


def _perform(
    source: Path,
    overrides: list[str] | None,
    out: Path | None,
    resume: bool | None,
    as_json: bool,
    work: Callable[[Any], dict[str, Any]],
) -> None:
    """Reads the recipe, lets `work` do its part of the experiment, and shows the result so far.

    `resume` is None for a stage that always takes up the run as it is.
    """
    from secateur.pipeline import Experiment
    from secateur.recipe import load_recipe
    from secateur.training.devices import keep_freed_memory

    path, out = _places(source, out)
    recipe = load_recipe(path, overrides or [])
    keep_freed_memory()
    experiment = Experiment(recipe, out, resume=resume is None or resume, command=command_line())
    remember_run(out, "the same command goes on" if resume is None else "--resume goes on")
    result = work(experiment)
    if not experiment.fabric.is_global_zero:
        return  # one of several processes speaks
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        show(result, out)


def _places(source: Path, out: Path | None) -> tuple[Path, Path]:
    """The recipe file and the run folder: a run folder given for a recipe stands for both."""
    if source.is_dir():
        return source / "recipe.yaml", out or source
    return source, out or Path("runs") / source.stem
