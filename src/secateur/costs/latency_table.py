"""Measured times of operators, kept for the process and, if asked for, in a file.

The file is JSON: {"secateur_latency_table": 1, "times": {what they hold for: {operator: milliseconds}}}. What they hold
for is data type, device, threads and version of PyTorch, so one file serves several machines. A file that can't be
read is refused and left as it is: it may be something else that was named by mistake.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from secateur.costs.operator import Operator
from secateur.costs.stopwatch import Stopwatch, machine
from secateur.errors import CheckpointError
from secateur.files import write_json

log = logging.getLogger("secateur")

VERSION = 1
ROUNDS = 3

Times = dict[str, dict[str, float]]


class LatencyTable:
    """Times of operators in milliseconds, measured when they are first asked for.

    Args:
        file: JSON to start from and to add to; made if it is not there. None: nothing is read or written.
        stopwatch: what measures.
        seconds: no new measurement is begun after this time; what is then missing is estimated from the most similar
            operator that was measured, by the work it does.

    Raises:
        CheckpointError: the file is damaged, or can't be written.
    """

    def __init__(
        self, file: Path | str | None = None, *, stopwatch: Stopwatch | None = None, seconds: float = 20.0
    ) -> None:
        self.file = None if file is None else Path(file).expanduser()
        self.stopwatch = stopwatch or Stopwatch()
        self.seconds = seconds
        self.measured: Times = {} if self.file is None else _read(self.file)

    def times(self, operators: Iterable[Operator], device: torch.device, dtype: torch.dtype) -> dict[Operator, float]:
        """The time of each operator, those of most work measured first."""
        wanted = sorted(set(operators), key=lambda operator: (-operator.work, str(operator)))
        holds_for = f"{str(dtype).removeprefix('torch.')} on {machine(device)}, torch {torch.__version__}"
        known = self.measured.setdefault(holds_for, {})
        missing = [operator for operator in wanted if str(operator) not in known]
        if missing:
            self._measure(missing, known, device, dtype)
            if self.file is not None:
                _write(self.file, self.measured)
        exact = {operator: known[str(operator)] for operator in wanted if str(operator) in known}
        return {operator: exact.get(operator) or _estimate(operator, exact) for operator in wanted}

    def _measure(
        self, operators: list[Operator], known: dict[str, float], device: torch.device, dtype: torch.dtype
    ) -> None:
        """The shortest of several rounds over all of them: what disturbs the machine for a while spoils one round."""
        begin = time.perf_counter()
        for _ in range(ROUNDS):
            for operator in operators:
                try:
                    taken = max(self.stopwatch.operator(operator, device, dtype), 1e-6)
                except (
                    Exception
                ) as error:  # alone it may not run: another type, no memory; what is missing is estimated
                    log.debug("%s can't be timed: %s: %s", operator, type(error).__name__, error)
                    continue
                known[str(operator)] = min(taken, known.get(str(operator), math.inf))
                if time.perf_counter() - begin >= self.seconds:
                    return


def _estimate(operator: Operator, known: dict[Operator, float]) -> float:
    """From the operator of the same kind, if there is one, that does most nearly as much work."""
    if not known:
        return 1e-6 * operator.work
    like = min(known, key=lambda other: (other.kind != operator.kind, abs(math.log(other.work / operator.work))))
    return known[like] * operator.work / like.work


def _read(file: Path) -> Times:
    if not file.exists():
        if not file.parent.is_dir():
            raise CheckpointError(f"latency table {file}: there is no folder {file.parent} to write it to")
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["secateur_latency_table"] != VERSION:
            raise ValueError(f"version {content['secateur_latency_table']!r}; this release reads version {VERSION}")
        times = {str(what): {str(k): float(v) for k, v in rows.items()} for what, rows in content["times"].items()}
        bad = [key for rows in times.values() for key, value in rows.items() if not 0 < value < math.inf]
        if bad:
            raise ValueError(f"the time of {bad[0]!r} is not a number above 0")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is no latency table, or a damaged one ({type(error).__name__}: {error}); it was left as it is: "
            "delete it, and it will be measured anew, or name another file"
        ) from error
    return times


def _write(file: Path, times: Times) -> None:
    try:
        write_json(file, {"secateur_latency_table": VERSION, "times": times})
    except OSError as error:
        raise CheckpointError(f"latency table {file}: can't be written ({error})") from error
