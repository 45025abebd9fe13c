"""`secateur predict`: what a network makes of photos."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.guard import guarded, note


class Stage(str, Enum):
    """Which network of a run folder."""

    final = "final"
    parent = "parent"


ModelPath = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A run folder, or a .safetensors file of a run or of secateur.save."),
]
StageOption = Annotated[
    Stage, typer.Option("--stage", help="Of a run folder: the pruned, fine-tuned network, or its parent.")
]
RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="Of a file: its recipe; default: the recipe.yaml beside it."),
]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "predict",
        epilog="Example: secateur predict runs/first photos --beside runs/first/parent.safetensors --out seen",
    )(guarded(predict))


def predict(
    model: ModelPath,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Images, folders of images, videos.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the pictures go.")],
    stage: StageOption = Stage.final,
    recipe: RecipeOption = None,
    beside: Annotated[
        Path | None, typer.Option("--beside", metavar="MODEL2", help="Another network, drawn beside the first.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")] = False,
) -> None:
    """Draw what a network sees in photos, at their own size.

    In DIR: labels/ (pixels are class numbers, in the data set's colours), overlays/, with --beside also beside/, and
    predictions.json. The network is asked as its recipe says: windows, scales, mirroring. The time is that of the
    network and of the choice of classes, without reading and writing.
    """
    from secateur.ship.photos import find_inputs
    from secateur.ship.predict import Predictions
    from secateur.ship.source import open_network

    found = find_inputs(inputs, note)
    network = open_network(model, stage.value, recipe, note)
    other = None if beside is None else open_network(beside, "final", None, note)
    record = Predictions(network, other, out, force).make(found, (lambda record: None) if as_json else _print)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    for each in record["networks"]:
        typer.echo(f"{each['name']}: {each['ms']:.1f} ms an image (median of {each['images']})")
    typer.echo(f"on {record['device']}, {record['threads']} threads; written to {out}")


def _print(record: dict[str, Any]) -> None:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in [*record["shares"].items()][:3])
    typer.echo(f"{Path(record['input']).name}: {shares}")
