"""`secateur models`, `methods`, `recipe`: what there is."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.guard import guarded

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("models", epilog="Example: secateur models")(guarded(models))
    app.command("methods", epilog="Example: secateur methods --json")(guarded(methods))
    app.command("recipe", epilog="Example: secateur recipe --defaults > my_recipe.yaml")(guarded(recipe))


def models(as_json: Json = False) -> None:
    """List the registered networks."""
    from secateur.models import NETWORKS, list_models

    rows = {name: (inspect.getdoc(NETWORKS[name]) or "").partition("\n")[0] for name in list_models()}
    if as_json:
        typer.echo(json.dumps([{"name": name, "summary": summary} for name, summary in rows.items()], indent=2))
        return
    for name, summary in rows.items():
        typer.echo(f"{name:16}{summary}")
    typer.echo("Your own: package.module:factory or path/to/file.py:factory")


def methods(as_json: Json = False) -> None:
    """List the pruning methods with their options."""
    from secateur.methods import get_method, list_methods

    rows: list[dict[str, Any]] = []
    for name in list_methods():
        method = get_method(name)
        options = {key: {"default": default, "help": text} for key, (default, text) in method.options_help().items()}
        rows.append(
            {
                "name": name,
                "summary": method.summary,
                "paper": method.paper,
                "needs_training": bool(method.needs_training),
                "needs_data": bool(method.needs_data),
                "needs_labels": bool(method.needs_labels),
                "chooses_while_training": bool(method.decides and method.needs_training),
                "chooses_at_the_cut": bool(method.decides and not method.needs_training),
                "removes_channels": bool(method.prunes),
                "options": options,
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    for row in rows:
        typer.echo(f"{row['name']:18}{row['summary']}")
        typer.echo(f"{'':18}{_needs(row)}" + (f"; {row['paper']}" if row["paper"] else ""))
        for key, option in row["options"].items():
            typer.echo(f"{'':18}  {key}={option['default']}  {option['help']}")


def _needs(row: dict[str, Any]) -> str:
    """What a method does where, and what for."""
    if not row["removes_channels"]:
        kind = "gates channels while training, and from then on"
    elif row["chooses_while_training"]:
        kind = "chooses channels while training"
    elif row["chooses_at_the_cut"]:
        kind = "chooses channels by a search at the cut"
    else:
        kind = "sparsifies while training" if row["needs_training"] else "scores a trained network"
    if row["needs_labels"]:
        return f"{kind}, by passes over labelled images"
    return f"{kind}, by passes over data" if row["needs_data"] else kind


def recipe(
    path: Annotated[Path | None, typer.Argument(metavar="RECIPE.yaml", help="A recipe to check and print.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.key=value", help="Values that replace the recipe's.")
    ] = None,
    defaults: Annotated[bool, typer.Option("--defaults", help="Print a recipe with every key at its default.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes.")] = False,
) -> None:
    """Print a recipe with all keys, checked, or the defaults."""
    from secateur.recipe import Recipe, dump_recipe, load_recipe, recipe_schema

    if (path is not None) + defaults + schema != 1:
        raise typer.BadParameter("expected one of RECIPE.yaml, --defaults and --schema")
    if path is not None:
        typer.echo(dump_recipe(load_recipe(path, overrides or [])), nl=False)
    elif defaults:
        typer.echo(dump_recipe(Recipe()), nl=False)
    else:
        typer.echo(json.dumps(recipe_schema(), indent=2))
