"""Measuring time: one operator, one network, two networks against each other.

Nothing else of latency budgets looks at a clock, so that tests put a known function in the place of `Stopwatch`.
"""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.costs.operator import Operator
from secateur.graph import mode_of
from secateur.graph.capture import as_call
from secateur.graph.keep import attributes_kept

T = TypeVar("T")


class Timing(NamedTuple):
    """What a network takes: in milliseconds, and as a share of what another one took meanwhile."""

    ms: float
    share: float


@dataclass(frozen=True, slots=True)
class _Effort:
    """Rounds until the median is known to `precision`, relative; at least `rounds`, then at most for `seconds`."""

    rounds: int
    precision: float
    seconds: float

    def enough(self, values: list[float], begin: float) -> bool:
        if len(values) < self.rounds:
            return False
        quarters = np.quantile(values, (0.25, 0.5, 0.75))
        # about the standard error of a median
        error = (quarters[2] - quarters[0]) / len(values) ** 0.5
        return bool(error <= self.precision * quarters[1]) or time.perf_counter() - begin > self.seconds


_QUICK = _Effort(rounds=3, precision=0.01, seconds=2.0)
_CAREFUL = _Effort(rounds=7, precision=0.005, seconds=6.0)


class Stopwatch:
    """Times in eval mode, without gradients, on the device where the network is, with the threads that torch has."""

    def operator(self, operator: Operator, device: torch.device, dtype: torch.dtype) -> float:
        """The shortest of three calls (fewer of one that takes long), in milliseconds."""
        call = operator.prepared(device, dtype)
        times: list[float] = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            while len(times) < 3 and sum(times) < 10:
                times.append(_milliseconds(call, device))
        return min(times)

    def network(self, model: nn.Module, example_inputs: Any) -> float:
        """The median time of a forward pass, in milliseconds."""
        with _ready(model, example_inputs) as forward:
            times, begin = [forward()], time.perf_counter()
            while not _QUICK.enough(times, begin):
                times.append(forward())
        return statistics.median(times)

    def compare(self, model: nn.Module, other: nn.Module, example_inputs: Any, careful: bool) -> Timing:
        """The median time of one network, and the median of its shares of the other's time; see `in_turns`."""
        others, times = self._in_turns([other, model], example_inputs, _CAREFUL if careful else _QUICK)
        shares = [mine / reference for mine, reference in zip(times, others, strict=True)]
        return Timing(statistics.median(times), statistics.median(shares))

    def in_turns(self, models: Sequence[nn.Module], example_inputs: Any, seconds: float) -> list[list[float]]:
        """Times of forward passes of several networks, in milliseconds: a list of each, of the same length.

        They run in turns, now one first and now another, so that a machine whose speed drifts slows all down alike.

        Args:
            models: the first is what the others are compared with.
            example_inputs: of all of them.
            seconds: to go on for at most, once there are 7 rounds; it ends earlier if the median shares are known to
                half a per cent.
        """
        return self._in_turns(models, example_inputs, _Effort(_CAREFUL.rounds, _CAREFUL.precision, seconds))

    def _in_turns(self, models: Sequence[nn.Module], example_inputs: Any, effort: _Effort) -> list[list[float]]:
        times: list[list[float]] = [[] for _ in models]
        shares: list[list[float]] = [[] for _ in models[1:]] or [times[0]]
        with ExitStack() as stack:
            forwards = [stack.enter_context(_ready(model, example_inputs)) for model in models]
            begin = time.perf_counter()
            while not all(effort.enough(each, begin) for each in shares):
                start = len(times[0]) % len(models)
                for index in (*range(start, len(models)), *range(start)):
                    times[index].append(forwards[index]())
                for share, taken in zip(shares, times[1:], strict=False):
                    share.append(taken[-1] / times[0][-1])
        return times


@contextmanager
def _ready(model: nn.Module, example_inputs: Any) -> Iterator[Callable[[], float]]:
    """A function that runs the network once and returns the milliseconds; it is warm, and left as it was."""
    device = device_of(model)

    def forward() -> float:
        inputs = pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, example_inputs)
        args, kwargs = as_call(inputs)  # copied, since some networks write into their inputs
        return _milliseconds(lambda: model(*args, **kwargs), device)

    with (
        attributes_kept(model),
        mode_of(model, False),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the network's own, of which tracing has heard already
        for _ in range(2):
            forward()
        yield forward


def _milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        with torch.cuda.device(device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize(device)
            return float(begin.elapsed_time(end))
    wait: Callable[[], None] = getattr(getattr(torch, device.type, None), "synchronize", lambda: None)
    wait()
    start = time.perf_counter()
    call()
    wait()
    return 1000 * (time.perf_counter() - start)


def device_of(model: nn.Module) -> torch.device:
    """Where the network is; the CPU if it has no tensors."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def machine(device: torch.device) -> str:
    """What a measured time holds for: "NVIDIA H200, 8 threads", "AMD EPYC, 2 threads"."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = _processor() if device.type == "cpu" else f"{device.type} of {platform.machine()}"
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def agreed(work: Callable[[], T]) -> T:
    """What `work` comes to in the first of several processes that compute together, for all of them.

    Each would measure something else; their networks would then differ.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return work()
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = work()
        except Exception as error:  # the others wait for an answer, whatever it is
            found[1] = error
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    return found[0]
