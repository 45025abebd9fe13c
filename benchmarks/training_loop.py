"""Secateur's training loop against a plain one written by hand: the same network, optimizer, data and number of steps.

    python benchmarks/training_loop.py --root data/camvid [--network segnet --width 16 --size 360x480 --batch 8]

Blocks of steps alternate between the two, now one first and now the other, so that a machine whose speed drifts slows
both down alike. Both are given the same batches by the same loader; *loop* has them in memory beforehand, so that it
compares the loops alone, *with loading* reads and augments them as a training does. Ratios of wall time, medians over
pairs of blocks; the control is the plain loop against itself. Peak memory is measured in a process of its own for each
loop. *waiting* is the share of time that secateur's loop spent waiting for data.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.data import Augment, make_loader, open_dataset
from secateur.models import create_model
from secateur.training import Settings, fit
from secateur.training.devices import keep_freed_memory, make_fabric

Batch = tuple[Tensor, Tensor]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--root", default=None)
    parser.add_argument("--network", default="segnet")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", default="360x480")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="in a block")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--peak", choices=("plain", "secateur"), default=None, help="one loop alone: its peak memory")
    return parser.parse_args()


class Some:
    """A few batches of a loader as an epoch of their own."""

    def __init__(self, batches: Iterable[Batch], count: int) -> None:
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return islice(iter(self.batches), start, self.count)


class Endless:
    """A loader's epochs one after the other, a few batches at a time."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.number = loader, 0
        self.at = iter(loader.epoch(0))

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = next(self.at, None)
            if batch is None:
                self.number += 1
                self.at = iter(self.loader.epoch(self.number))
                continue
            yield batch


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Batch], device: torch.device) -> None:
    """What one writes without a library."""
    model.train()
    for images, labels in batches:
        images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        labels = labels.to(device, non_blocking=True)
        loss = F.cross_entropy(model(images), labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # for the log


def main() -> None:
    given = options()
    keep_freed_memory()
    if given.threads:
        torch.set_num_threads(given.threads)
    height, width = map(int, given.size.split("x"))
    data = open_dataset(given.data, root=given.root, split="train", size=(height, width))
    fabric = make_fabric()
    torch.manual_seed(0)
    model = create_model(given.network, classes=len(data.classes), width=given.width)
    model.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = make_loader(data, given.batch, training=True, workers=given.workers, augment=Augment(), channels_last=True)
    settings = Settings(epochs=1, optimizer="sgd", lr=1e-4, warmup_epochs=0, channels_last=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def ours(batches: Iterable[Batch]) -> float:
        return fit(model, Some(batches, given.steps), settings, fabric).waiting_share

    def theirs(batches: Iterable[Batch]) -> float:
        plain(model, optimizer, islice(iter(batches), given.steps), fabric.device)
        return 0.0

    kept = list(islice(iter(loader.epoch(0)), given.steps))
    if given.peak:
        for _ in range(3):
            (ours if given.peak == "secateur" else theirs)(kept)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return

    def seconds(run: Any, batches: Iterable[Batch]) -> tuple[float, float]:
        begin = time.perf_counter()
        waiting = run(batches)
        return time.perf_counter() - begin, waiting

    out: dict[str, Any] = {**vars(given), "device": str(fabric.device), "threads": torch.get_num_threads()}
    for name, batches in (("loop", kept), ("with loading", Endless(loader))):
        seconds(theirs, batches)
        for row, first in (("control", theirs), ("secateur", ours)):
            ratios, waits = [], []
            for pair in range(given.pairs):
                found = {}
                for mine in (True, False) if pair % 2 else (False, True):
                    found[mine], waiting = seconds(first if mine else theirs, batches)
                    waits += [waiting] if mine else []
                ratios.append(found[True] / found[False])
            out[f"{name}, {row}"] = {
                "ratio": round(statistics.median(ratios), 4),
                "quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)[::2]],
                "waiting": round(statistics.median(waits), 4),
            }
    for loop in ("plain", "secateur"):
        command = [sys.executable, __file__, *sys.argv[1:], "--peak", loop]
        out[f"peak MiB, {loop}"] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
