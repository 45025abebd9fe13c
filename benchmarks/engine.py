"""How long it takes to trace, choose and cut half of a network's channels, beside two other libraries.

    pip install -e ".[bench]"
    python benchmarks/engine.py                     # -> results/engine_benchmark.json and results/engine_benchmark.md
    python benchmarks/engine.py --networks resnet101 --tools secateur torch-pruning --limit 60 --out /tmp/a.json
    python benchmarks/engine.py --networks secateur:segnet --tools secateur --input 360x480 --out /tmp/b.json

Every library gets the same network, with the same random weights, and does the same work on one thread: build its
graph, rank channels by L1 over the whole network, remove half of them. Each does so in a process of its own. They take
turns within a network, so that a machine whose speed drifts slows all of them down alike; a library's first call warms
it up and is not counted, unless it took so long that there was no time for another.

*seconds* are processor seconds: on an idle machine seconds, on a busy one not much more than they would be there.
*memory* is the first call's: the highest resident size (VmHWM, set back before the call) less the resident size before
it, as a share of the bytes of the network's own tensors, in a process that has pruned a small network already, whose
free memory was given back to the system. The cut network counts where it is a copy (secateur's); the others cut in
place. A limit that strikes is an outcome: `timeout`.

*outcome* is judged for all alike, from the result alone. Random weights tell which of the original's slices are left:
every tensor's value is looked up in the original. The slices that are gone are set to zero in the original; the result
is `exact` if in float64 both give the same output, to 1e-6 of its largest value, and `wrong` otherwise: also where
channels were taken out of a layer normalisation, whose mean and variance then go over fewer values.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import datetime
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision_operators  # noqa: F401 -- before torchvision, which the others import as well
from torch import Tensor, nn

TOOLS = ("secateur", "torch-pruning", "torch-kirigami")
RESULTS = Path(__file__).parent.parent / "results"
PRECISION = 1e-6
HELD = 0.5  # of the units removed


class Network(NamedTuple):
    build: Callable[[], nn.Module]
    outputs: tuple[str, ...]  # the layers that give the network's outputs: torch-pruning has to be told


def vision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None, **options)

    return build


def resnet(*blocks: int) -> Callable[[], nn.Module]:
    """A bottleneck ResNet a quarter as wide inside its blocks, so that 1001 layers fit."""

    def build() -> nn.Module:
        from torchvision.models.resnet import Bottleneck, ResNet

        return ResNet(Bottleneck, list(blocks), width_per_group=16)

    return build


def densenet(*blocks: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models.densenet import DenseNet

        return DenseNet(32, blocks, 64)

    return build


def timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False)

    return build


def unetplusplus() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.UnetPlusPlus("resnet50", encoder_weights=None)


NETWORKS = {
    "resnet101": Network(vision("resnet101"), ("fc",)),
    "densenet201": Network(vision("densenet201"), ("classifier",)),
    "deeplabv3_resnet101": Network(
        vision("deeplabv3_resnet101", weights_backbone=None, aux_loss=True), ("classifier.4", "aux_classifier.4")
    ),
    "unetplusplus_resnet50": Network(unetplusplus, ("segmentation_head.0",)),
    "hrnet_w18": Network(timm("hrnet_w18"), ("classifier",)),
    "convnext_tiny": Network(vision("convnext_tiny"), ("classifier.2",)),
    "timm_convnext_tiny": Network(timm("convnext_tiny"), ("head.fc",)),
}
SCALES = {
    "resnet": {
        "resnet50": Network(resnet(3, 4, 6, 3), ("fc",)),
        "resnet101": Network(resnet(3, 4, 23, 3), ("fc",)),
        "resnet152": Network(resnet(3, 8, 36, 3), ("fc",)),
        "resnet1001": Network(resnet(3, 24, 303, 3), ("fc",)),
    },
    "densenet": {
        "densenet121": Network(densenet(6, 12, 24, 16), ("classifier",)),
        "densenet201": Network(densenet(6, 12, 48, 32), ("classifier",)),
        "densenet264": Network(densenet(6, 12, 64, 48), ("classifier",)),
    },
}


def network(name: str) -> Network:
    """By its name here, as family:network of the scales, or as secateur:name."""
    family, _, rest = name.rpartition(":")
    if family == "secateur":
        import secateur

        return Network(lambda: secateur.create_model(rest, classes=11), ())
    return SCALES[family][rest] if family else NETWORKS[name]


# -- the work, by each library's documented recipe; from a network to one with half of its units ----------------------


class Pruned(NamedTuple):
    model: nn.Module
    stages: dict[str, float]  # processor seconds


Prune = Callable[[nn.Module, Tensor, Network], Pruned]


def staged(stages: dict[str, Callable[[], Any]]) -> tuple[Any, dict[str, float]]:
    """Run them one after the other; what the last returned, and the time of each."""
    out, seconds = None, {}
    for name, work in stages.items():
        begin = time.process_time()
        out = work()
        seconds[name] = time.process_time() - begin
    return out, seconds


def with_secateur(model: nn.Module, x: Tensor, network: Network) -> Pruned:
    import secateur

    found: dict[str, Any] = {}

    def trace() -> None:
        found["graph"] = secateur.trace(model, x)

    def score() -> None:
        found["scores"] = secateur.score(found["graph"], "l1")

    def select() -> None:
        found["plan"] = secateur.select(found["graph"], found["scores"], pruning_ratio=HELD)

    small, seconds = staged(
        {"trace": trace, "score": score, "select": select, "cut": lambda: secateur.apply(model, found["plan"])}
    )
    return Pruned(small, seconds)


def with_torch_pruning(model: nn.Module, x: Tensor, network: Network) -> Pruned:
    """The README's pruner, with L1 and global ranking."""
    import torch_pruning as tp

    def build() -> None:
        found["pruner"] = tp.pruner.BasePruner(
            model, x, importance=tp.importance.GroupMagnitudeImportance(p=1), pruning_ratio=HELD, global_pruning=True,
            round_to=None, ignored_layers=[model.get_submodule(name) for name in network.outputs],
        )  # fmt: skip

    found: dict[str, Any] = {}
    _, seconds = staged({"build": build, "step": lambda: found["pruner"].step()})
    return Pruned(model, seconds)


