"""How fast networks are, side by side: measured in turns, with what they use of memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.costs import Stopwatch, cost
from secateur.costs.stopwatch import machine
from secateur.errors import CannotError, UserError
from secateur.ship.onnx_file import OnnxNetwork
from secateur.ship.source import open_network

__all__ = ["Contender", "bench", "contenders"]

Record = dict[str, Any]
EAGER, COMPILED, ONNX = "eager", "compiled", "onnxruntime"


@dataclass(frozen=True)
class Contender:
    """One of the networks that are compared.

    runtime: "eager", "compiled" or "onnxruntime".
    size: height and width that it takes, if it takes no others; else those that it was made for, if they are known.
    fixed: it takes no others.
    recipe: that it was opened with, if one was named.
    """

    name: str
    runtime: str
    path: Path
    model: nn.Module
    size: tuple[int, int] | None
    fixed: bool = False
    recipe: Path | None = None


def contenders(
    paths: Sequence[Path], recipe: Path | None, compiled: bool, threads: int | None, say: Callable[[str], None]
) -> list[Contender]:
    """Opens run folders, files of weights and .onnx files.

    Args:
        paths: see `open_network`; or files that end in .onnx.
        recipe: of files of weights without one.
        compiled: every network of PyTorch also compiled.
        threads: of the CPU, of all of them; None leaves it to each runtime.
        say: takes lines on what had to be guessed.

    Raises:
        UserError: a file can't be opened, see `open_network` and `OnnxNetwork`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    found: list[Contender] = []
    for path in paths:
        if path.suffix == ".onnx":
            if not path.is_file():
                raise UserError(f"{path}: there is no such file")
            session = OnnxNetwork(path, threads or torch.get_num_threads())
            size = session.fixed_size or (tuple(session.told("size")) if session.told("size") else None)
            found.append(Contender(path.name, ONNX, path, session, size, session.fixed_size is not None))
            continue
        network = open_network(path, "final", recipe, say)
        found.append(Contender(network.name, EAGER, path, network.model, network.input_size, recipe=recipe))
        if compiled:
            found.append(Contender(network.name, COMPILED, path, _Compiled(network.model), network.input_size))
    return found


def bench(
    networks: Sequence[Contender],
    batch: int,
    size: tuple[int, int] | None,
    seconds: float,
    memory: Callable[[Contender, Tensor], int | None] | None = None,
    stopwatch: Stopwatch | None = None,
) -> Record:
    """Measures networks in turns on one batch of noise, on the CPU.

    Args:
        networks: times are compared with those of the first that runs in the same runtime.
        batch: images at a time.
        size: height and width; by default what the first takes.
        seconds: that measuring may go on for.
        memory: says how many bytes a network needs; by default `peak_memory`.
        stopwatch: for tests.

    Returns:
        "machine", "batch", "size", "rounds", and "rows" with, of every network: "ms" (median of one batch), "low" and
        "high" (quartiles), "images_per_second", "time_share" (median of its time over the reference's, pair by pair),
        "macs" of one image, "macs_share", "realised" (share of the time saved over share of the MACs saved) and
        "peak_bytes"; None where something is not known.

    Raises:
        UserError: a network takes another size.
        CannotError: a network fails on the images.
    """
    size = size or next((each.size for each in networks if each.size is not None), None)
    if size is None:
        raise UserError(f"{networks[0].name} takes images of any size; expected --size")
    for each in networks:
        if each.fixed and each.size != size:
            raise UserError(
                f"{each.name} takes images of {_by(each.size)} alone, not {_by(size)}; give --size {_by(each.size)}, "
                "or export it with --dynamic-size"
            )
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    for each in networks:
        try:
            with torch.no_grad():
                each.model(images)
        except Exception as error:  # no compiler, no memory, another batch: whatever a runtime says
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            shown = f"{batch} x 3 x {_by(size)}"
            raise CannotError(f"{each.name} ({each.runtime}) fails on images {shown}: {reason}") from error
    times = (stopwatch or Stopwatch()).in_turns([each.model for each in networks], images, seconds)
    rows = []
    for each, taken in zip(networks, times, strict=True):
        reference = next(index for index, other in enumerate(networks) if other.runtime == each.runtime)
        shares = [mine / its for mine, its in zip(taken, times[reference], strict=True)]
        macs, whole = _macs(each, size), _macs(networks[reference], size)
        low, median, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else taken * 3
        time_share = statistics.median(shares)
        macs_share = macs / whole if macs is not None and whole else None
        rows.append(
            {
                "network": each.name,
                "file": str(each.path),
                "runtime": each.runtime,
                "ms": median,
                "low": low,
                "high": high,
                "images_per_second": 1000 * batch / median,
                "time_share": time_share,
                "macs": macs,
                "macs_share": macs_share,
                "realised": None if macs_share is None or macs_share >= 1 else (1 - time_share) / (1 - macs_share),
                "peak_bytes": (memory or peak_memory)(each, images),
            }
        )
    return {
        "machine": machine(torch.device("cpu")),
        "batch": batch,
        "size": list(size),
        "rounds": len(times[0]),
        "rows": rows,
    }


def peak_memory(network: Contender, images: Tensor) -> int | None:
    """Bytes that a process grows by while it loads a network and runs it twice: weights, activations, work space.

    Measured in a process of its own, from what Linux tells of it; None elsewhere, and of compiled networks, where the
    compiler would be measured.
    """
    if network.runtime == COMPILED or not Path("/proc/self/clear_refs").exists():
        return None
    asked = {
        "path": str(network.path),
        "recipe": None if network.recipe is None else str(network.recipe),
        "runtime": network.runtime,
        "shape": list(images.shape),
        "threads": torch.get_num_threads(),
    }
    result = subprocess.run(
        [sys.executable, "-m", "secateur.ship.memory", json.dumps(asked)], capture_output=True, text=True, check=False
    )
    try:
        return int(result.stdout.split()[-1])
    except (IndexError, ValueError):
        return None


def _macs(network: Contender, size: tuple[int, int]) -> int | None:
    """Of one image."""
    if isinstance(network.model, OnnxNetwork):
        same = network.model.told("size") == list(size)
        return network.model.told("macs") if same else None
    model = network.model.original if isinstance(network.model, _Compiled) else network.model
    return int(cost(model, torch.zeros(1, 3, *size)).macs)


def _by(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size or ()))


class _Compiled(nn.Module):
    """A network that torch.compile has compiled."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.original = model
        self._run = [torch.compile(model)]  # in a list, so that its tensors are not the module's twice

    def forward(self, images: Tensor) -> Any:
        return self._run[0](images)
