"""The whole experiment: train -> sparsify -> prune -> fine-tune -> evaluate, one recipe, one run folder.

Every stage takes what the stages before it left in the run folder and leaves its own results there, whether it follows
them in one process or not; so a run that was killed goes on exactly where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from secateur import report
from secateur.costs import cost
from secateur.data import Loader
from secateur.data.augment import normalise
from secateur.errors import RunFolderError
from secateur.files import atomic_path, write_json, write_text
from secateur.metrics import Confusion, Scores
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.record import Record, number, result_of, rung
from secateur.pipeline.same_recipe import check_same_recipe
from secateur.plan import Plan
from secateur.pruner import Pruner
from secateur.recipe import Recipe, dump_recipe
from secateur.surgery import load, save
from secateur.training import (
    MetricsLog,
    ProgressDisplay,
    Settings,
    evaluate,
    fit,
    latency,
    predict,
    read_state,
    recalibrate,
    seed_everything,
    write_state,
)
from secateur.training.devices import make_fabric
from secateur.training.run_folder import RunFolder
from secateur.training.weights import load_weights, save_weights

__all__ = ["STAGES", "Experiment"]

log = logging.getLogger(__name__)

STAGES = ("train", "sparsify", "prune", "finetune", "evaluate")
Training = Literal["train", "sparsify", "finetune"]  # the stages that train


class Experiment:
    """A recipe and the run folder that it is carried out in.

    Args:
        recipe: what to do.
        out: the run folder; made by the first stage that runs.
        resume: go on with the run in `out`, if there is one.
        command: the command line, for `result.json`.
        progress: shows what happens; on standard error by default.

    Everything that the recipe names is checked here, before anything is written: data, network, weights, plan, method,
    options, and, by cutting the untrained network, whether the budget can be met.

    Raises:
        RunFolderError: `out` is in use, or holds a run of another recipe.
        DataError, ModelError, MethodError, RecipeError, PlanError, CheckpointError: what the recipe names is wrong.
        NothingPrunableError, BudgetError: the budget is out of reach of this network and method.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path | str,
        resume: bool = False,
        command: str = "",
        progress: ProgressDisplay | None = None,
    ) -> None:
        self.recipe, self.command = recipe, command
        self.display = progress or ProgressDisplay()
        self.folder = RunFolder(Path(out))
        if self.folder.holds_a_run(resume):
            check_same_recipe(self.folder, recipe)
        if recipe.run.threads is not None:
            torch.set_num_threads(recipe.run.threads)
        self.fabric = make_fabric(recipe.run.accelerator, recipe.run.devices, recipe.run.precision)
        self.inputs = Inputs(recipe, self.fabric.device)
        # with several devices this starts the other processes, which come here through the same checks
        self.fabric.launch()
        if not self.fabric.is_global_zero:
            self.display.quiet = True

    # The stages, for those who call them

    def run(self) -> Record:
        """All stages that are not done yet; returns the content of `result.json`."""
        return self._perform(*STAGES)

    def train(self) -> Record:
        """Trains the network, and sparsifies it if the method asks for it; returns the result so far."""
        return self._perform("train", "sparsify")

    def prune(self) -> Record:
        """Cuts the trained network; returns the result so far: the ladder unpruned, pruned, recalibrated."""
        return self._perform("prune")

    def finetune(self) -> Record:
        """Trains the pruned network further; returns the result so far."""
        return self._perform("finetune")

    def evaluate(self) -> Record:
        """Measures the fine-tuned network, draws the picture and writes `result.json`, which it returns."""
        return self._perform("evaluate")

    def _perform(self, *stages: str) -> Record:
        done = self.folder.records()
        for earlier in STAGES[: STAGES.index(stages[0])]:
            if earlier not in done:
                raise RunFolderError(
                    f"{self.folder.path} has no finished stage {earlier!r}, which {stages[0]!r} needs; "
                    f"run `secateur train`, `prune`, `finetune` in this order with the same --out, or `secateur run`."
                )
        self._create_folder()
        with self.folder.logging(self.display, active=self.fabric.is_global_zero):
            for stage in stages:
                if stage not in done:
                    log.info("stage %s", stage)
                    self._finish(stage, getattr(self, f"_{stage}"))
            result = result_of(
                self.folder.records(), self.recipe, self.inputs.method_options, self.command, self.fabric.device
            )
            if "evaluate" in stages and self.fabric.is_global_zero:
                write_json(self.folder.result, result)
        return result

    # The stages, one by one: each returns what it wants remembered

    def _train(self) -> Record:
        model = self.inputs.network()
        if self.recipe.model.weights is not None:
            load_weights(model, self.recipe.model.weights)
        record = self._fit("train", model)
        if self.fabric.is_global_zero:
            save_weights(self.folder.parent, model)
        return {**record, "rows": [self._measure("unpruned", model)]}

    def _sparsify(self) -> Record:
        """With the method's hooks, or as ordinary training if it has none, so that all methods see as many epochs."""
        model = self.inputs.network()
        load_weights(model, self.folder.parent)
        method = self.inputs.method
        pruner = self.inputs.pruner(model) if method is not None and method.needs_training else None
        record = self._fit("sparsify", model, pruner)
        if self.fabric.is_global_zero:
            hooks = None if pruner is None else pruner.state_dict()
            write_state(self.folder.sparsified, {"model": dict(model.state_dict()), "hooks": hooks})
        return record

    def _prune(self) -> Record:
        state = read_state(self.folder.sparsified)
        model = self.inputs.network()
        model.load_state_dict(state["model"])
        if self.inputs.method is None:
            self._save_pruned(model, self.inputs.start_plan or Plan({}))
            return {"rows": []}
        pruner = self.inputs.pruner(self.inputs.to_be_cut(model))
        if state["hooks"] is not None:
            pruner.load_state_dict(state["hooks"])
        result = self.inputs.cut(pruner)
        self.display.line(str(result))
        rows = [self._measure("pruned", result.model)]
        # every process takes the same images, so that all come to the same statistics
        images = self.inputs.loader("train", self.recipe.train.batch_size, training=True)
        batches = recalibrate(result.model, images, self.recipe.evaluate.recalibrate_batches)
        if batches:
            rows.append(self._measure("recalibrated", result.model))
        self._save_pruned(result.model, result.plan)
        assert result.report is not None  # the verification is never switched off here
        return {
            "rows": rows,
            "budget": {what: dict(values) for what, values in result.budget.items()},
            "verification": {"relative_error": float(result.report.relative_error), "ok": bool(result.report.ok)},
            "recalibration_batches": batches,
            "warnings": list(result.warnings),
        }

    def _finetune(self) -> Record:
        model = load(self.folder.pruned, self.inputs.network(whole=True))
        record = self._fit("finetune", model)
        if self.fabric.is_global_zero:
            save(
                self.folder.model, model, Plan.from_json(self.folder.plan.read_text(encoding="utf-8", errors="replace"))
            )
        return record

    def _evaluate(self) -> Record:
        final = load(self.folder.model, self.inputs.network(whole=True))
        row = self._measure("finetuned", final)
        parent = self.inputs.network()
        load_weights(parent, self.folder.parent)
        self._draw({"unpruned": parent, "finetuned" if self.inputs.method is None else "pruned": final})
        return {"rows": [row]}

    # What the stages share

    def _finish(self, stage: str, work: Callable[[], Record]) -> None:
        begin = time.perf_counter()
        record = work()
        record.setdefault("seconds", time.perf_counter() - begin)
        if self.fabric.is_global_zero:
            self.folder.finish(stage, record)
        self.fabric.barrier()

    def _fit(self, stage: Training, model: nn.Module, pruner: Pruner | None = None) -> Record:
        recipe = self.recipe.stage(stage)
        shared = recipe.model_dump(exclude={"batch_size", "class_weights"})
        earlier = get_args(Training)[: get_args(Training).index(stage)]
        metrics = MetricsLog(self.folder.metrics, self.folder.tensorboard if self.recipe.run.tensorboard else None)
        seed_everything(self.recipe.run.seed + STAGES.index(stage))
        try:
            result = fit(
                model,
                self._loader(recipe.batch_size),
                Settings(
                    **shared,
                    checkpoint_minutes=self.recipe.run.checkpoint_minutes,
                    channels_last=self.recipe.run.channels_last,
                ),
                self.fabric,
                stage=stage,
                first_epoch=sum(self.recipe.stage(name).epochs for name in earlier),
                class_weights=None if recipe.class_weights == "none" else self.inputs.class_weights,
                hooks=pruner,
                evaluate=self._scores,
                checkpoints=self.folder.checkpoints_of(stage),
                metrics=metrics,
                display=self.display,
            )
        finally:
            metrics.close()
        scores = result.scores
        return {
            "steps": result.steps,
            "seconds": result.seconds,
            "waiting_share": result.waiting_share,
            "miou": None if scores is None else number(scores.miou),
        }

    def _loader(self, batch_size: int) -> Loader:
        rank, of = self.fabric.global_rank, self.fabric.world_size
        return self.inputs.loader("train", batch_size, training=True, augment=True, rank=rank, of=of)

    @cached_property
    def _val_loader(self) -> Loader:
        rank, of = self.fabric.global_rank, self.fabric.world_size
        return self.inputs.loader("val", self.recipe.evaluate.batch_size, rank=rank, of=of)

    def _save_pruned(self, model: nn.Module, plan: Plan) -> None:
        if self.fabric.is_global_zero:
            write_text(self.folder.plan, plan.to_json())
            save(self.folder.pruned, model, plan)

    def _measure(self, stage: str, model: nn.Module) -> Record:
        """One rung of the accuracy ladder."""
        counted = cost(model.to("cpu"), self.inputs.example)
        if self.recipe.run.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.to(self.fabric.device)
        scores = self._scores(model)
        repeats = self.recipe.evaluate.latency_repeats
        row = rung(stage, scores, counted, latency(model, self.inputs.example, repeats) if repeats else None)
        size = f"{counted.params:,} parameters, {counted.macs:,} MACs"
        self.display.line(f"{stage}: mIoU {100 * scores.miou:.1f} %, {size}")
        return row

    def _scores(self, model: nn.Module) -> Scores:
        confusion = Confusion(self.inputs.data["val"].classes, self.inputs.data["val"].ignore_index, self.fabric.device)
        return evaluate(model, self._val_loader, confusion)

    def _draw(self, networks: dict[str, nn.Module]) -> None:
        val = self.inputs.data["val"]
        wanted = min(self.recipe.evaluate.pictures, len(val))
        if not wanted or not self.fabric.is_global_zero:
            return
        samples = [val.read(int(index)) for index in np.linspace(0, len(val) - 1, wanted)]
        inputs = [torch.from_numpy(normalise(sample.image)).permute(2, 0, 1)[None] for sample in samples]
        rows = {name: [predict(model, image)[0].numpy() for image in inputs] for name, model in networks.items()}
        with atomic_path(self.folder.picture) as temporary:
            images, labels = [s.image for s in samples], [s.label for s in samples]
            report.picture(temporary, images, labels, rows, val.palette, val.classes)

    def _create_folder(self) -> None:
        if self.fabric.is_global_zero:
            self.folder.create()
            if not self.folder.recipe.exists():
                write_text(self.folder.recipe, dump_recipe(self.recipe))
        self.fabric.barrier()
