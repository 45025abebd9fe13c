"""`secateur sweep`: a recipe with many methods, ratios and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.compare import Jobs, LauncherName, Settings, make
from secateur.cli.guard import guarded


def register(app: typer.Typer) -> None:
    """Adds the command."""
    example = "secateur sweep recipes/streets_unet_cap.yaml --methods cap,l1 --of params --ratios 0.2:0.8:0.2"
    app.command("sweep", epilog=f"Example: {example}")(guarded(sweep))


def sweep(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe, or one with a list `methods:`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="section.key=value", help="Values that replace the recipe's, for all runs."),
    ] = None,
    methods: Annotated[
        str, typer.Option("--methods", help="cap,l1,...; of a list, labels of its rows. Default: the recipe's own.")
    ] = "",
    ratios: Annotated[
        str, typer.Option("--ratios", help="0.1:0.9:0.1 (the last is among them) or 0.3,0.5: what --of is set to.")
    ] = "",
    of: Annotated[
        str, typer.Option("--of", help="pruning_ratio (what goes), or params, macs, latency ... (what stays).")
    ] = "pruning_ratio",
    seeds: Annotated[str, typer.Option("--seeds", help="0,1,2 or 0:4:1. Default: the recipe's own.")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Where the runs go; default: runs/<recipe>-sweep.")] = None,
    jobs: Jobs = 1,
    launcher: LauncherName = "processes",
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")] = False,
) -> None:
    """Run a recipe with every method, ratio and seed; what they share is computed once, what is done is kept."""
    from secateur.errors import RecipeError
    from secateur.recipe import load_sweep
    from secateur.recipe.sweep import numbers

    amounts = numbers(ratios, "--ratios") if ratios else []
    drawn = numbers(seeds, "--seeds") if seeds else []
    if any(seed != int(seed) or seed < 0 for seed in drawn):
        raise RecipeError(f"--seeds {seeds!r}: expected whole numbers from 0 on")
    names = [name.strip() for name in methods.split(",") if name.strip()]
    rows = load_sweep(recipe, overrides or [], names, amounts, of, [int(seed) for seed in drawn])
    make(rows, out or Path("runs") / f"{recipe.stem}-sweep", launcher, jobs, settings, as_json)
