"""Prunes every network of torchvision's, timm's and segmentation_models_pytorch's lists, and checks the result.

    pip install -e ".[zoo]"
    python benchmarks/engine_zoo.py --out runs/engine_zoo.jsonl [--jobs 2] [--only smp:unet] [--list]
    python benchmarks/engine_zoo.py --out runs/engine_zoo.jsonl --page results/engine_zoo.md

One network of each of timm's families (the smallest), all of torchvision's classification and segmentation networks,
every architecture of segmentation_models_pytorch with seven encoders. Each runs in a process of its own, on one thread,
at the smallest size it accepts, with random weights and random batch statistics: half its units are removed by L1.
`secateur.prune` verifies that by itself; what it hands over is checked once more here, by other means: the network with
the removed slices set to zero, written down in four lines, against the pruned one.

A run continues where it was stopped: networks already in the file are left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import random
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision_operators  # noqa: F401 -- before torchvision
from torch import nn

SIZES = (64, 96, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512)
SMALL = ("atto", "femto", "pico", "nano", "micro", "tiny", "xxs", "xs", "_s", "small", "18", "_b0", "mini")
# A DPT takes vision transformers for encoders only.
VISION = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_small_patch32_224", "deit3_small_patch16_224",
          "flexivit_small", "deit_tiny_patch16_224")  # fmt: skip
ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0", "densenet121", "vgg11_bn", "mit_b0", "timm-regnetx_002")
TOLERANCE = 1e-5
FAILED = ("wrong", "crash", "died", "timeout")


def networks() -> list[str]:
    """The names, as library:network."""
    import segmentation_models_pytorch as smp
    import timm
    import torchvision.models as vision

    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(name.split("_")[0], []).append(name)

    def size(name: str) -> tuple[int, int]:
        return next((i for i, part in enumerate(SMALL) if part in name), len(SMALL)), len(name)

    names = [f"timm:{min(family, key=size)}" for family in families.values()]
    names += [f"torchvision:{name}" for name in vision.list_models(module=vision)]
    names += [f"torchvision:{name}" for name in vision.list_models(module=vision.segmentation)]
    for kind in smp.MODEL_ARCHITECTURES_MAPPING:
        names += [f"smp:{kind}/{e}" for e in ([f"tu-{name}" for name in VISION] if kind == "dpt" else ENCODERS)]
    return names


def build(name: str) -> nn.Module:
    library, name = name.split(":", 1)
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    if library == "smp":
        import segmentation_models_pytorch as smp

        kind, encoder = name.split("/")
        return smp.create_model(kind, encoder_name=encoder, encoder_weights=None, classes=5)
    import torchvision.models as vision

    options: dict[str, Any] = {"weights": None}
    if name in vision.list_models(module=vision.segmentation):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return vision.get_model(name, **options)


def shake(model: nn.Module) -> None:
    """Statistics, scales and shifts at random: a fresh network's ones and zeros would hide a wrong cut."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 1.5)
                elif name.endswith(("running_mean", "bias")):
                    tensor.add_(torch.randn_like(tensor) * 0.1)
                else:
                    tensor.add_(torch.rand_like(tensor) * 0.5 + 0.1)


def example(model: nn.Module) -> torch.Tensor | None:
    """Two images of the smallest size that the network takes."""
    config = getattr(model, "default_cfg", None) or {}
    channels, *fixed = config.get("input_size") or (3,)
    for size in fixed[:1] if config.get("fixed_input_size") else SIZES:
        x = torch.randn(2, channels, size, size)
        try:
            with torch.no_grad():
                model(x)
        except Exception:
            continue
        return x
    return None


def tensors(output: object) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors(value)]


