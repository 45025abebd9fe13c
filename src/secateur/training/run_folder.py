"""The folder in which a run leaves everything: where each file is, and which stages are done."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from secateur.errors import CheckpointError, RunFolderError
from secateur.files import copy_file, is_temporary, remove_temporary, write_json, write_text
from secateur.training.checkpoint import CheckpointFolder
from secateur.training.progress import ProgressDisplay

__all__ = ["RunFolder"]

Record = dict[str, Any]


class RunFolder:
    """A run on disk. A stage is done when its record is in `checkpoints/stages.json`, which is written after everything
    else that the stage leaves; every file appears whole or not at all, so a run can be killed at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.plan = self.path / "plan.json"
        self.parent = self.path / "parent.safetensors"
        self.model = self.path / "model.safetensors"
        self.gates = self.path / "gates.safetensors"
        self.log = self.path / "log.txt"
        self.tensorboard = self.path / "tensorboard"
        self.picture = self.path / "pictures" / "compare.png"
        self.confusion = self.path / "confusion.json"
        self.confusion_picture = self.path / "pictures" / "confusion.png"
        self.checkpoints = self.path / "checkpoints"
        self.sparsified = self.checkpoints / "sparsified.safetensors"
        self.pruned = self.checkpoints / "pruned.safetensors"
        self._stages = self.checkpoints / "stages.json"

    def holds_a_run(self, resume: bool) -> bool:
        """Whether there is a run to go on with.

        Raises:
            RunFolderError: the folder is in use and `resume` is false, or it holds something that is no run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; choose another --out.")
        if not self.path.exists() or all(self._is_of_a_beginning(entry) for entry in self.path.iterdir()):
            return False
        if not self.recipe.is_file():
            raise RunFolderError(f"{self.path} is not empty and holds no run (no recipe.yaml); choose another --out.")
        if not resume:
            raise RunFolderError(f"{self.path} already holds a run; choose another --out, or go on with --resume.")
        return True

    def _is_of_a_beginning(self, entry: Path) -> bool:
        """All that is there when a run is stopped before its recipe is written."""
        own = entry in (self.checkpoints, self.picture.parent) and entry.is_dir()
        return is_temporary(entry) or (own and not any(entry.iterdir()))

    def create(self) -> None:
        """Makes the folders, and removes what a killed process left half-written.

        Raises:
            RunFolderError: this user may not write there.
        """
        for folder in (self.path, self.checkpoints, self.picture.parent):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                remove_temporary(folder)
            except (PermissionError, FileExistsError, NotADirectoryError) as error:
                raise RunFolderError(
                    f"{folder} can't be made or written ({error.strerror}); choose another --out."
                ) from error

    def records(self) -> dict[str, Record]:
        """What the stages done so far have recorded, in the order in which they were done."""
        if not self._stages.is_file():
            return {}
        try:
            return json.loads(self._stages.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{self._stages} is damaged ({error}); start again in another --out.") from error

    def finish(self, stage: str, record: Record) -> None:
        """Marks the stage done."""
        write_json(self._stages, {**self.records(), stage: record})
        self.checkpoints_of(stage).tidy(keep=1)

    def adopt(self, other: RunFolder, stages: Sequence[str]) -> None:
        """Takes over finished stages of another run, the first ones, as if they had been made here.

        Args:
            other: a run whose recipe says the same of these stages.
            stages: "train", or "train" and "sparsify".
        """
        self.create()
        for mine, its in ((self.parent, other.parent), (self.sparsified, other.sparsified)):
            if mine != self.sparsified or "sparsify" in stages:
                copy_file(its, mine)
        if other.metrics.is_file():
            lines = other.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self.metrics, "".join(line for line in lines if json.loads(line).get("stage") in stages))
        records = other.records()
        write_json(self._stages, {stage: records[stage] for stage in stages})

    def cut(self, step: int) -> Path:
        """The network after one of several cuts (1 is the first); after none, the sparsified one."""
        return self.checkpoints / f"cut-{step}.safetensors" if step else self.sparsified

    def checkpoints_of(self, stage: str) -> CheckpointFolder:
        """The training checkpoints of one stage."""
        return CheckpointFolder(self.checkpoints / stage)

    @contextlib.contextmanager
    def logging(self, display: ProgressDisplay, active: bool = True) -> Iterator[None]:
        """Meanwhile, if `active`, what secateur logs is appended to log.txt, and its warnings are shown."""
        if not active:
            yield
            return
        logger = logging.getLogger("secateur")
        to_file = _ToFile(self.log, display)
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        to_user = _Shown(display)
        level = logger.level
        logger.addHandler(to_file)
        logger.addHandler(to_user)
        logger.setLevel(logging.INFO)
        try:
            yield
        except BaseException as error:
            logger.info("stopped by %s: %s", type(error).__name__, error)
            raise
        finally:
            logger.setLevel(level)
            logger.removeHandler(to_user)
            logger.removeHandler(to_file)
            to_file.close()


class _ToFile(logging.FileHandler):
    """Appends to log.txt; where the disk refuses, it says so once, and the run goes on without."""

    def __init__(self, path: Path, display: ProgressDisplay) -> None:
        super().__init__(path, encoding="utf-8")
        self.display, self.refused = display, False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.refused:
            self.refused = True
            self.display.show(f"warning: {self.baseFilename} can't be written ({error.strerror or error})")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what the disk refused is tried once more
            super().close()


class _Shown(logging.Handler):
    """Shows warnings above the progress bar."""

    def __init__(self, display: ProgressDisplay) -> None:
        super().__init__(logging.WARNING)
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        self.display.show(f"warning: {record.getMessage()}")
