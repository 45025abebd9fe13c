"""Finished runs as they lie on disk, grouped into the rows of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from secateur.errors import RecipeError, RunFolderError

__all__ = ["RunRecord", "read_rows"]


@dataclass(frozen=True)
class RunRecord:
    """A run folder that holds a result; of what older runs did not leave there is nothing.

    Args:
        folder: the run folder.

    Raises:
        RunFolderError: there is no run, or it has not come to a result.
        RecipeError: a file is damaged.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "result.json").is_file():
            way_out = "" if self.folder.exists() else "; expected run folders, or a recipe.yaml with a list `methods:`"
            raise RunFolderError(f"{self.folder / 'result.json'}: there is no such file{way_out}")
        stages = self.result.get("stages") if isinstance(self.result, dict) else None
        if not isinstance(stages, list):
            raise RecipeError(f"{self.folder / 'result.json'} is no result of a run: it has no list of stages")

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of `result.json`."""
        return self._json("result.json")

    @cached_property
    def exhibits(self) -> dict[str, Any]:
        """The content of `exhibits.json`; empty where there is none."""
        return self._json("exhibits.json") if (self.folder / "exhibits.json").is_file() else {}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, in time; without one that a killed process left unfinished."""
        path, rows = self.folder / "metrics.jsonl", []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    @cached_property
    def recipe(self) -> str:
        """The resolved recipe, as text."""
        path = self.folder / "recipe.yaml"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def size(self, file: str) -> int | None:
        """Bytes of a file of the run, if it is there."""
        path = self.folder / file
        return path.stat().st_size if path.is_file() else None

    def _json(self, file: str) -> dict[str, Any]:
        path = self.folder / file
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise RecipeError(f"{path} is not JSON: {error}") from None


def read_rows(what: Sequence[str]) -> dict[str, list[RunRecord]]:
    """The rows of a table.

    Args:
        what: 'NAME=FOLDER,FOLDER' (the seeds of one row), 'FOLDER' of a run, or 'FOLDER' of a comparison with all of
            its rows.

    Raises:
        RunFolderError: there is no run, or two rows have one name.
        RecipeError: a run's file is damaged.
    """
    rows: dict[str, list[RunRecord]] = {}
    for text in what:
        name, equals, folders = text.partition("=")
        if equals:
            found = {name: [RunRecord(Path(folder)) for folder in folders.split(",")]}
        elif (Path(text) / "comparison.json").is_file():
            found = _of_comparison(Path(text))
        else:
            found = {Path(text).name or text: [RunRecord(Path(text))]}
        if twice := rows.keys() & found.keys():
            raise RunFolderError(f"two rows are called {min(twice)}; give them names, as in NAME={folders or text}")
        rows |= found
    return rows


def _of_comparison(folder: Path) -> dict[str, list[RunRecord]]:
    path, rows = folder / "comparison.json", dict[str, list[RunRecord]]()
    try:
        for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
            heading = f"{run['row']}, {run['budget']}" if run["budget"] else run["row"]
            rows.setdefault(heading, []).append(RunRecord(folder / run["folder"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path} is damaged ({type(error).__name__}: {error}); make the comparison again") from None
    if not rows:
        raise RunFolderError(f"{path}: no run of this comparison is done")
    return rows
