"""`secateur inspect` and `cost`: what a network is made of, before anything is trained or removed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.guard import guarded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from secateur.cost import Cost
    from secateur.graph import Graph, Group

Network = Annotated[
    str, typer.Argument(metavar="NETWORK", help="Registered name, package.module:factory or path/to/file.py:factory.")
]
Options = Annotated[
    list[str] | None, typer.Argument(metavar="option=value", help="Options of the network, as in width=16.")
]
Classes = Annotated[int, typer.Option("--classes", min=1, help="Number of classes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]

COUNTS = ("params", "macs", "paper_flops", "yolo_flops")


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

    params % is the group's share of the parameters (a weight belongs to the group of its outputs and to that of its
    inputs), MACs % the share of the multiply-accumulates that make the group's channels.
    """
    import secateur

    model, example = _network(network, options, classes, shape)
    graph = secateur.trace(model, example)
    total = secateur.cost(model, example)
    groups = [_group(graph, group, total) for group in graph.groups]
    if as_json:
        summary = {key: getattr(total, key) for key in COUNTS}
        prunable = int(graph.prunable.sum())
        document = {"network": network, "input": list(example.shape[1:]), "units": graph.units, "prunable": prunable}
        typer.echo(json.dumps({**document, "cost": summary, "groups": groups, "notes": list(graph.notes)}, indent=2))
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
    import secateur

    model, example = _network(network, options, classes, shape)
    total = secateur.cost(model, example)
    modules = {name: {key: getattr(part, key) for key in COUNTS} for name, part in total.modules.items()}
    if as_json:
        document = {key: getattr(total, key) for key in COUNTS}
        typer.echo(
            json.dumps({"network": network, "input": list(example.shape[1:]), **document, "modules": modules}, indent=2)
        )
        return
    _print_table(
        ("module", *COUNTS),
        [
            *((name, *(f"{counts[key]:,}" for key in COUNTS)) for name, counts in modules.items()),
            ("total", *(f"{getattr(total, key):,}" for key in COUNTS)),
        ],
    )


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


def _group(graph: Graph, group: Group, total: Cost) -> dict[str, Any]:
    """A group as JSON, with its share of the cost."""
    shapes = {tensor.name: tensor for tensor in graph.tensors}
    params, macs = 0.0, 0.0
    for name, dim in group.members:
        tensor = shapes[name]
        share = len(group) / tensor.shape[dim]
        if tensor.parameter:
            params += share * _numel(tensor.shape)
        module = name.rpartition(".")[0]
        if dim == 0 and len(tensor.shape) > 1 and module in total.modules:
            macs += share * total.modules[module].macs
    return {
        "name": group.name,
        "units": len(group),
        "pinned": group.pinned,
        "params_share": params / total.params if total.params else 0.0,
        "macs_share": macs / total.macs if total.macs else 0.0,
        "members": [list(member) for member in group.members],
    }


def _numel(shape: tuple[int, ...]) -> int:
    import math

    return math.prod(shape)


def _print_groups(graph: Graph, groups: list[dict[str, Any]], total: Cost) -> None:
    rows = []
    for group in groups:
        shares = (f"{100 * group['params_share']:.1f}", f"{100 * group['macs_share']:.1f}")
        state = "prunable" if group["pinned"] is None else f"pinned: {group['pinned']}"
        coupled = ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name, _ in group["members"]))
        rows.append((group["name"], str(group["units"]), *shares, state, coupled))
    _print_table(("group", "units", "params %", "MACs %", "state", "coupled modules"), rows, words=2)
    typer.echo(f"{graph.units} units in {len(groups)} groups, {int(graph.prunable.sum())} prunable")
    typer.echo("  ".join(f"{key} {getattr(total, key):,}" for key in COUNTS))
    for note in graph.notes:
        typer.echo(note)


def _print_table(headings: tuple[str, ...], rows: list[tuple[str, ...]], words: int = 0) -> None:
    """A table whose first and last `words` columns are text, the others numbers; long text wraps."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, heading in enumerate(headings):
        text = index == 0 or index >= len(headings) - words
        table.add_column(heading, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)
