"""Where the runs of a comparison are computed: as processes on this machine, or as jobs of a cluster."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from secateur.errors import UserError

__all__ = ["Job", "Launcher", "Processes", "Submitit", "launcher"]


class Job(Protocol):
    """A command under way."""

    def poll(self) -> int | None:
        """Its exit code; None as long as it runs."""

    def leave(self) -> None:
        """The user has pressed Ctrl-C: returns when it is over."""


class Launcher(Protocol):
    """Starts commands."""

    @property
    def at_once(self) -> int:
        """So many at a time."""

    @property
    def threads(self) -> int:
        """What each may use, unless its recipe says so."""

    def start(self, command: Sequence[str], console: Path, threads: int) -> Job:
        """Starts a command, whose output is appended to a file."""


@dataclass(frozen=True)
class Processes:
    """Processes on this machine, which share its threads."""

    at_once: int = 1

    @property
    def threads(self) -> int:
        return max(1, (os.cpu_count() or 1) // self.at_once)

    def start(self, command: Sequence[str], console: Path, threads: int) -> Job:
        with console.open("ab") as file:
            shown = None if self.at_once == 1 else file  # one at a time shows its own progress
            return _Process(subprocess.Popen(command, stdout=file, stderr=shown, env=_environment(threads)))


@dataclass(frozen=True)
class _Process:
    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        return self.process.poll()

    def leave(self) -> None:
        self.process.wait()  # Ctrl-C reached it as well: it saves and ends


@dataclass(frozen=True)
class Submitit:
    """Jobs of submitit: of SLURM where its commands are at hand, processes on this machine elsewhere.

    Args:
        folder: where submitit keeps its files; every machine sees it under this name, as it does the run folders.
        at_once: so many jobs at a time.
        settings: submitit's parameters, such as timeout_min, cpus_per_task, gpus_per_node, slurm_partition.

    Raises:
        UserError: submitit is not installed, or does not know a parameter.
    """

    folder: Path
    at_once: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self._executor  # mistakes show before any work

    @property
    def threads(self) -> int:
        return int(self.settings.get("cpus_per_task", 1))

    @cached_property
    def _executor(self) -> Any:
        try:
            from submitit import AutoExecutor
        except ImportError:
            raise UserError("submitit is not installed; get it with pip install submitit") from None
        executor = AutoExecutor(folder=self.folder)
        try:
            executor.update_parameters(name="secateur", **self.settings)
        except (NameError, TypeError, ValueError, AssertionError) as error:
            raise UserError(f"submitit refuses these settings: {error}") from error
        return executor

    def start(self, command: Sequence[str], console: Path, threads: int) -> Job:
        return _Submitted(self._executor.submit(carry_out, list(command), console, threads), console)


@dataclass(frozen=True)
class _Submitted:
    job: Any
    console: Path

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except Exception as error:  # the job died before the command did: out of time, of memory, its node gone
            lines = str(error).strip().splitlines() or [type(error).__name__]
            with self.console.open("a", encoding="utf-8") as file:
                file.write(f"job {self.job.job_id}: {lines[-1]}\n")
            return 1

    def leave(self) -> None:
        self.job.cancel(check=False)  # the run goes on from its last checkpoint when it is asked for again


def launcher(name: str, folder: Path, at_once: int, settings: Sequence[str]) -> Launcher:
    """A launcher by name.

    Args:
        name: "processes" or "submitit".
        folder: where a launcher may keep files.
        at_once: jobs at a time.
        settings: key=value, for submitit.

    Raises:
        UserError: there is none of this name, or it takes no such settings.
    """
    values: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"expected key=value for the launcher, got {text!r}")
        values[key] = int(value) if value.lstrip("-").isdigit() else value
    if name == "processes":
        if values:
            raise UserError("processes on this machine take no settings; they are for --launcher submitit")
        return Processes(at_once)
    if name == "submitit":
        return Submitit(folder / "jobs", at_once, values)
    raise UserError(f"unknown launcher {name!r}; expected processes or submitit")


def carry_out(command: Sequence[str], console: Path, threads: int) -> int:
    """Runs a command to its end where a job is; returns its exit code."""
    with Path(console).open("ab") as file:
        return subprocess.call(command, stdout=file, stderr=file, env=_environment(threads))


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}
