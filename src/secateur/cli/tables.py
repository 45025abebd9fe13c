"""`secateur tables`: published numbers of networks beside recomputed ones."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from secateur.cli.guard import guarded

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("tables", epilog="Example: secateur tables")(guarded(tables))


def tables(as_json: Json = False) -> None:
    """Show the CAP paper's table, its cells of unpruned and FPGM networks recomputed.

    Parameters and FLOPs as the paper counts them, with the difference; below, what every network costs as the papers
    use it, in all conventions."""
    from secateur.report import recounted_table, recounted_text, recounted_uses

    table, uses = recounted_table(), recounted_uses()
    if as_json:
        typer.echo(json.dumps({"cap": table, "networks": uses}, indent=2))
    else:
        typer.echo(recounted_text(table, uses))
