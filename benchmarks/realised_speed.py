"""What half of the MACs saves of the time, and what a budget of latency comes to: measured in pairs.

    pip install -e ".[bench]"
    python benchmarks/realised_speed.py             # -> results/engine_realised_speed.json and .md
    python benchmarks/realised_speed.py --networks segnet --width 16 --input 96x128 --batches 1 --out /tmp/a.json

The networks are pruned to half of their MACs by L1, with widths in multiples of `--round-to`, and each runs against the
original: pruned, original, original, pruned, and so on in turns, and the median of the ratios of neighbours counts, so
that a machine that others use as well slows both down alike. Several such measurements are made; their median and
extremes are given. The control is the original against a copy of itself: what it is off 1 by comes from the machine,
and no smaller difference means anything. Weights are untrained: which channels go does not matter to the time, only how
many of which layer.

*gain* is the share of time saved over the share of MACs saved: 1 where every MAC saved is worth as much as any other.
*scope* says how the channels are ranked (see `secateur.select`). *Where the time goes* adds up the operators of one
forward pass, each timed by itself.

A budget of latency is measured by secateur itself while it chooses; *again* is a measurement after the fact.
Everything runs in eval mode, without gradients, on the GPU if there is one.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from engine import RESULTS, about
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import secateur
from secateur.costs import LatencyModel, LatencyTable, Stopwatch
from secateur.errors import BudgetError

SIZES = {"segnet": "360x480", "pspnet50": "240x320", "mobilenet_v2": "224x224"}
SCOPES = ("global", "cost", "group")


class PSPNet50(nn.Module):
    """A dilated ResNet-50 of output stride 8, a pyramid of four poolings, a 3x3 convolution, a classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        from torchvision.models import resnet50
        from torchvision.models._utils import IntermediateLayerGetter

        backbone = resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
        self.backbone = IntermediateLayerGetter(backbone, {"layer4": "out"})
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(n), nn.Conv2d(2048, 512, 1, bias=False), nn.BatchNorm2d(512), nn.ReLU())
            for n in (1, 2, 3, 6)
        )
        self.head = nn.Sequential(
            nn.Conv2d(4096, 512, 3, padding=1, bias=False), nn.BatchNorm2d(512), nn.ReLU(), nn.Dropout2d(0.1),
            nn.Conv2d(512, classes, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)["out"]
        pyramid = [F.interpolate(level(features), features.shape[-2:], mode="bilinear") for level in self.levels]
        return F.interpolate(self.head(torch.cat([features, *pyramid], 1)), x.shape[-2:], mode="bilinear")


def build(name: str, width: int) -> nn.Module:
    torch.manual_seed(0)
    if name == "segnet":
        return secateur.create_model("segnet", classes=11, width=width).eval()
    if name == "pspnet50":
        return PSPNet50(11).eval()
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(weights=None).eval()


def compared(model: nn.Module, original: nn.Module, x: Tensor, repeats: int) -> dict[str, Any]:
    """Shares of the original's time: median and extremes of several careful measurements; and milliseconds."""
    timings = [Stopwatch().compare(model, original, x, careful=True) for _ in range(repeats)]
    shares = [timing.share for timing in timings]
    return {
        "share": round(statistics.median(shares), 4),
        "extremes": [round(min(shares), 4), round(max(shares), 4)],
        "ms": round(statistics.median(timing.ms for timing in timings), 3),
    }


class Clock(TorchDispatchMode):
    """Milliseconds by kind of operator."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.spent: Counter[str] = Counter()
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.wait()
        begin = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        self.wait()
        self.spent[self.kind(func._schema.name.partition("::")[2], args)] += 1000 * (time.perf_counter() - begin)
        return out

    @staticmethod
    def kind(name: str, args: Sequence[Any]) -> str:
        if "convolution" in name:
            weight, groups = args[1], args[8]
            size = "x".join(map(str, weight.shape[2:]))
            return f"{'depthwise ' if groups > 1 else ''}convolution {size}"
        return {"native_batch_norm": "batch norm"}.get(name, name.rstrip("_"))


def spent(models: Sequence[nn.Module], x: Tensor, rounds: int) -> list[dict[str, float]]:
    """Milliseconds of every kind of operator, the shortest of several rounds, in which the networks take turns."""
    best: list[dict[str, float]] = [{} for _ in models]
    with torch.no_grad():
        for _ in range(rounds):
            for model, shortest in zip(models, best, strict=True):
                clock = Clock(x.device)
                with clock:
                    model(x)
                for kind, value in clock.spent.items():
                    shortest[kind] = min(shortest.get(kind, float("inf")), value)
    return best


def laid_out(model: nn.Module, x: Tensor, layout: str) -> tuple[nn.Module, Tensor]:
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return copy.deepcopy(model).to(memory_format=form), x.contiguous(memory_format=form)


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one network."""
    size = tuple(map(int, (options.input or SIZES[name]).split("x")))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(name, options.width).to(device)
    example = torch.randn(1, 3, *size, device=device)
    row: dict[str, Any] = {"input": "x".join(map(str, size)), "half_the_macs": [], "latency": []}
    for scope in options.scopes:
        result = secateur.prune(model, example, budget={"macs": 0.5}, scope=scope, round_to=options.round_to)
        kept = {"scope": scope, "exact": result.report.ok, "macs": round(result.after.macs / result.before.macs, 4),
                "params": round(result.after.params / result.before.params, 4), "runs": []}  # fmt: skip
        for layout in options.layouts:
            for batch in options.batches:
                x = torch.randn(batch, 3, *size, device=device)
                small, here = laid_out(result.model, x, layout)
                whole, _ = laid_out(model, x, layout)
                run = {"layout": layout, "batch": batch, **compared(small, whole, here, options.repeats)}
                run["gain"] = round((1 - run["share"]) / (1 - kept["macs"]), 3)
                if scope == options.scopes[0]:
                    run["control"] = compared(copy.deepcopy(whole), whole, here, options.repeats)
                before, after = spent([whole, small], here, 2 + options.repeats)
                run["spent"] = {kind: [round(before[kind], 3), round(after.get(kind, 0.0), 3)] for kind in
                                sorted(before, key=before.get, reverse=True)[:8]}  # fmt: skip
                kept["runs"].append(run)
                print(name, json.dumps({**kept, **run, "runs": len(kept["runs"])}), flush=True)
        row["half_the_macs"].append(kept)
    table = LatencyTable(options.table)
    for scope in options.scopes if options.latency else ():
        began = time.perf_counter()
        asked: dict[str, Any] = {"asked": options.latency, "scope": scope}
        try:
            result = secateur.prune(
                model, example, budget={"latency": options.latency}, scope=scope, round_to=options.round_to,
                verify=False, latency_table=table,
            )  # fmt: skip
        except BudgetError as error:
            asked["refused"] = str(error)
        else:
            asked |= {
                "achieved": round(result.budget["achieved"]["latency"], 4),
                "again": compared(result.model, model, example, options.repeats),
                "macs": round(result.after.macs / result.before.macs, 4),
                "operators": sum(map(len, table.measured.values())),
                "ms": round(LatencyModel(result.graph, table).whole, 3),
            }
        row["latency"].append({**asked, "seconds": round(time.perf_counter() - began, 1)})
        print(name, json.dumps(row["latency"][-1]), flush=True)
    return row


# -- the page --------------------------------------------------------------------------------------------------------


def page(record: dict[str, Any]) -> str:
    meta = record["about"]
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items() if "torch" in name)
    lines = [
        "# Time saved by half of the MACs", "", f"    {meta['command']}", "",
        f"{meta['date']}, commit {meta['commit']}, Python {meta['python']}, {versions}; {record['device']},"
        f" {record['threads']} thread(s); widths in multiples of {record['round_to']}; load average before"
        f" {meta['load_before'][0]}, after {record['load_after'][0]}.", "",
        *__doc__.split("\n\n", 2)[2].strip().splitlines(), "",
        "| network | input | batch | layout | scope | MACs | params | time | extremes | gain | control |",
        "|---|---|--:|---|---|--:|--:|--:|---|--:|--:|",
    ]  # fmt: skip
    for name, row in record["networks"].items():
        for kept in row["half_the_macs"]:
            for run in kept["runs"]:
                low, high = run["extremes"]
                control = f"{run['control']['share']:.3f}" if "control" in run else ""
                cells = [name, row["input"], run["batch"], run["layout"], kept["scope"], f"{kept['macs']:.3f}",
                         f"{kept['params']:.3f}", f"{run['share']:.3f}", f"{low:.3f} to {high:.3f}",
                         f"**{run['gain']:.2f}**", control]  # fmt: skip
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "## A budget of latency", "",
              "| network | scope | asked | achieved | again | extremes | off | MACs |",
              "|---|---|--:|--:|--:|---|--:|--:|"]  # fmt: skip
    for name, row in record["networks"].items():
        for asked in row["latency"]:
            cells = [name, asked["scope"], f"{asked['asked']:g}"]
            if "refused" in asked:
                cells += [asked["refused"].replace("|", "/"), "", "", "", ""]
            else:
                again = asked["again"]
                cells += [f"{asked['achieved']:.3f}", f"{again['share']:.3f}",
                          " to ".join(f"{value:.3f}" for value in again["extremes"]),
                          f"{again['share'] / asked['asked'] - 1:+.1%}", f"{asked['macs']:.3f}"]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    about_them = "Milliseconds before and after, by kind of operator, in the first layout and batch size."
    lines += ["", "## Where the time goes", "", about_them, ""]
    for name, row in record["networks"].items():
        for kept in row["half_the_macs"]:
            parts = [f"{kind} {a:.1f} to {b:.1f}" for kind, (a, b) in kept["runs"][0]["spent"].items()]
            lines.append(f"- {name}, {kept['scope']}: " + ", ".join(parts))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--width", type=int, default=64, help="of the SegNet; 64 is the published one")
    parser.add_argument("--input", default=None, help="instead of " + str(SIZES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--layouts", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument("--scopes", nargs="+", default=list(SCOPES), choices=SCOPES)
    parser.add_argument("--round-to", type=int, default=8, help="widths are multiples of this")
    parser.add_argument("--latency", type=float, default=0.6, help="what may remain of the time; 0: leave this out")
    parser.add_argument("--repeats", type=int, default=5, help="careful measurements of every network")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--table", type=Path, default=None, help="JSON that keeps the times of operators")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine_realised_speed.json")
    parser.add_argument("--page", action="store_true", help="write the page of what --out holds, and stop")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.page:
        meta = about()
        cuda = torch.cuda.is_available()
        record: dict[str, Any] = {
            "about": meta, "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if cuda else meta["cpu"], "round_to": options.round_to,
        }  # fmt: skip
        record["networks"] = {name: measured(name, options) for name in options.networks}
        record["load_after"] = [round(value, 2) for value in os.getloadavg()]
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(options.out.read_text(encoding="utf-8"))
    options.out.with_suffix(".md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
