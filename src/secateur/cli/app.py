"""All commands in one application."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import (
    bench,
    compare,
    data,
    demo,
    export,
    listing,
    networks,
    predict,
    report,
    runs,
    sensitivity,
    sweep,
    tables,
)

app = typer.Typer(
    name="secateur",
    help="Makes convolutional networks smaller by removing whole channels, exactly.",
    epilog="Start with: secateur demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # square brackets in help texts are meant
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"secateur {version('secateur')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for module in (
    *(runs, compare, sweep, report, sensitivity, predict, export, bench),
    *(demo, networks, tables, listing, data),
):
    module.register(app)


def main() -> None:
    """Entry point of the console script and of `python -m secateur`."""
    app()
