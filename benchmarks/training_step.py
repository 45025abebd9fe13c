"""What a training-time method adds to a training step: time and peak memory, as ratios to a plain step in the same run.

    python benchmarks/training_step.py [--network segnet --width 64 --batch 8 --size 360x480 --pairs 20]

Blocks of plain and of guided steps alternate on the same network, now one first and now the other, so that a machine
whose speed drifts slows both down alike. A block counts with the median of its steps, its first left out; the ratio is
the median over pairs of blocks. The first row is a control, plain steps against plain steps: what it is off 1 by comes
from the machine and from this way of measuring, and nothing smaller means anything.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F

import secateur
from secateur.models import create_model
from secateur.training.devices import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="segnet")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="360x480")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=["none", "cap", "network_slimming", "acosp", "taylor"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--give-back", action="store_true", help="leave the C library's memory as it is")
    options = parser.parse_args()
    if not options.give_back:
        keep_freed_memory()  # as the command line does
    if options.threads:
        torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    height, width = map(int, options.size.split("x"))
    model = (
        create_model(options.network, classes=11, width=options.width)
        .to(device, memory_format=torch.channels_last)
        .train()
    )
    x = torch.randn(options.batch, 3, height, width, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 11, (options.batch, height, width), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step(pruner: secateur.Pruner | None) -> tuple[float, float]:
        begin = time.perf_counter(), time.process_time()
        F.cross_entropy(model(x), y).backward()
        if pruner is not None:
            pruner.after_backward()
        optimizer.step()
        if pruner is not None:
            pruner.after_step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin[0], time.process_time() - begin[1]

    out = {**vars(options), "device": device, "threads": torch.get_num_threads()}
    for method in options.methods:
        for _ in range(options.steps):
            step(None)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pruner = None if method == "none" else secateur.Pruner(model, x[:1], method=method)
        if pruner is not None:
            pruner.close()
        gc.collect()
        gc.freeze()  # attaching makes garbage, whose collection must not fall into one kind of block only
        wall, processor = [], []
        for pair in range(options.pairs):
            blocks = {}
            for guided in (False, True) if pair % 2 == 0 else (True, False):
                if guided and pruner is not None:
                    pruner.method.start(pruner.graph)
                    pruner.begin(steps=1000, lr_sum=0.1, momentum=0.9, epochs=10)
                gc.collect()
                times = [step(pruner if guided else None) for _ in range(options.steps + 1)][1:]
                if pruner is not None:
                    pruner.close()
                blocks[guided] = [statistics.median(column) for column in zip(*times, strict=True)]
            wall.append(blocks[True][0] / blocks[False][0])
            processor.append(blocks[True][1] / blocks[False][1])
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out[method] = {
            "step_time_ratio": round(statistics.median(wall), 4),
            "step_time_quartiles": [round(q, 4) for q in statistics.quantiles(wall, n=4)[::2]],
            "processor_time_ratio": round(statistics.median(processor), 4),
            "peak_memory_ratio": round(after / before, 4),
        }
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
