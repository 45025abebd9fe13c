"""What training logs for the eye: `metrics.jsonl`, one JSON object a line, and TensorBoard events beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secateur.files import atomic_path

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
        self._writer: Any = None

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
        if self._tensorboard is not None:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # takes a second to import

                # events of steps from here on are an interrupted attempt's: TensorBoard hides them
                self._writer = SummaryWriter(str(self._tensorboard), purge_step=step)
            for key, value in clean.items():
                if isinstance(value, int | float) and key not in ("epoch", "step"):
                    self._writer.add_scalar(f"{clean.get('stage', 'run')}/{key}", value, step)
            self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _parse(line: str) -> dict[str, Any] | None:
    if not line.endswith("\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
