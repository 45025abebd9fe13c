"""`secateur demo`: the whole pipeline on the embedded data set, in a few minutes."""

from __future__ import annotations

import itertools
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.guard import guarded, note, remember_run
from secateur.cli.runs import command_line, show


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("demo", epilog="Example: secateur demo")(guarded(demo))


def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.key=value", help="Values that replace the demo's.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The run folder; if it is taken, the next free name.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Run everything on drawn street scenes in minutes.

    Trains, prunes and fine-tunes a small U-Net: a few minutes on two cores, no data set needed.

    Interrupted, it goes on where it was when called again.
    """
    from secateur.pipeline import Experiment
    from secateur.recipe import load_recipe
    from secateur.training.devices import keep_freed_memory

    with resources.as_file(resources.files("secateur.cli") / "demo.yaml") as path:
        recipe = load_recipe(path, overrides or [])
    out = _unfinished_or_free(out)
    note(f"the demo's recipe and results go to {out}")
    keep_freed_memory()
    experiment = Experiment(recipe, out, resume=out.exists(), command=command_line())
    remember_run(out, "the same command goes on")
    show(experiment.run(), out)


def _unfinished_or_free(first: Path) -> Path:
    """The first of runs/demo, runs/demo-2, ... that holds no finished run."""
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        if not (folder / "result.json").exists():
            return folder
    raise AssertionError("unreachable: names do not run out")