def with_torch_kirigami(model: nn.Module, x: Tensor, network: Network) -> Pruned:
    """The README's quick start, with L1 and a budget of channels; the outputs stay by default."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import ChannelRatio, Greedy, GroupMagnitude, Pruner

    found: dict[str, Any] = {}

    def build() -> None:
        found["pruner"] = Pruner(model, graph=DependencyGraph.build(model, args=(x,)))

    def discover() -> None:
        found["candidates"] = found["pruner"].discover_candidates()

    def prune() -> nn.Module:
        return found["pruner"].prune(
            found["candidates"], budget=ChannelRatio(HELD, scope="global"), strategy=Greedy(GroupMagnitude(p=1))
        )[0]  # fmt: skip

    small, seconds = staged({"build": build, "discover": discover, "prune": prune})
    return Pruned(small, seconds)


PRUNE: dict[str, Prune] = {
    "secateur": with_secateur,
    "torch-pruning": with_torch_pruning,
    "torch-kirigami": with_torch_kirigami,
}


# -- judging a result ------------------------------------------------------------------------------------------------


def shake(model: nn.Module) -> None:
    """Values that differ within every tensor: ones and zeros would hide a wrong cut, and could not be found again."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or (tensor.dim() > 1 and tensor.unique().numel() > tensor.numel() / 2):
            continue  # random already
        spread = (torch.randperm(tensor.numel()) + 0.5).reshape(tensor.shape) / max(1, tensor.numel())
        tensor.copy_(spread * 0.4 - 0.2 if name.endswith(("bias", "running_mean")) else spread + 0.5)


def kept(old: Tensor, new: Tensor) -> list[Tensor]:
    """Per dimension, the indices of `old` that `new` is made of, found by its values alone.

    Raises:
        ValueError: it is not made of slices of `old`.
    """
    values, order = old.flatten().sort()
    at = order[torch.searchsorted(values, new.flatten()).clamp_max(old.numel() - 1)]
    places = torch.unravel_index(at, old.shape)
    found = []
    for dim, place in enumerate(places):
        slices = place.reshape(new.shape).movedim(dim, 0).reshape(new.shape[dim], -1)
        found.append(slices.mode(1).values)  # a value may occur twice, a slice may not
    if not torch.equal(old[torch.meshgrid(*found, indexing="ij")], new):
        raise ValueError("is not made of slices of the original")
    return found


