"""The runs of a comparison: one folder a row; stages that several rows have in common are computed once.

Every run is a process of its own, `secateur run FOLDER --resume`, so that one that fails leaves the others alone, and
can be run again by itself.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.allocate import select
from secateur.data import open_dataset
from secateur.errors import CannotError, RunFolderError, SecateurError
from secateur.files import write_json, write_text
from secateur.graph import trace
from secateur.methods import get_method
from secateur.models import create_model
from secateur.pipeline.exhibits import write_report
from secateur.pipeline.launch import Job, Launcher, Processes
from secateur.pipeline.same_recipe import check_same_recipe
from secateur.recipe import Recipe, Row, dump_recipe
from secateur.report import comparison_table, rung
from secateur.training.run_folder import RunFolder

__all__ = ["Comparison"]

SHARED = ("train", "sparsify")
POLL = 0.2  # seconds between two looks at running processes


@dataclass
class Comparison:
    """The rows of a comparison and the folder that their runs lie in.

    Args:
        rows: what is compared.
        out: the folder; every row has one of its own in it.
        launcher: carries the runs out; one after the other on this machine unless somebody says otherwise.
        say: takes a line on what happens.

    Raises:
        RunFolderError: a row's folder holds a run of another recipe.
    """

    rows: Sequence[Row]
    out: Path
    launcher: Launcher = field(default_factory=Processes)
    say: Callable[[str], None] = print
    _running: dict[str, Job] = field(default_factory=dict)
    _failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._keys = {(row.name, stage): stage_key(row.recipe, stage) for row in self.rows for stage in SHARED}
        for row in self.rows:
            if self.folder(row).holds_a_run(resume=True) and not row.scratch:
                check_same_recipe(self.folder(row), row.recipe)

    def folder(self, row: Row) -> RunFolder:
        return RunFolder(self.out / row.name)

    def run(self) -> dict[str, Any]:
        """Makes the runs that are not done yet; returns the content of `comparison.json`.

        Raises:
            CannotError: rows failed, after all others were made; names them and what each said.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            while waiting := [row for row in self.rows if self._waits(row)]:
                for row in waiting:
                    if len(self._running) < self.launcher.at_once and self._may_start(row):
                        self._start(row)
                if not self._running:
                    for row in waiting:  # what they wait for has failed
                        self._failed[row.name] = f"{row.scratch or 'a run it shares a stage with'} failed"
                    break
                self._collect()
            while self._running:
                self._collect()
        finally:
            for job in self._running.values():  # after Ctrl-C
                job.leave()
        record = self.record()
        write_json(self.out / "comparison.json", record)
        write_text(self.out / "comparison.md", self.table() + "\n")
        if record["runs"]:
            write_report(self.out / "report.html", [str(self.out)])
        if self._failed:
            said = "\n  ".join(f"{name}: {text}" for name, text in self._failed.items())
            raise CannotError(
                f"{len(self._failed)} of {len(self.rows)} runs failed; the same command runs them again, and "
                f"`secateur run {self.out}/NAME --resume` one alone:\n  {said}"
            )
        return record

    def record(self) -> dict[str, Any]:
        """Every run that is done: its row, its budget, its seed and its `result.json`."""
        runs = [
            {"row": row.label, "budget": row.budget, "seed": row.recipe.run.seed, "folder": row.name, "result": result}
            for row, result in self._results()
        ]
        return {"runs": runs, "failed": dict(self._failed)}

    def table(self) -> str:
        """The Markdown tables of what is done."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row, result in self._results():
            found.setdefault(row.heading, []).append(result)
        return comparison_table(found)

    def _results(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        for row in self.rows:
            if self._done(row):
                yield row, json.loads(self.folder(row).result.read_text(encoding="utf-8"))

    # Which row next

    def _done(self, row: Row) -> bool:
        return "evaluate" in self.folder(row).records()

    def _waits(self, row: Row) -> bool:
        return not (row.name in self._running or row.name in self._failed or self._done(row))

    def _may_start(self, row: Row) -> bool:
        """Neither the row it imitates nor one of its stages is still to come from elsewhere."""
        if row.scratch:
            return self._done(self._imitated(row))
        running = [other for other in self.rows if other.name in self._running]
        for stage in SHARED:
            key = self._keys[row.name, stage]
            if self._source(row, stage) is None:
                return not any(not other.scratch and self._keys[other.name, stage] == key for other in running)
        return True

    def _source(self, row: Row, stage: str) -> RunFolder | None:
        """A run that has finished this stage, and has it in common with the row; its own before others'."""
        key = self._keys[row.name, stage]
        for other in (row, *self.rows):
            if not other.scratch and self._keys[other.name, stage] == key and stage in self.folder(other).records():
                return self.folder(other)
        return None

    def _imitated(self, row: Row) -> Row:
        same = [r for r in self.rows if r.label == row.scratch and r.recipe.run.seed == row.recipe.run.seed]
        return next((r for r in same if r.budget == row.budget), same[0])

    # Processes

    def _start(self, row: Row) -> None:
        folder = self.folder(row)
        begun = folder.recipe.is_file()
        if not begun:
            try:
                self._prepare(row, folder)
            except SecateurError as error:
                self._failed[row.name] = str(error)
                self.say(f"{row.name}: failed")
                return
        threads = row.recipe.run.threads or self.launcher.threads
        command = [sys.executable, "-m", "secateur", "run", str(folder.path), f"run.threads={threads}", "--resume"]
        self.say(f"{row.name}: {'going on' if begun else 'begun'}")
        self._running[row.name] = self.launcher.start(command, folder.path / "console.txt", threads)

    def _prepare(self, row: Row, folder: RunFolder) -> None:
        """The row's folder with its recipe, and with the stages that another run has made already."""
        recipe = row.recipe
        if row.scratch:
            folder.create()
            recipe = self._narrow(row, folder.path / "uniform.json")
        else:
            stages = [stage for stage in SHARED if self._source(row, stage) is not None]
            if stages:
                source = self._source(row, stages[-1])
                assert source is not None
                folder.adopt(source, stages)
        folder.create()
        write_text(folder.recipe, dump_recipe(recipe))

    def _narrow(self, row: Row, path: Path) -> Recipe:
        """Writes the plan of a network of the imitated row's MACs, the same share of every layer gone, and returns the
        recipe that trains it from scratch for as many epochs."""
        recipe = row.recipe
        result = json.loads(self.folder(self._imitated(row)).result.read_text(encoding="utf-8"))
        macs = rung(result, "finetuned")["macs"]
        data = recipe.data
        opened = open_dataset(data.name, data.root, data.train_split, data.size, limit=1, **data.options)
        classes = len(opened.classes)
        options = {**recipe.model.options, **({} if recipe.model.width is None else {"width": recipe.model.width})}
        graph = trace(create_model(recipe.model.name, classes=classes, **options), torch.zeros(1, 3, *data.input_size))
        plan = select(graph, np.zeros(graph.units), budget={"macs": float(macs)}, scope="group", min_keep=0.0)
        write_text(path, plan.to_json())
        return recipe.model_copy(update={"model": recipe.model.model_copy(update={"plan": path})})

    def _collect(self) -> None:
        """Takes leave of the processes that have ended."""
        time.sleep(POLL)
        for name, job in [*self._running.items()]:
            code = job.poll()
            if code is None:
                continue
            del self._running[name]
            if code == 130:
                raise KeyboardInterrupt
            if code:
                console = self.out / name / "console.txt"
                said = console.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
                self._failed[name] = f"exit code {code}; {said or f'see {self.out / name}'}"
            self.say(f"{name}: {'failed' if code else self._came_to(name)}")

    def _came_to(self, name: str) -> str:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            result = json.loads((self.out / name / "result.json").read_text(encoding="utf-8"))
            return f"mIoU {100 * rung(result, 'finetuned')['miou']:.1f} %"
        raise RunFolderError(f"{self.out / name} has no result though its run ended well")


def stage_key(recipe: Recipe, stage: str) -> str:
    """What determines the outcome of a shared stage, as text: equal for rows that have the stage in common."""
    values = recipe.model_dump(mode="json")
    parts = {name: values[name] for name in ("data", "model", "train", "evaluate", "run")}
    if stage == "sparsify":
        parts["sparsify"] = values["sparsify"]
        method = None if recipe.method.name == "none" else get_method(recipe.method.name)
        if method is not None and method.needs_training:
            parts["method"] = values["method"]
            if method.decides:
                parts["budget"] = values["budget"]
    return json.dumps(parts, sort_keys=True)
