"""Class-wise Taylor scores: one pass over the data for every class, as published, beside one pass for all of them.

    python benchmarks/class_scores.py [--network segnet --width 16 --size 96x128 --batch 4 --classes 11 --batches 4]

Both are computed on the same network and batches, turn by turn, and compared: of all classes, and of the rarer half,
which is what MCAG needs by default. The labels are patches of one class, the last classes the rarest; the last fifth of
the classes is in every second batch only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.graph import mode_of
from secateur.methods import Material
from secateur.methods.class_taylor import class_scores
from secateur.methods.sites import sites_of


def one_pass_per_class(model: nn.Module, data: list[tuple[Tensor, Tensor]], sites: list, classes: int) -> list[Tensor]:
    """As published: for every class a forward and a full backward pass over all batches."""
    sums = {site.module: [0.0] * classes for site in sites}
    kept: dict[str, Tensor] = {}

    def hook(name: str):
        def read(module: nn.Module, args: object, output: Tensor) -> None:
            def multiply(gradient: Tensor) -> None:
                sums[name][label] = sums[name][label] + (kept[name] * gradient).mean((0, 2, 3))

            kept[name] = output.detach()
            output.register_hook(multiply)

        return read

    hooks = [model.get_submodule(site.module).register_forward_hook(hook(site.module)) for site in sites]
    with mode_of(model, False):
        for label in range(classes):
            for images, labels in data:
                logits = model(images)
                target = torch.where(labels == label, labels, logits.argmax(1))
                F.cross_entropy(logits, target).backward()
                model.zero_grad()
    for handle in hooks:
        handle.remove()
    return [torch.stack(sums[site.module]).abs() for site in sites]


def patches(batch: int, size: tuple[int, int], classes: int, number: int) -> Tensor:
    """Label maps of rectangles; class c has about half as many pixels as class c - 2."""
    generator = torch.Generator().manual_seed(number)
    labels = torch.zeros(batch, *size, dtype=torch.long)
    for c in range(1, classes if number % 2 else classes - classes // 5):
        height, width = (max(2, int(side * 0.7 * 0.85**c)) for side in size)
        for image in labels:
            top, left = (
                int(torch.randint(0, s - h + 1, (), generator=generator))
                for s, h in zip(size, (height, width), strict=True)
            )
            image[top : top + height, left : left + width] = c
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="segnet")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", default="96x128")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    height, width = map(int, options.size.split("x"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = secateur.create_model(options.network, classes=options.classes, width=options.width).to(device)
    data = []
    for number in range(options.batches):
        labels = patches(options.batch, (height, width), options.classes, number)
        images = torch.randn(options.batch, 3, height, width) + labels[:, None] / options.classes
        data.append((images.to(device), labels.to(device)))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for images, labels in data * 5:  # so that the answers, and with them the scores, mean something
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    graph = secateur.trace(model, data[0][0][:1])
    material = Material(data, F.cross_entropy, options.classes)
    sites, every = sites_of(graph), range(options.classes)
    rarest = every[-(options.classes // 2) :]
    ways = {
        "one pass per class": lambda: one_pass_per_class(model, data, sites, options.classes),
        "one pass, all classes": lambda: class_scores(graph, material, every),
        "one pass, rarer half": lambda: class_scores(graph, material, rarest),
    }
    clock = time.perf_counter if device == "cuda" else time.process_time  # of this process, whatever else is running
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            begin = clock()
            results[name] = way()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - begin)
    reference = dict(zip((site.module for site in sites), results["one pass per class"], strict=True))
    worst = max(
        float((scores - reference[layer.module]).abs().max() / reference[layer.module].abs().max().clamp_min(1e-30))
        for layer, scores in results["one pass, all classes"]
    )
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    out = {
        **vars(options),
        "device": device,
        "threads": torch.get_num_threads(),
        "seconds" if device == "cuda" else "processor seconds": {
            name: round(value, 3) for name, value in medians.items()
        },
        "speed-up": {name: round(medians["one pass per class"] / value, 2) for name, value in medians.items()},
        "largest difference, of a layer's largest score": float(f"{worst:.2g}"),
    }
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
