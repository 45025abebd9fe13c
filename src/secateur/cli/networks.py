"""`secateur inspect` and `cost`: what a network is made of, before anything is trained or removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.guard import guarded, note
from secateur.cli.outputs import check_outputs, write_output

if TYPE_CHECKING:
    from torch import Tensor, nn

Network = Annotated[
    str, typer.Argument(metavar="NETWORK", help="Registered name, package.module:factory or path/to/file.py:factory.")
]
Options = Annotated[
    list[str] | None, typer.Argument(metavar="option=value", help="Options of the network, as in width=16.")
]
Classes = Annotated[int, typer.Option("--classes", min=1, help="Number of classes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("inspect", epilog="Example: secateur inspect unet --input 3x360x480")(guarded(inspect))
    app.command("cost", epilog="Example: secateur cost segnet width=16 --classes 11 --input 360x480")(guarded(cost))


def inspect(
    network: Network,
    shape: Annotated[str, typer.Option("--input", metavar="CxHxW", help="Shape of one input, as in 3x360x480.")],
    options: Options = None,
    classes: Classes = 11,
    as_json: Json = False,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw the couplings for a browser.")] = None,
    dot: Annotated[Path | None, typer.Option("--dot", metavar="FILE", help="Write them as Graphviz text.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
) -> None:
    """Show the groups of a network, what couples them, and what is pinned and why.

    params % and MACs % are the shares of the network's cost that would go if the whole group went. A weight between two
    groups goes with either, so the shares add up to more than 100. Of tensors, a.{b.*, c.weight[1]} stands for all of
    a.b and dimension 1 of a.c.weight: what a convolution reads.
    """
    from secateur.graph import trace
    from secateur.report import couplings_dot, couplings_svg, groups_data, groups_table

    check_outputs({"--svg": svg, "--dot": dot}, force)
    module, example = _network(network, options, classes, shape)
    graph = trace(module, example)
    data = groups_data(graph)
    for path, draw in ((svg, couplings_svg), (dot, couplings_dot)):
        if path is not None:
            write_output(path, draw(graph, data))
            note(f"wrote {path}")
    if as_json:
        typer.echo(json.dumps({"network": network, "input": list(example.shape[1:]), **data}, indent=2))
    else:
        typer.echo(groups_table(graph, data))


def cost(
    network: Network,
    shape: Annotated[str, typer.Option("--input", metavar="HxW", help="Size of one RGB image, or CxHxW.")],
    options: Options = None,
    classes: Classes = 11,
    as_json: Json = False,
) -> None:
    """Count a network's parameters, MACs and FLOPs.

    In all three conventions, in total and per module: macs counts multiply-accumulates, paper_flops is what the CAP
    paper counts, yolo_flops what YOLOv5 prints."""
    from secateur.costs import cost as count

    model, example = _network(network, options, classes, shape)
    total = count(model, example)
    if as_json:
        document = {
            "network": network,
            "input": list(example.shape[1:]),
            **total.as_dict(),
            "modules": dict(total.modules),
        }
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo("".join(f"{key:>18}" for key in total.as_dict()) + "  module")
    for name, counts in [*total.modules.items(), ("total", total.as_dict())]:
        typer.echo("".join(f"{count:18,}" for count in counts.values()) + f"  {name or network}")


def _network(name: str, options: list[str] | None, classes: int, shape: str) -> tuple[nn.Module, Tensor]:
    """The network and one random input of the given shape, batch size 1."""
    import torch
    from ruamel.yaml import YAML, YAMLError

    from secateur.models import create_model

    sizes = shape.lower().split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise typer.BadParameter(f"--input {shape!r}: expected sizes in pixels joined by x, as in 3x360x480")
    dimensions = [int(size) for size in sizes]
    if len(dimensions) == 2:
        dimensions.insert(0, 3)
    arguments: dict[str, Any] = {}
    for option in options or []:
        key, equals, value = option.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"{option!r}: expected option=value, as in width=16")
        try:
            arguments[key] = YAML(typ="safe", pure=True).load(value)
        except YAMLError:
            raise typer.BadParameter(f"{option!r}: the value is not valid YAML") from None
    return create_model(name, classes, **arguments), torch.randn(1, *dimensions)
