"""PAGCP's search, the literal procedure beside the same decisions with less work: decisions, forward FLOPs, time.

    python benchmarks/pagcp.py [--networks unet pspnet50 residual --steps 150 --batches 16 --size 64x96 --json FILE]

Three networks with two tasks each are trained on drawn streets for a moment: `unet` with one decoder whose channels are
shared by classes and edges, `pspnet50` with its side head, and `residual`, a trunk of residual blocks with a head for
classes and one for distance to the nearest edge. Each is then searched twice from the same weights, on the same data:
`exact`, every ratio in its order on a cut copy and all of the data, and with less work. Told are whether the decisions
are the same, and the ratios literal / ours of the operators' FLOPs (counted as they run, multiply-adds twice, tracing
on tensors without data left out) and of wall and processor time. Counting and timing are done in separate searches.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import secateur
from secateur.data import Streets
from secateur.methods.pagcp import PAGCP
from secateur.training.optimize import segmentation_loss

CLASSES = 11


class TwoHeads(nn.Module):
    """A trunk of residual blocks; logits of classes, and one map of distances."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(*self.block(3, width, 2))
        self.blocks = nn.ModuleList(
            nn.Sequential(*self.block(width, width), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
            for _ in range(4)
        )
        self.classes = nn.Sequential(*self.block(width, width), nn.Conv2d(width, CLASSES, 1))
        self.distance = nn.Sequential(*self.block(width, width), nn.Conv2d(width, 1, 1))

    @staticmethod
    def block(before: int, after: int, stride: int = 1) -> tuple[nn.Module, ...]:
        conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        return conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return {"classes": self.classes(x), "distance": self.distance(x)}


class Both(nn.Module):
    """A U-Net whose last layer gives logits of classes, and one of edges."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.network = secateur.create_model("unet", classes=CLASSES + 1, width=width)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        out = self.network(image)
        return {"classes": out[:, :-1], "edges": out[:, -1:]}


def edges_of(labels: Tensor) -> Tensor:
    """(N, H, W) -> (N, 1, H, W): 1 where a neighbour to the right or below has another label."""
    right = F.pad(labels[:, :, 1:] != labels[:, :, :-1], (0, 1))
    below = F.pad(labels[:, 1:] != labels[:, :-1], (0, 0, 0, 1))
    return (right | below).float()[:, None]


def at_labels(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)


def losses_of(output: Any, labels: Tensor) -> dict[str, Tensor]:
    """The tasks of all three networks."""
    if isinstance(output, Tensor):  # the side head is missing
        return {"main": segmentation_loss(output, labels)}
    if isinstance(output, tuple):
        return {name: segmentation_loss(o, labels) for name, o in zip(("main", "side"), output, strict=True)}
    losses = {"classes": segmentation_loss(output["classes"], labels)}
    edges = edges_of(labels)
    if "edges" in output:
        losses["edges"] = F.binary_cross_entropy_with_logits(at_labels(output["edges"], labels), edges)
    if "distance" in output:
        near = F.avg_pool2d(edges, 9, 1, 4)
        losses["distance"] = (at_labels(output["distance"], labels) - near).square().mean()
    return losses


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": Both,
    "pspnet50": lambda: secateur.create_model("pspnet50", classes=CLASSES, width=8, activated_bn=False),
    "residual": TwoHeads,
}


class Flops(TorchDispatchMode):
    """FLOPs of the operators that run on data: twice their multiply-adds, by torch's own formulas."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None and not args[0].is_meta:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def trained(make: Callable[[], nn.Module], data: list[tuple[Tensor, Tensor]], steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        image, labels = data[step % len(data)]
        optimizer.zero_grad()
        torch.stack([*losses_of(model(image), labels).values()]).sum().backward()
        optimizer.step()
    return model.eval()


def batches_of(split: str, count: int, size: tuple[int, int], per_batch: int) -> list[tuple[Tensor, Tensor]]:
    streets = Streets(split=split, size=size, length=4 * count * per_batch)
    samples = [streets.read(index) for index in range(count * per_batch)]
    images = torch.stack([torch.tensor(sample.image) for sample in samples]).permute(0, 3, 1, 2).float() / 255 - 0.5
    labels = torch.stack([torch.tensor(sample.label) for sample in samples]).long()
    return list(zip(images.split(per_batch), labels.split(per_batch), strict=True))


def search(model: nn.Module, data: list[tuple[Tensor, Tensor]], exact: bool, **options: Any) -> dict[str, Any]:
    """One search on a copy: what it decided, and what that took."""
    pruner = secateur.Pruner(
        copy.deepcopy(model), data[0][0][:1], method=PAGCP(exact=exact, **options), data=data, loss=losses_of
    )
    begin = time.perf_counter(), time.process_time()
    removed = pruner.method.decided(pruner.graph)
    took = time.perf_counter() - begin[0], time.process_time() - begin[1]
    layers = [layer for each in pruner.method.decisions.rounds for layer in each.layers]
    return {
        "chosen": [(layer.group, layer.ratio, layer.chunks, layer.kept) for layer in layers],
        "removed": removed.tolist(),
        "tried": sum(len(layer.tried) for layer in layers),
        "wall": took[0],
        "processor": took[1],
        "final": pruner.method.decisions.rounds[-1].final,
        "bound": pruner.method.decisions.rounds[-1].bound,
    }


def counted(model: nn.Module, data: list[tuple[Tensor, Tensor]], exact: bool, **options: Any) -> int:
    with Flops() as flops:
        search(model, data, exact, **options)
    return flops.total


def compared(name: str, options: argparse.Namespace) -> dict[str, Any]:
    size = tuple(map(int, options.size.split("x")))
    model = trained(NETWORKS[name], batches_of("train", 12, size, options.batch), options.steps)
    data = batches_of("val", options.batches, size, options.batch)
    settings = {"initial_rate": options.initial_rate, "initial_thres": options.initial_thres}
    ours = search(model, data, False, **settings)
    literal = search(model, data, True, **settings)
    row: dict[str, Any] = {
        "network": name,
        "layers": len(literal["chosen"]),
        "same decisions": ours["chosen"] == literal["chosen"] and ours["removed"] == literal["removed"],
        "tried": [literal["tried"], ours["tried"]],
        "seconds": [round(literal["wall"], 2), round(ours["wall"], 2)],
        "wall ratio": round(literal["wall"] / ours["wall"], 2),
        "processor ratio": round(literal["processor"] / ours["processor"], 2),
        "losses": {t: [round(loss, 4), round(ours["bound"][t], 4)] for t, loss in ours["final"].items()},
        "median ratio": sorted(ratio for _, ratio, _, _ in literal["chosen"])[len(literal["chosen"]) // 2],
    }
    if options.count:
        flops = [counted(model, data, exact, **settings) for exact in (True, False)]
        row["gflops"] = [round(each / 1e9, 2) for each in flops]
        row["flops ratio"] = round(flops[0] / flops[1], 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--batches", type=int, default=16, help="of calibration data")
    parser.add_argument("--batch", type=int, default=4, help="images in a batch")
    parser.add_argument("--size", default="64x96")
    parser.add_argument("--initial-rate", type=float, default=0.06)
    parser.add_argument("--initial-thres", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-count", dest="count", action="store_false", help="times alone")
    parser.add_argument("--json", type=Path, default=None, help="write the rows there, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.networks:
        rows.append(compared(name, options))
        print(json.dumps(rows[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
