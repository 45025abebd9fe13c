"""Budgets of measured latency: what is asked, achieved and found again; and what halving the MACs saves of the time.

    python benchmarks/latency.py [--networks segnet pspnet50 unet --input 360x480 --asked 0.75 0.5 --threads 1]

Networks that this version does not have are left out. Everything is measured in pairs, the cut network and the original
in turns; `again` is such a measurement after the cut is final, repeated, with its median and its extremes. The control
compares the original with a copy of itself: what it is off 1 by comes from the machine, and nothing smaller means
anything. `time_saved_per_macs_saved` is 1 where a MAC saved is as good as any other. The scores are L1's of untrained
weights: which channels go does not matter to the time, only how many of which layer.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur
from secateur.costs import CostModel, LatencyModel, LatencyTable, Stopwatch
from secateur.errors import BudgetError
from secateur.pruner import units_of


def compared(model: nn.Module, original: nn.Module, x: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Shares of the original's time: median and extremes of several careful measurements; and milliseconds."""
    timings = [Stopwatch().compare(model, original, x, careful=True) for _ in range(repeats)]
    shares = [timing.share for timing in timings]
    return {
        "share": round(statistics.median(shares), 4),
        "extremes": [round(min(shares), 4), round(max(shares), 4)],
        "ms": round(statistics.median(timing.ms for timing in timings), 3),
    }


def measured(name: str, x: torch.Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one network."""
    model = secateur.create_model(name, classes=options.classes).eval().to(x.device)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    graph = secateur.trace(model, x)
    scores = secateur.score(graph, "l1")
    table = LatencyTable(options.table)
    begin = time.perf_counter()
    latency = LatencyModel(graph, table)
    out: dict[str, Any] = {
        "table_s": round(time.perf_counter() - begin, 2),
        "operators": sum(map(len, table.measured.values())),
        "ms": round(latency.whole, 3),
        "control": compared(copy.deepcopy(model), model, x, options.repeats),
        "budgets": [],
    }
    for scope in options.scopes:
        for asked in options.asked:
            begin = time.perf_counter()
            row: dict[str, Any] = {"asked": asked, "scope": scope}
            try:
                result = secateur.prune(
                    model, x, budget={"latency": asked}, scope=scope, round_to=options.round_to, verify=False,
                    latency_table=table,
                )  # fmt: skip
            except BudgetError as error:
                row["refused"] = str(error)
            else:
                row["achieved"] = round(result.budget["achieved"]["latency"], 4)
                row["again"] = compared(result.model, model, x, options.repeats)
                predicted = latency.total(removed=units_of(graph, result.plan)) / latency.whole
                row |= {"predicted": round(predicted, 4), "macs": round(result.after.macs / result.before.macs, 4)}
            out["budgets"].append({**row, "seconds": round(time.perf_counter() - begin, 1)})
    plan = secateur.select(graph, scores, budget={"macs": 0.5}, round_to=8)
    costs = CostModel(graph)
    macs = costs.total("macs", units_of(graph, plan)) / costs.total("macs")
    half = compared(secateur.apply(model, plan), model, x, options.repeats)
    gain = (1 - half["share"]) / (1 - macs)
    out["half_the_macs"] = {"macs": round(macs, 4), **half, "time_saved_per_macs_saved": round(gain, 3)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["segnet", "pspnet50", "unet"])
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--input", default="360x480")
    parser.add_argument("--asked", type=float, nargs="+", default=[0.75, 0.5])
    parser.add_argument("--scopes", nargs="+", default=["global", "cost"])
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="careful measurements of every cut network")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--table", type=Path, default=None, help="JSON that keeps the times of operators")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.zeros(1, 3, *map(int, options.input.split("x")), device=device)
    if options.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    known = set(secateur.list_models())
    rows: dict[str, Any] = {
        "input": options.input, "device": device, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "round_to": options.round_to, "channels_last": options.channels_last,
        "left_out": [name for name in options.networks if name not in known],
    }  # fmt: skip
    rows["networks"] = {name: measured(name, x, options) for name in options.networks if name in known}
    text = json.dumps(rows, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