def silenced(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original's tensors, every slice that is gone at zero.

    Raises:
        ValueError: a tensor of the result isn't made of slices of the original's.
    """
    if before.keys() != after.keys():
        raise ValueError(f"other tensors: {sorted(before.keys() ^ after.keys())[:3]}")
    state = {}
    for name, old in before.items():
        new = old.clone()
        if old.shape != after[name].shape:
            try:
                for dim, indices in enumerate(kept(old, after[name])):
                    gone = torch.ones(old.shape[dim], dtype=torch.bool)
                    gone[indices] = False
                    new.index_fill_(dim, gone.nonzero().flatten(), 0)
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"{name}: {error}") from error
        elif not torch.equal(old, after[name]):
            raise ValueError(f"{name} was changed")
        state[name] = new
    return state


def tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors(value)]


def judged(original: nn.Module, small: nn.Module, x: Tensor) -> dict[str, Any]:
    """The outcome, and what it is based on. Changes both networks."""
    before, after = (sum(p.numel() for p in model.parameters()) for model in (original, small))
    row: dict[str, Any] = {"params_left": round(after / before, 4)}
    if after == before:
        return row | {"outcome": "nothing pruned"}
    state = original.state_dict()
    try:
        state = silenced(state, small.state_dict())
    except ValueError as error:
        return row | {"outcome": "wrong", "why": str(error)[:300]}
    original.load_state_dict(state)
    del state
    with torch.no_grad():
        wanted = tensors(original.double().eval()(x.double()))
        try:
            got = tensors(small.double().eval()(x.double()))
        except Exception as error:
            return row | {"outcome": "wrong", "why": f"does not run: {type(error).__name__}: {error}"[:300]}
    if [t.shape for t in wanted] != [t.shape for t in got]:
        return row | {"outcome": "wrong", "why": "other output shapes"}
    errors = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(wanted, got, strict=True)]
    return row | {"error": max(errors), "outcome": "exact" if max(errors) <= PRECISION else "wrong"}


# -- one library with one network, in a process of its own -----------------------------------------------------------


def resident() -> dict[str, int]:
    """Bytes by name: VmRSS now, VmHWM the most since it was set back."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith(("VmHWM", "VmRSS"))}


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux with its C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident()["VmRSS"]
    wall, processor = time.perf_counter(), time.process_time()
    out = work()
    row = {"wall": time.perf_counter() - wall, "seconds": time.process_time() - processor}
    return out, row | {"extra": float(resident()["VmHWM"] - before)}


def tiny() -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 4)]
    return nn.Sequential(*block(3, 8), *block(8, 16), *head)


def child(pipe: Any, tool: str, name: str, size: tuple[int, ...]) -> None:
    """Answers `run`, `judge` and, of secateur, `verified` and `forward`, one row each."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123 -- torch-pruning prints
    try:
        torch.manual_seed(0)
        PRUNE[tool](tiny().eval(), torch.randn(1, 3, 8, 8), Network(tiny, ("10",)))
        torch.manual_seed(0)
        this = network(name)
        original = this.build().eval()
        shake(original)
        x = torch.randn(1, 3, *size)
        count = Counter()
        with count, torch.no_grad():
            original(x)
        bytes_ = sum(t.numel() * t.element_size() for t in original.state_dict().values())
        pipe.send({"operators": count.operators, "bytes": bytes_})
        small = None
        while True:
            task = pipe.recv()
            if task == "run":
                small = None
                model = copy.deepcopy(original)
                (small, stages), row = measured(lambda model=model: PRUNE[tool](model, x, this))
                row |= {f"{stage}_s": round(value, 4) for stage, value in stages.items()}
                del model
            elif task == "verified":
                import secateur

                small = None
                result, row = measured(lambda: secateur.prune(original, x, method="l1", pruning_ratio=HELD))
                row["verified"] = result.report.ok
                small = result.model
                del result
            elif task == "forward":
                with torch.no_grad():
                    _, row = measured(lambda: original(x))
            else:
                row = judged(original, small, x)
            pipe.send(row)
    except EOFError:
        return
    except Exception as error:
        pipe.send({"outcome": "crash", "why": f"{type(error).__name__}: {error}"[:400]})


class Counter(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts ATen operators."""

    operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


