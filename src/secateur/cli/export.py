"""`secateur export`: a network as a file for other runtimes, checked."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.guard import guarded, note
from secateur.cli.outputs import check_outputs
from secateur.cli.predict import ModelPath, RecipeOption, Stage, StageOption


class Format(str, Enum):
    """What is written."""

    onnx = "onnx"
    torch = "torch"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("export", epilog="Example: secateur export runs/first --out model.onnx --dynamic-size")(guarded(export))


def export(
    model: ModelPath,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write.")],
    form: Annotated[Format, typer.Option("--format", help="ONNX, or an archive of torch.export (.pt2).")] = Format.onnx,
    stage: StageOption = Stage.final,
    recipe: RecipeOption = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Size of the images; default: the recipe's.")
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Images of other sizes as well; the batch is free anyway.")
    ] = False,
    opset: Annotated[int, typer.Option("--opset", help="Version of ONNX's set of operations.")] = 18,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="PATH", help="Images or folders to check and calibrate with, once or more."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also FILE-int8.onnx, quantised, with its size and mIoU.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")] = False,
) -> None:
    """Write a network as ONNX or as an archive of torch.export.

    The file is run on real images beside the network, and kept only if it agrees to 1e-4 of the largest output and
    gives at least 99.99 % of the pixels the same class; otherwise the exit code is 3. It takes normalised images and
    puts out logits; classes, colours, mean and std are in an ONNX file's metadata.
    """
    from secateur.ship.export import eight_bits
    from secateur.ship.export import export as write
    from secateur.ship.onnx_file import need
    from secateur.ship.source import open_network

    if form is Format.onnx:
        need("onnx", "onnxscript", "onnxruntime")
    elif int8:
        raise typer.BadParameter("--int8 goes with --format onnx")
    small = out.with_name(f"{out.stem}-int8{out.suffix}") if int8 else None
    check_outputs({"--out": out, "--int8": small}, force)
    pixels = None if size is None else parse_size(size)
    network = open_network(model, stage.value, recipe, note)
    record = write(network, out, form.value, opset, pixels, dynamic_size, images or [], note)
    if small is not None:
        record["int8"] = eight_bits(network, out, small, images or [], note)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    _print(record)


def parse_size(text: str) -> tuple[int, int]:
    """'360x480' as height and width."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"--size {text!r}: expected height and width in pixels, as in 360x480")
    return int(sides[0]), int(sides[1])


def _print(record: dict[str, Any]) -> None:
    opset = f", opset {record['opset']}" if record["opset"] else ""
    typer.echo(f"{record['file']}: {record['bytes'] / 1e6:.2f} MB{opset}")
    typer.echo(f"input: float32 {' x '.join(map(str, record['input']))}")
    typer.echo(f"checked on: {record['images']}")
    typer.echo(f"relative error: {record['relative_error']:.1e}")
    if record["same_class"] is not None:
        typer.echo(f"same class: {100 * record['same_class']:.4f} % of the pixels")
    if "int8" in record:
        typer.echo(f"{record['int8']['file']}: calibrated on {record['int8']['calibration']}")
        typer.echo(f"{'network':<20}{'MB':>8}{'mIoU %':>9}")
        for row in record["int8"]["rows"]:
            miou = "-" if row["miou"] is None or row["miou"] != row["miou"] else f"{100 * row['miou']:.1f}"
            typer.echo(f"{row['network']:<20}{row['bytes'] / 1e6:>8.2f}{miou:>9}")
