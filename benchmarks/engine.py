"""How long it takes to trace, score, select and cut a network, against one forward pass of it, on one core.

    python benchmarks/engine.py [--network segnet --input 360x480]

Times are medians over several repetitions in one process; the verification's forward passes are not part of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

import secateur
from secateur.models import create_model


def seconds(work: Callable[[], object], repeat: int) -> tuple[float, object]:
    """Median time of `work` after one warm-up, and what it returned."""
    out, times = work(), []
    for _ in range(repeat):
        begin = time.perf_counter()
        out = work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times), out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="segnet")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--input", default="360x480")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = create_model(options.network, classes=options.classes, width=options.width).eval()
    x = torch.zeros(1, 3, *map(int, options.input.split("x")))

    trace, graph = seconds(lambda: secateur.trace(model, x), options.repeat)
    score, scores = seconds(lambda: secateur.score(graph, "l1"), options.repeat)
    select, plan = seconds(lambda: secateur.select(graph, scores, pruning_ratio=0.5), options.repeat)
    cut, _ = seconds(lambda: secateur.apply(model, plan), options.repeat)
    with torch.no_grad():
        forward, _ = seconds(lambda: model(x), 1)
    total = trace + score + select + cut
    rows = {"trace": trace, "score": score, "select": select, "cut": cut, "total": total, "forward": forward}
    print(json.dumps({"network": options.network, "input": options.input, "threads": 1, "units": graph.units,
                      **{f"{name}_s": round(value, 4) for name, value in rows.items()},
                      "total_to_forward": round(total / forward, 3)}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
