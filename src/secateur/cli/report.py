"""`secateur report`: runs as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.guard import guarded, note
from secateur.cli.outputs import check_outputs, write_output


def register(app: typer.Typer) -> None:
    """Adds the command."""
    example = "secateur report CAP=runs/cap-0,runs/cap-1 L1=runs/l1-0,runs/l1-1 --out report.html"
    app.command("report", epilog=f"Example: {example}")(guarded(report))


def report(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, each perhaps as NAME=FOLDER,FOLDER (seeds of one row); or the folder of a comparison.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page; default: report.html in the folder, if there is one alone.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="What stands above it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file that is there.")] = False,
) -> None:
    """Draw runs as one HTML page: tables, charts, pictures; it needs no network and nothing beside it."""
    if out is None:
        alone = len(what) == 1 and "=" not in what[0] and Path(what[0]).is_dir()
        out = Path(what[0] if alone else ".") / "report.html"
        force = force or alone  # the page of a run is made anew
    check_outputs({"--out": out}, force)
    from secateur.report.page import report_page
    from secateur.report.run_record import read_rows

    write_output(out, report_page(read_rows(what), title))
    note(f"report: {out}")