class Runner:
    """The process of one library with one network, and what is known of them."""

    def __init__(self, tool: str, name: str, size: tuple[int, ...], limit: float) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.limit, self.calls, self.row = limit, list[dict[str, float]](), dict[str, Any]()
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=child, args=(theirs, tool, name, size))
        self.process.start()
        theirs.close()
        self.alive = True
        self.row |= self._answer(300.0)  # importing and building; not part of what is measured

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            row = self.pipe.recv() if self.pipe.poll(seconds) else {"outcome": "timeout", "why": f"{seconds:g} s"}
        except EOFError:
            row = {"outcome": "crash", "why": "the process died"}
        if row.get("outcome") in ("timeout", "crash"):
            self.close()
        return row

    def ask(self, task: str) -> dict[str, Any]:
        self.pipe.send(task)
        return self._answer(600.0 if task == "judge" else self.limit)

    def wants_more(self, repeat: int) -> bool:
        walls = [call["wall"] for call in self.calls]
        return self.alive and len(walls) <= repeat and (not walls or sum(walls) + max(walls) < self.limit)

    def run(self) -> None:
        row = self.ask("run")
        if self.alive:
            self.calls.append(row)
        else:
            self.row |= row

    def close(self) -> None:
        self.alive = False
        self.process.kill()
        self.process.join()

    def summary(self) -> dict[str, Any]:
        out = dict(self.row)
        if self.calls:
            counted = self.calls[1:] or self.calls
            keys = [key for key in counted[0] if key != "extra"]
            out |= {key.removesuffix("_s"): round(statistics.median(c[key] for c in counted), 4) for key in keys}
            out |= {"calls": len(self.calls), "memory": round(self.calls[0]["extra"] / self.row["bytes"], 3)}
            out["spread"] = [round(pick(c["seconds"] for c in counted), 4) for pick in (min, max)]
        return out


def measure(name: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every library with one network: they take turns."""
    runners = {tool: Runner(tool, name, options.size, options.limit) for tool in options.tools}
    while waiting := [runner for runner in runners.values() if runner.wants_more(options.repeat)]:
        for runner in waiting:
            runner.run()
    for tool, runner in runners.items():
        if runner.alive:
            runner.row |= runner.ask("judge")  # of the last call; changes the networks, so the last but what follows
        runner.close()
        print(f"{name:24}{tool:16}{json.dumps(runner.summary())}", flush=True)
    rows = {tool: runner.summary() for tool, runner in runners.items()}
    if "secateur" in rows and rows["secateur"].get("outcome") == "exact":
        again = Runner("secateur", name, options.size, options.limit)
        calls = [again.ask("verified") for _ in range(2) if again.alive]
        forward = [again.ask("forward") for _ in range(3) if again.alive]
        if again.alive:
            rows["secateur"] |= {
                "verified_seconds": round(calls[-1]["seconds"], 4), "verified": calls[-1]["verified"],
                "verified_memory": round(calls[0]["extra"] / again.row["bytes"], 3),
                "forward": round(forward[-1]["seconds"], 4),
            }  # fmt: skip
        again.close()
    return rows


# -- the record and the page -----------------------------------------------------------------------------------------


def ratio(rows: dict[str, dict[str, Any]], tool: str) -> float | None:
    """How many times secateur's time another library takes; at least so many where it hit the limit."""
    mine, other = rows.get("secateur", {}).get("seconds"), rows.get(tool, {})
    if mine is None or (other.get("outcome") != "timeout" and other.get("seconds") is None):
        return None
    return float((other.get("seconds") or float(other["why"].split()[0])) / mine)


def about() -> dict[str, Any]:
    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "-"

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True).stdout.strip()

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    packages = ("torch", "torchvision", "timm", "segmentation_models_pytorch", "torch-pruning", "torch-kirigami")
    return {
        "command": "python " + " ".join(["benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", "src") else ""),
        "cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "load_before": [round(value, 2) for value in os.getloadavg()],
    }  # fmt: skip