def deviation(model: nn.Module, small: nn.Module, removed: dict, x: torch.Tensor) -> float:
    """Largest difference between `small` and `model` with the removed slices at zero, relative to the output's size.

    In float32; where that is more than 1e-5, once more in float64, since random weights can multiply rounding errors.
    """
    state = model.state_dict()
    with torch.no_grad():
        for name, dims in removed.items():
            for dim, indices in dims.items():
                state[name].index_fill_(dim, torch.tensor(indices), 0)

        def difference(x: torch.Tensor) -> float:
            pairs = list(zip(tensors(model.eval()(x)), tensors(small.eval()(x)), strict=True))
            return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-9)) for a, b in pairs)

        single = difference(x)
        if single <= TOLERANCE:
            return single
        model, small = model.double(), small.double()
        return difference(x.double())


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def attempt(name: str) -> dict[str, Any]:
    import secateur
    from secateur.errors import NothingPrunableError

    row: dict[str, Any] = {"name": name}
    torch.manual_seed(0)
    try:
        model = build(name).eval()
    except Exception as error:
        return row | {"outcome": "does not build", "why": f"{type(error).__name__}: {error}"[:200]}
    shake(model)
    x = example(model)
    if x is None:
        return row | {"outcome": "does not run"}
    row |= {"size": x.shape[-1], "before": parameters(model)}
    try:
        begin = time.process_time()
        result = secateur.prune(model, x, method="l1", pruning_ratio=0.5)
        row["total_s"] = round(time.process_time() - begin, 3)
        pinned = [group for group in result.graph.groups if group.pinned]
        row["units"], row["pinned"] = result.graph.units, sum(len(group) for group in pinned)
        row["unexplained"] = sum(not str(group.pinned).strip() for group in pinned)
        row["reasons"] = sorted({str(group.pinned).split(" in ")[0] for group in pinned})
        row |= {"after": parameters(result.model), "verified": float(result.report.relative_error)}
        row["warnings"] = [str(warning)[:300] for warning in result.warnings]
        row["checked"] = deviation(model, result.model, result.plan.removed, x)
    except NothingPrunableError as error:
        return row | {"outcome": "nothing prunable", "why": str(error)[:300]}
    except Exception as error:
        return row | {"outcome": "crash", "why": f"{type(error).__name__}: {error}"[:300],
                      "traceback": traceback.format_exc()[-2500:]}  # fmt: skip
    row["outcome"] = "exact" if row["checked"] <= TOLERANCE else "wrong"
    return row


def child(name: str, pipe: Any) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    pipe.send(attempt(name))


def supervise(names: list[str], out: Path, jobs: int, seconds: float) -> None:
    """Runs `names`, `jobs` at a time, each in a forked process, and writes a line for each."""
    waiting: queue.Queue[str] = queue.Queue()
    for name in names:
        waiting.put(name)
    writing = threading.Lock()
    fork = multiprocessing.get_context("fork")

    def work() -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=child, args=(name, theirs))
            process.start()
            theirs.close()
            try:
                row = ours.recv() if ours.poll(seconds) else {"name": name, "outcome": "timeout", "why": f"{seconds} s"}
            except EOFError:
                row = {"name": name, "outcome": "died"}
            process.kill()
            process.join()
            with writing, out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                print(f"{waiting.qsize():4} left  {row['outcome']:15} {name}", flush=True)

    workers = [threading.Thread(target=work) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def page(rows: list[dict[str, Any]]) -> str:
    """The table, in Markdown."""
    ran = [row for row in rows if row["outcome"] not in ("does not build", "does not run")]
    exact = [row for row in ran if row["outcome"] == "exact"]
    smaller = [row for row in exact if row["after"] < row["before"]]
    kept = sorted(row["after"] / row["before"] for row in exact)
    lines = [
        "# The engine on every network of three libraries",
        "",
        "Made by `benchmarks/engine_zoo.py`, which says how. 50 % of the units that may go are asked for; *params* is",
        "the share of the parameters that is left, *pinned* the share of units that stay and why, *error* the largest",
        "difference to the silenced original, relative to the output, as checked by the script, *CPU s* the processor",
        "time of `secateur.prune` with its verification, on one thread.",
        "",
        f"**{len(ran)} networks ran here: {len(exact)} exact, {sum(row['outcome'] in FAILED for row in ran)} failed;"
        f" {len(smaller)} ({len(smaller) / max(len(ran), 1):.1%}) became smaller"
        + (f" (median: {kept[len(kept) // 2]:.1%} of the parameters left)" if kept else "")
        + f"; pins without a reason: {sum(row.get('unexplained', 0) for row in ran)}.**",
    ]
    for library in sorted({row["name"].split(":")[0] for row in rows}):
        mine = sorted((row for row in rows if row["name"].startswith(f"{library}:")), key=lambda row: row["name"])
        lines += ["", f"## {library}", "", "| network | size | outcome | params | pinned | error | CPU s | pins |",
                  "|---|--:|---|--:|--:|--:|--:|---|"]  # fmt: skip
        for row in mine:
            cells = [row["name"].split(":", 1)[1], row.get("size", ""), row["outcome"]]
            if "checked" in row:
                cells += [f"{row['after'] / row['before']:.1%}", f"{row['pinned'] / max(row['units'], 1):.1%}",
                          f"{row['checked']:.0e}", f"{row['total_s']:.1f}", "; ".join(row["reasons"][:4])]  # fmt: skip
            else:
                cells += ["", "", "", "", row.get("why", "")]
            lines.append("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a network; continued if it exists")
    parser.add_argument("--page", type=Path, help="write the table of what --out holds, and stop")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the names, and stop")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one network")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if options.page:
        options.page.write_text(page(rows), encoding="utf-8")
        return
    names = [name for name in networks() if options.only in name]
    if options.list:
        print("\n".join(names))
        return
    done = {row["name"] for row in rows}
    names = [name for name in names if name not in done]
    random.Random(0).shuffle(names)  # one kind of network after the other would show its trouble late
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    supervise(names, options.out, options.jobs, options.timeout)


if __name__ == "__main__":
    sys.exit(main())
