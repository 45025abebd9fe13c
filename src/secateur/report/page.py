"""The report as one HTML file that needs nothing else: no network, no folder beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from secateur.report import charts
from secateur.report.comparison import mean, rung
from secateur.report.run_record import RunRecord
from secateur.report.variants import COLUMNS, Variant, latex_table, variants_csv, variants_of

__all__ = ["report_page"]

Rows = Mapping[str, Sequence[RunRecord]]

_COSTS = (("params", 1e6, "parameters, millions"), ("macs", 1e9, "MACs, billions"), ("latency_ms", 1.0, "latency, ms"))


def report_page(rows: Rows, title: str | None = None) -> str:
    """The page.

    Args:
        rows: a row's name -> its runs, which are seeds of the same recipe. What a run did not leave in its folder is
            left out of the page.
        title: what stands above it; how many networks there are, or which one, unless somebody says otherwise.
    """
    variants = variants_of(rows)
    template = Environment(
        loader=PackageLoader("secateur.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")  # fmt: skip
    names, samples = _samples(rows)
    return template.render(
        title=title or _heading(rows),
        columns=COLUMNS,
        variants=variants,
        csv=variants_csv(variants),
        latex=latex_table(variants),
        classes=_classes(variants),
        charts=[Markup(chart) for chart in _charts(rows, variants)],
        training=[Markup(chart) for chart in _training(rows)],
        scales=[(name, Markup(chart)) for name, chart in _scales(rows)],
        layers=[(name, Markup(chart)) for name, chart in _layers(rows)],
        pinned=[(name, runs[0].result["pinned"]) for name, runs in rows.items() if runs[0].result.get("pinned")],
        warnings=[
            (name, text) for name, runs in rows.items() for run in runs for text in run.result.get("warnings", ())
        ],
        pictures=names,
        samples=samples,
        legend=next((runs[0].exhibits["legend"] for runs in rows.values() if runs[0].exhibits.get("legend")), {}),
        runs=[(name, run.result, run.recipe) for name, runs in rows.items() for run in runs],
    )


def _heading(rows: Rows) -> str:
    if len(rows) > 1:
        return f"{len(rows)} pruned networks"
    (name, runs), *_ = rows.items()
    return f"{runs[0].result.get('network', 'A network')} pruned: {name}"


def _classes(variants: Sequence[Variant]) -> list[tuple[str, list[tuple[str, float | None, float | None]]]]:
    """Variant, and for every class its name, IoU and the difference to the variant's network before pruning."""
    names = list(dict.fromkeys(name for variant in variants for name in variant.per_class))
    table = []
    for variant in variants:
        before = next((v.per_class for v in variants if v.is_parent and v.network == variant.network), {})
        cells = []
        for name in names:
            here, there = variant.per_class.get(name), before.get(name)
            apart = None if here is None or there is None or variant.is_parent else here - there
            cells.append((name, here, apart))
        table.append((variant.name, cells))
    return table


def _charts(rows: Rows, variants: Sequence[Variant]) -> Iterator[str]:
    """Accuracy over cost, and over what is left of the parameters."""
    for key, unit, words in _COSTS:
        points = {
            v.name: [(v.values[key] / unit, 100 * v.values["miou"])]
            for v in variants
            if v.values.get(key) is not None and v.values.get("miou") is not None
        }
        if len(points) > 1:
            yield charts.scatter(f"mIoU over {words}", points, words, "mIoU, %", front=True)
    by_method: dict[str, list[tuple[float, float]]] = {}
    for runs in rows.values():
        first, last = (
            mean([rung(run.result, stage).get("params") for run in runs]) for stage in ("unpruned", "finetuned")
        )
        score = mean([rung(run.result, "finetuned").get("miou") for run in runs])
        if first and last and score is not None and last < first:
            method = runs[0].result.get("method") or {"name": "none"}
            by_method.setdefault(json.dumps(method, sort_keys=True), []).append((100 * (1 - last / first), 100 * score))
    if any(len(some) > 1 for some in by_method.values()):
        named: dict[str, list[tuple[float, float]]] = {}
        for text, some in by_method.items():
            name = json.loads(text)["name"]
            named[name if name not in named else f"{name} ({len(named)})"] = some
        yield charts.scatter(
            "mIoU by the share of the parameters removed", named, "parameters removed, %", "mIoU, %", joined=True
        )


def _training(rows: Rows) -> Iterator[str]:
    """Scores and losses of every row's first run, epoch after epoch through all stages.

    A stage begins at the same epoch in every row, also where a run took over stages that another one had computed.
    """
    lengths = dict[str, int]()
    for runs in sorted(rows.values(), key=lambda runs: -len(runs[0].metrics)):
        for row in _epochs(runs[0]):
            lengths[row["stage"]] = max(lengths.get(row["stage"], 0), row["epoch"])
    begins = dict(zip(lengths, accumulate(lengths.values(), initial=0), strict=False))
    for key, words, factor in (("miou", "mIoU on the validation images, %", 100.0), ("loss", "loss", 1.0)):
        lines = dict[str, list[tuple[float, float]]]()
        for name, runs in rows.items():
            for row in _epochs(runs[0]):
                if isinstance(row.get(key), int | float):
                    lines.setdefault(name, []).append((begins[row["stage"]] + row["epoch"], factor * row[key]))
        if lines:
            yield charts.curves(f"{words}, over the epochs", lines, "epoch", words, begins)


def _epochs(run: RunRecord) -> Iterator[dict[str, Any]]:
    return (row for row in run.metrics if "stage" in row and isinstance(row.get("epoch"), int))


def _scales(rows: Rows) -> Iterator[tuple[str, str]]:
    """The batch norms' scales of every row's first run, before and after the sparsity training."""
    for name, runs in rows.items():
        scales = runs[0].exhibits.get("scales")
        if scales and any(map(sum, scales["counts"].values())):
            title = f"Scales of the batch norms: {name}"
            yield name, charts.histograms(title, scales["edges"], scales["counts"], "absolute value of the scale")


def _layers(rows: Rows) -> Iterator[tuple[str, str]]:
    for name, runs in rows.items():
        if layers := runs[0].exhibits.get("widths"):
            yield name, charts.widths(f"Channels of every layer before and after: {name}", layers)


def _samples(rows: Rows) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of what can be laid beside each other, and for every sample its pictures by these names, as data URLs."""
    names, samples = dict[str, None](), dict[str, dict[str, str]]()
    for row, runs in rows.items():
        for sample in runs[0].exhibits.get("samples", ()):
            shown = samples.setdefault(sample["name"], {})
            for name, file in sample["pictures"].items():
                label = row if name == "final" else name
                if label not in shown and (path := runs[0].folder / file).is_file():
                    shown[label] = _data_url(path)
                    names[label] = None
    return list(names), [{"name": name, "pictures": pictures} for name, pictures in samples.items() if pictures]


def _data_url(path: Path) -> str:
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
