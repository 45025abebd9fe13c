"""`secateur compare`: runs side by side, or a list of methods whose runs are made first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.guard import guarded, note, remember_run

if TYPE_CHECKING:
    from secateur.recipe import Row

Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Of a recipe: runs at a time.")]
LauncherName = Annotated[
    str, typer.Option("--launcher", help="Of a recipe: processes of this machine, or submitit (SLURM where it is).")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Of submitit: timeout_min=600, gpus_per_node=1 and the like."),
]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "compare", epilog="Example: secateur compare CAP=runs/cap-0,runs/cap-1 L1=runs/l1-0,runs/l1-1 > table.md"
    )(guarded(compare))


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...|RECIPE.yaml",
            help="Run folders, each perhaps as NAME=FOLDER,FOLDER (seeds of one row); or a recipe with a list "
            "`methods:`, and section.key=value for all of its rows.",
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Of a recipe: where its runs go.")] = None,
    jobs: Jobs = 1,
    launcher: LauncherName = "processes",
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")] = False,
) -> None:
    """Compare runs, or the methods of a recipe."""
    first = Path(what[0])
    if first.suffix in (".yaml", ".yml"):
        from secateur.recipe import load_comparison

        make(load_comparison(first, what[1:]), out or Path("runs") / first.stem, launcher, jobs, settings, as_json)
        return
    from secateur.report.comparison import comparison_table
    from secateur.report.run_record import read_rows

    rows = {name: [run.result for run in runs] for name, runs in read_rows(what).items()}
    typer.echo(json.dumps(rows, indent=2) if as_json else comparison_table(rows))


def make(
    rows: Sequence[Row], out: Path, launcher: str, jobs: int, settings: Sequence[str] | None, as_json: bool
) -> None:
    """Makes the runs of a comparison that are not done yet, and prints what they came to."""
    from secateur.pipeline.comparison import Comparison
    from secateur.pipeline.launch import launcher as launcher_of

    comparison = Comparison(rows, out, launcher_of(launcher, out, jobs, settings or []), note)
    remember_run(out, "the same command goes on")
    record = comparison.run()
    typer.echo(json.dumps(record, indent=2) if as_json else comparison.table())
    if not as_json:
        note(f"folder: {out}")
