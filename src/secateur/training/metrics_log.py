"""What training logs for the eye: `metrics.jsonl`, one JSON object a line, and TensorBoard events beside it."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secateur.files import atomic_path
from secateur.training.events import EventFile

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends lines to `metrics.jsonl`, and the same numbers as scalars to TensorBoard.

    Args:
        path: the file; its folder must exist.
        tensorboard: folder of the event files, or None for none.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None) -> None:
        self.path = Path(path)
        self._tensorboard = tensorboard
        self._events: EventFile | None = None

    def rewind(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drops every line for which `keep` is false, and a half-written last one: they will be logged again."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if (record := _parse(line)) is not None and keep(record)]
        if kept != lines:
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")

    def write(self, record: dict[str, Any], step: int) -> None:
        """Appends one line, on the disk when this returns.

        Args:
            record: JSON values; a number that is not finite becomes null.
            step: optimizer steps since the beginning of the run, TensorBoard's horizontal axis.
        """
        clean = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        scalars = {
            f"{clean.get('stage', 'run')}/{key}": float(value)
            for key, value in clean.items()
            if isinstance(value, int | float) and key not in ("epoch", "step")
        }
        self.show(lambda events: events.scalars(scalars, step), step)

    def show(self, what: Callable[[EventFile], None], step: int) -> None:
        """Writes something else to TensorBoard, if that is wanted; it can be looked at when this returns.

        Args:
            what: is given the event file.
            step: as in `write`.
        """
        if self._tensorboard is None:
            return
        if self._events is None:
            self._events = EventFile(self._tensorboard, step)
        what(self._events)
        self._events.flush()

    def close(self) -> None:
        """Closes the event file."""
        events, self._events = self._events, None
        if events is not None:
            with contextlib.suppress(OSError):  # of what the disk has refused before, and that was told then
                events.close()


def _parse(line: str) -> dict[str, Any] | None:
    if not line.endswith("\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
