"""`secateur compare`: runs side by side, or a list of methods whose runs are made first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.guard import guarded, note, remember_run


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
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Of a recipe: runs at a time.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")] = False,
) -> None:
    """Compare runs, or the methods of a recipe."""
    first = Path(what[0])
    if first.suffix in (".yaml", ".yml"):
        _made(first, what[1:], out or Path("runs") / first.stem, jobs, as_json)
        return
    from secateur.report.comparison import comparison_table
    from secateur.report.run_record import read_rows

    rows = {name: [run.result for run in runs] for name, runs in read_rows(what).items()}
    typer.echo(json.dumps(rows, indent=2) if as_json else comparison_table(rows))


def _made(recipe: Path, overrides: list[str], out: Path, jobs: int, as_json: bool) -> None:
    from secateur.pipeline.comparison import Comparison
    from secateur.recipe import load_comparison

    comparison = Comparison(load_comparison(recipe, overrides), out, jobs, note)
    remember_run(out, "the same command goes on")
    record = comparison.run()
    typer.echo(json.dumps(record, indent=2) if as_json else comparison.table())
    if not as_json:
        note(f"folder: {out}")
