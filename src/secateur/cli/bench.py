"""`secateur bench`: how fast networks are, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.export import parse_size
from secateur.cli.guard import guarded, note
from secateur.cli.predict import RecipeOption


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "bench", epilog="Example: secateur bench runs/first/parent.safetensors runs/first model.onnx --threads 1"
    )(guarded(bench))


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...", help="Run folders, .safetensors files, .onnx files; compared with the first."
        ),
    ],
    recipe: RecipeOption = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="PyTorch's networks also with torch.compile.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of the CPU; default: PyTorch's own.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at a time.")] = 1,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Size of the images; default: what the first takes.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="To go on for at most, after 7 rounds.")] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")] = False,
) -> None:
    """Measure the latency of networks on this machine's CPU, in turns.

    ms is the median of a batch, with the quartiles behind it; time and MACs are those of the first network in the same
    runtime, in per cent, pair by pair; real. is the share of the time that was saved over that of the MACs. MB is what
    a process grows by that loads the network and runs it.
    """
    from secateur.ship.bench import bench as measure
    from secateur.ship.bench import contenders

    pixels = None if size is None else parse_size(size)
    record = measure(contenders(models, recipe, compiled, threads, note), batch, pixels, seconds)
    typer.echo(json.dumps(record, indent=2) if as_json else _table(record))


def _table(record: dict[str, Any]) -> str:
    """Two lines for each network, so that 60 columns are enough."""
    height, width = record["size"]
    lines = [
        record["machine"],
        f"{record['batch']} x 3 x {height} x {width}, {record['rounds']} rounds",
        "",
        f"{'ms':>9}{'quartiles':>16}{'img/s':>8}{'time':>6}{'MACs':>6}{'real.':>7}{'MB':>7}",
    ]
    for row in record["rows"]:
        lines.append(f"{row['network']}, {row['runtime']}")
        spread = f"{row['low']:.2f}-{row['high']:.2f}"
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        lines.append(
            f"{row['ms']:>9.2f}{spread:>16}{row['images_per_second']:>8.1f}{_percent(row['time_share']):>6}"
            f"{_percent(row['macs_share']):>6}{_percent(row['realised']):>7}{peak:>7}"
        )
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"
