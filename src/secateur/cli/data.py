"""`secateur data check`: the state of a data set."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.guard import guarded, note

if TYPE_CHECKING:
    from secateur.data import Scan

SHOWN = 20  # of what is wrong, without --json


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    data = typer.Typer(help="Look at data sets.", no_args_is_help=True, rich_markup_mode=None)
    data.command("check", epilog="Example: secateur data check camvid --root data/camvid")(guarded(check))
    app.add_typer(data, name="data")


def check(
    source: Annotated[str, typer.Argument(metavar="NAME|RECIPE.yaml", help="A data set, or a recipe that names one.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="option=value", help="Options of the data set, or section.key=value for a recipe."),
    ] = None,
    root: Annotated[Path | None, typer.Option("--root", help="Where the data set is; a recipe says it itself.")] = None,
    splits: Annotated[
        list[str] | None, typer.Option("--split", help="A split to look at, once or more; by default two.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Threads; by default one a core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")] = False,
) -> None:
    """Count the classes and sizes of a data set, and name files that are missing or damaged.

    Every image and label is read, at its own size. Exit code 2 if something is wrong.
    """
    from secateur.data import list_datasets, open_dataset
    from secateur.errors import DataError, nearest
    from secateur.report import scan_line, scan_table

    if source in list_datasets():
        name, default, arguments = source, _splits(source), {"root": root, **_options(settings or [])}
    elif root is not None:
        raise typer.BadParameter(f"--root goes with a data set ({', '.join(list_datasets())}); a recipe says data.root")
    elif not Path(source).exists():
        raise DataError(f"{source} is neither a recipe nor a data set; {nearest(source, list_datasets())}")
    else:
        name, default, arguments = _of_recipe(Path(source), settings or [])
    opened = {split: open_dataset(name, split=split, complete=False, **arguments) for split in splits or default}
    found = {split: _scan(split, dataset, workers or os.cpu_count() or 1) for split, dataset in opened.items()}
    record = {split: each.as_dict() for split, each in found.items()}
    if as_json:
        typer.echo(json.dumps({"name": name, "splits": record}, indent=2))
    else:
        from rich.console import Console

        Console(highlight=False).print(scan_table(name, record))
        for split, each in record.items():
            typer.echo(scan_line(split, each))
    wrong = [
        line for each in found.values() for line in (*(f"missing: {path}" for path in each.missing), *each.damaged)
    ]
    for line in [] if as_json else wrong[:SHOWN]:
        note(line)
    if wrong:
        state = "; ".join(f"{split}: {each.problem}" for split, each in found.items() if not each.ok)
        more = (
            "" if as_json or len(wrong) <= SHOWN else f" ({len(wrong) - SHOWN} more than are named; --json names all)"
        )
        raise DataError(f"{name} is not in order; {state}{more}")


def _splits(name: str) -> list[str]:
    from secateur.data import DATASETS

    return list(DATASETS[name].splits)


def _options(settings: list[str]) -> dict[str, Any]:
    """'option=value' with the value in YAML."""
    from ruamel.yaml import YAML, YAMLError

    options = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier() or key in ("root", "split", "size", "limit", "complete"):
            raise typer.BadParameter(f"{text!r}: expected option=value, as in sbd=data/SBD/dataset")
        try:
            options[key] = YAML(typ="safe", pure=True).load(value)
        except YAMLError:
            raise typer.BadParameter(f"{text!r}: the value is not valid YAML") from None
    return options


def _of_recipe(path: Path, overrides: list[str]) -> tuple[str, list[str], dict[str, Any]]:
    """Name, splits and further arguments of the data set that a recipe names, or a recipe of several methods."""
    from secateur.recipe import load_comparison, load_recipe
    from secateur.recipe.reader import overridden

    several = "methods" in overridden(path, overrides)
    data = (load_comparison(path, overrides)[0].recipe if several else load_recipe(path, overrides)).data
    options = {"length": data.length, **data.options} if data.name == "streets" else data.options
    arguments = {"root": data.root, "size": data.size, "limit": data.limit, **options}
    return data.name, list(dict.fromkeys([data.train_split, data.val_split])), arguments


def _scan(split: str, dataset: Any, workers: int) -> Scan:
    """With a progress bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from secateur.data import scan

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(split, total=len(dataset))
        return scan(dataset, workers, lambda done, _: progress.update(task, completed=done))
