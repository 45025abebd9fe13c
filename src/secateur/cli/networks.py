"""`secateur inspect` and `cost`: what a network is made of, before anything is trained or removed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.guard import guarded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from secateur.costs import Cost, CostModel
    from secateur.graph import Graph, Group

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
) -> None:
    """Show the groups of a network, and what is pinned and why.

    params % and MACs % are the shares of the network's cost that would go if the whole group went. A weight between two
    groups goes with either, so the shares add up to more than 100.
    """
    from secateur.costs import CostModel
    from secateur.graph import trace

    module, example = _network(network, options, classes, shape)
    graph = trace(module, example)
    model = CostModel(graph)
    total = model()
    groups = [_group(group, model, total) for group in graph.groups]
    if as_json:
        prunable = int(graph.prunable.sum())
        document = {"network": network, "input": list(example.shape[1:]), "units": graph.units, "prunable": prunable}
        typer.echo(
            json.dumps({**document, "cost": total.as_dict(), "groups": groups, "notes": list(graph.notes)}, indent=2)
        )
    else:
        _print_groups(graph, groups, total)


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


def _group(group: Group, model: CostModel, total: Cost) -> dict[str, Any]:
    """A group as JSON, with the share of the cost that would go if all of its units went."""
    import numpy as np

    removed = np.zeros(model.graph.units, dtype=bool)
    removed[list(group.units)] = True
    rest = model(removed)
    return {
        "name": group.name,
        "units": len(group),
        "pinned": group.pinned,
        "params_share": 1 - rest.params / total.params if total.params else 0.0,
        "macs_share": 1 - rest.macs / total.macs if total.macs else 0.0,
        "members": [list(member) for member in group.members],
    }


def _print_groups(graph: Graph, groups: list[dict[str, Any]], total: Cost) -> None:
    """Two lines per group: what it is and whether it can go, and the modules that its units run through."""
    typer.echo("units  params %  MACs %  group")
    for group in groups:
        state = "" if group["pinned"] is None else f"  pinned: {group['pinned']}"
        shares = f"{100 * group['params_share']:8.1f}  {100 * group['macs_share']:6.1f}"
        typer.echo(f"{group['units']:5}  {shares}  {group['name']}{state}")
        modules = dict.fromkeys(name.rpartition(".")[0] or name for name, _ in group["members"])
        coupled = ", ".join(name for name in modules if name != group["name"])
        if coupled and group["pinned"] is None:
            typer.echo(f"{'':25}with {coupled}")
    typer.echo(f"{graph.units} units in {len(groups)} groups, {int(graph.prunable.sum())} prunable")
    typer.echo("  ".join(f"{key} {count:,}" for key, count in total.as_dict().items()))
    for note in graph.notes:
        typer.echo(note)
