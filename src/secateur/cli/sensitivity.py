"""`secateur sensitivity`: what each group of channels is worth, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.guard import guarded, note


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("sensitivity", epilog="Example: secateur sensitivity runs/first --ratios 0.3,0.6 --images 40")(
        guarded(sensitivity)
    )


def sensitivity(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, whose unpruned network is taken.")],
    ratios: Annotated[str, typer.Option("--ratios", help="Shares of a group to remove.")] = "0.1,0.3,0.5,0.7,0.9",
    groups: Annotated[
        list[str] | None, typer.Option("--group", help="Groups or modules, also as patterns; by default all.")
    ] = None,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Validation images; by default all.")] = None,
    recalibrate: Annotated[
        int, typer.Option("--recalibrate", min=0, help="Batches that re-estimate the BN statistics of every cut.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")] = False,
) -> None:
    """Cut every group by itself, more and more of it, and measure the mIoU and every class."""
    from secateur.errors import RecipeError
    from secateur.pipeline.sensitivity import measure
    from secateur.report import sensitivity_table
    from secateur.training.devices import keep_freed_memory

    try:
        shares = [float(text) for text in ratios.split(",")]
    except ValueError:
        raise RecipeError(f"--ratios {ratios!r}: numbers between 0 and 1 were expected, as in 0.3,0.6") from None
    keep_freed_memory()
    record = measure(run, shares, groups or [], images, recalibrate, note)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    from rich.console import Console

    Console(highlight=False).print(sensitivity_table(record))
    typer.echo(f"written: {run / 'sensitivity.json'}, {run / 'pictures' / 'sensitivity.png'}")