def fitted(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Slope of seconds over operators through the origin, and the exponent of a power law, by least squares."""
    slope = sum(n * s for n, s in points) / sum(n * n for n, _ in points)
    logs = torch.tensor(points, dtype=torch.float64).log()
    centred = logs - logs.mean(0)
    return slope, float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum())


def cell(row: dict[str, Any]) -> str:
    """Seconds and outcome."""
    if row.get("seconds") is None:
        return f"timeout ({row['why']})" if row.get("outcome") == "timeout" else row.get("outcome", "-")
    return f"{row['seconds']:.2f} s, {row.get('outcome', '-')}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def number(row: dict[str, Any], key: str, form: str = ".2f") -> str:
    return format(row[key], form) if row.get(key) is not None else "-"


def times(networks: dict[str, Any], tools: Sequence[str]) -> list[str]:
    """What everybody took, the ratios, and what went wrong."""
    peers = [tool for tool in tools if tool != "secateur"]
    found: dict[str, list[float]] = {peer: [] for peer in peers}
    rows, notes = [], []
    for name, mine in networks.items():
        cells = [name, *(cell(mine[tool]) for tool in tools)]
        for peer in peers:
            value = ratio(mine, peer)
            found[peer] += [] if value is None else [value]
            more = "> " if mine[peer]["outcome"] == "timeout" else ""
            cells.append("-" if value is None else f"{more}{value:.1f}")
        rows.append(cells)
        for tool in tools:
            row = mine[tool]
            if row["outcome"] in ("crash", "wrong"):
                error = f"differs from the silenced original by {row['error']:.1e}" if "error" in row else row["why"]
                notes.append(f"- {tool} on {name}, {row['outcome']}: {' '.join(error.split())[:200]}")
    means = [f"**{statistics.geometric_mean(found[peer]):.1f}**" if found[peer] else "-" for peer in peers]
    rows.append(["geometric mean", *[""] * len(tools), *means])
    return [*table(["network", *tools, *(f"{peer} / secateur" for peer in peers)], rows), *notes, ""]


def targets(networks: dict[str, Any], tools: Sequence[str]) -> list[str]:
    """What was aimed at, and whether it is met."""
    peers = [tool for tool in tools if tool != "secateur"]
    ratios = {peer: [r for rows in networks.values() if (r := ratio(rows, peer)) is not None] for peer in peers}
    everything = [value for values in ratios.values() for value in values]
    memory = [rows["secateur"][key] for rows in networks.values() for key in ("memory",) if key in rows["secateur"]]
    outcomes = [rows["secateur"]["outcome"] for rows in networks.values()]
    rows = [["exact on every network", f"{outcomes.count('exact')} of {len(outcomes)}", set(outcomes) == {"exact"}]]
    if everything:
        rows.append(["faster than the others on every network", f"{min(everything):.1f} times", min(everything) > 1])
        means = {peer: statistics.geometric_mean(values) for peer, values in ratios.items() if values}
        text = ", ".join(f"{value:.1f} ({peer})" for peer, value in means.items())
        rows.append(["4 times as fast in the geometric mean", text, min(means.values()) >= 4])
    dense = ratio(networks.get("densenet201", {}), "torch-pruning") if "torch-pruning" in tools else None
    if dense is not None:
        rows.append(["50 times as fast as torch-pruning on DenseNet-201", f"{dense:.1f}", dense >= 50])
    rows.append(["memory under twice the network's", f"at most {max(memory):.2f}", max(memory) < 2])
    return table(["aim", "measured", ""], ([what, value, "met" if met else "short"] for what, value, met in rows))


def details(networks: dict[str, Any], tools: Sequence[str]) -> list[str]:
    stages = ("trace", "score", "select", "cut", "verified_seconds", "verified_memory", "forward")
    rows = []
    for name, mine in networks.items():
        some = next((row for row in mine.values() if "bytes" in row), {"bytes": 0})
        cells = [name, number(some, "operators", "d"), f"{some['bytes'] / 1e6:.0f}"]
        cells += [number(mine[tool], "memory") for tool in tools]
        cells += [number(mine[tool], "params_left", ".1%") for tool in tools]
        rows.append(cells + [number(mine.get("secateur", {}), stage, ".3f") for stage in stages])
    head = ["network", "operators", "MB", *(f"memory {tool}" for tool in tools), *(f"left {tool}" for tool in tools)]
    return table([*head, "trace", "score", "select", "cut", "prune()", "memory prune()", "forward"], rows)


def depths(networks: dict[str, Any], tools: Sequence[str]) -> list[str]:
    tools = [tool for tool in tools if all(tool in mine for mine in networks.values())]
    rows = []
    for name, mine in networks.items():
        some = next((row for row in mine.values() if "operators" in row), {"operators": 0})
        per = 1000 * mine["secateur"].get("seconds", float("nan")) / max(1, some["operators"])
        rows.append([name, str(some["operators"]), *(cell(mine[tool]) for tool in tools), f"{per:.3f}"])
    lines = table(["network", "operators", *tools, "secateur, ms per operator"], rows)
    for tool in tools:
        rows_ = [mine[tool] for mine in networks.values() if mine[tool].get("seconds")]
        if len(rows_) > 1:
            slope, power = fitted([(row["operators"], row["seconds"]) for row in rows_])
            lines.append(f"- {tool}: {1000 * slope:.3f} ms per operator; time ~ operators^{power:.2f}")
    return [*lines, ""]


def page(record: dict[str, Any]) -> str:
    meta, tools, networks = record["about"], record["tools"], record["networks"]
    families = [networks, *record["scaling"].values()]
    timed = [row for family in families for rows in family.values() for row in rows.values() if row.get("seconds")]
    busy = max((row["wall"] / row["seconds"] for row in timed), default=1.0)
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    lines = [
        "# Speed and memory of the engine", "", f"    {meta['command']}", "",
        f"{meta['date']}, commit {meta['commit']}, Python {meta['python']}, {versions}; one thread of {meta['cpu']}"
        f" ({meta['cores']} cores); load average before {meta['load_before'][0]}, after {record['load_after'][0]};"
        f" by the clock it took at most {busy:.2f} times the processor seconds. Input {record['input']}.", "",
        *__doc__.split("\n\n", 2)[2].strip().splitlines(), "",
    ]  # fmt: skip
    if networks:
        lines += ["## Half of the channels, by L1", "", *times(networks, tools)]
        lines += targets(networks, tools) if "secateur" in tools else []
        lines += ["## Memory, parameters, verification", "", DETAILS_TEXT, "", *details(networks, tools)]
    for number_, (family, rows) in enumerate(record["scaling"].items()):
        lines += ["" if number_ else f"## Depth\n\n{SCALING_TEXT}\n", f"### {family}", "", *depths(rows, tools)]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


DETAILS_TEXT = (
    "*memory*: the most that was in use beyond the network, in multiples of the network's own bytes; *left*: share of"
    " the parameters; times in processor seconds; *prune()*: all of it with the verification and the count of costs."
)
SCALING_TEXT = (
    "The same work on networks that differ in depth alone. ResNets of bottleneck blocks, with a quarter of the usual"
    " width inside the blocks, so that 1001 layers (3, 24, 303, 3 blocks) fit; DenseNets of growth 32, 264 layers being"
    " (6, 12, 64, 48). *operators*: ATen operators of one forward pass."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS) + ", secateur:NAME")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--scaling", nargs="*", default=list(SCALES), choices=list(SCALES), help="families of depths")
    parser.add_argument("--input", default="224x224")
    parser.add_argument("--repeat", type=int, default=5, help="calls after the first")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one library with one network")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine_benchmark.json")
    parser.add_argument("--page", action="store_true", help="write the page of what --out holds, and stop")
    options = parser.parse_args()
    options.size = tuple(map(int, options.input.split("x")))
    if not options.page:
        record = {"about": about(), "tools": options.tools, "input": options.input, "limit": options.limit}
        record["networks"] = {name: measure(name, options) for name in options.networks}
        record["scaling"] = {
            family: {name: measure(f"{family}:{name}", options) for name in SCALES[family]}
            for family in (options.scaling if options.networks == list(NETWORKS) or not options.networks else ())
        }
        record["load_after"] = [round(value, 2) for value in os.getloadavg()]
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(options.out.read_text(encoding="utf-8"))
    options.out.with_suffix(".md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
