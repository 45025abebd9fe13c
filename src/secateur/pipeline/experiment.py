"""The whole experiment: train -> sparsify -> prune -> fine-tune -> evaluate, one recipe, one run folder.

Every stage takes what the stages before it left in the run folder and leaves its own results there, whether it follows
them in one process or not; so a run that was killed goes on exactly where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from secateur.allocate import Guard
from secateur.data import Loader
from secateur.errors import RunFolderError
from secateur.files import write_json, write_text
from secateur.graph import Graph
from secateur.methods import Gating
from secateur.pipeline.announcement import announcement
from secateur.pipeline.exhibits import scales_of, widths_of, write_report
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.judge import Judge
from secateur.pipeline.measuring import Measuring
from secateur.pipeline.record import Record, result_of
from secateur.pipeline.same_recipe import check_same_recipe
from secateur.pipeline.stages import STAGES, STEP, stages_of, train_stage
from secateur.plan import Plan
from secateur.pruner import Pruner, Result
from secateur.recipe import Recipe, dump_recipe
from secateur.surgery import compensate, load, save
from secateur.training import ProgressDisplay, read_state, recalibrate, write_state
from secateur.training.devices import make_fabric
from secateur.training.evaluate import device_of
from secateur.training.failures import refusals_told
from secateur.training.run_folder import RunFolder
from secateur.training.weights import load_weights, save_weights

__all__ = ["STAGES", "Experiment"]

log = logging.getLogger(__name__)


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
        self.measuring = Measuring(self.inputs, self.fabric, self.display)
        self.stages = stages_of(recipe)

    # The stages, for those who call them

    def run(self) -> Record:
        """All stages that are not done yet; returns the content of `result.json`."""
        return self._perform(*self.stages)

    def train(self) -> Record:
        """Trains the network, and sparsifies it if the method asks for it; returns the result so far."""
        return self._perform("train", "sparsify")

    def prune(self) -> Record:
        """Cuts the trained network, in the steps of the schedule; returns the result so far: the ladder unpruned,
        pruned, recalibrated."""
        return self._perform(*(stage for stage in self.stages if stage.startswith(STEP)), "prune")

    def finetune(self) -> Record:
        """Trains the pruned network further; returns the result so far."""
        return self._perform("finetune")

    def evaluate(self) -> Record:
        """Measures the fine-tuned network, draws the picture and writes `result.json`, which it returns."""
        return self._perform("evaluate")

    def _perform(self, *stages: str) -> Record:
        done = self.folder.records()
        for earlier in self.stages[: self.stages.index(stages[0])]:
            if earlier not in done:
                raise RunFolderError(
                    f"{self.folder.path} has no finished stage {earlier!r}, which {stages[-1]!r} needs; "
                    f"run `secateur train`, `prune`, `finetune` in this order with the same --out, or `secateur run`."
                )
        self._create_folder()
        stage = stages[0]
        with (
            self.folder.logging(self.display, active=self.fabric.is_global_zero),
            refusals_told(lambda: f"stage {stage}"),
        ):
            if left := [stage for stage in stages if stage not in done]:
                for line in announcement(self.inputs, left, list(done), self.fabric.device):
                    self.display.line(line)
            for stage in stages:
                if stage not in done:
                    log.info("stage %s", stage)
                    step = stage.removeprefix(STEP)
                    self._finish(stage, partial(self._step, int(step)) if step != stage else getattr(self, f"_{stage}"))
            result = result_of(
                self.folder.records(),
                self.recipe,
                self.inputs.method_options,
                self.inputs.data["train"].rarest,
                self.command,
                self.fabric.device,
            )
            if "evaluate" in stages and self.fabric.is_global_zero:
                write_json(self.folder.result, result)
                write_report(self.folder.path / "report.html", [str(self.folder.path)])
        return result

    # The stages, one by one: each returns what it wants remembered

    def _train(self) -> Record:
        model = self.inputs.network()
        if self.recipe.model.weights is not None:
            load_weights(model, self.recipe.model.weights)
        record = self._fit("train", model)
        if self.fabric.is_global_zero:
            save_weights(self.folder.parent, model)
        return {**record, "rows": [self.measuring.row("unpruned", model)]}

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

    def _step(self, number: int) -> Record:
        """One of several cuts, not the last."""
        pruner, record = self._ready_to_cut(number)
        graph, earlier = pruner.graph, pruner.plan
        result = self.inputs.cut(pruner, number, self._guard)
        hooks = pruner.state_dict()
        pruner.close()
        self._carry_over(graph, earlier, result)
        row = self.measuring.row(f"{STEP}{number}", result.model)
        if self.fabric.is_global_zero:
            write_state(self.folder.cut(number), {"model": dict(result.model.state_dict()), "hooks": hooks})
        return {**record, "cut": {**row, **_told(result)}}

    def _prune(self) -> Record:
        if self.inputs.method is None or not self.inputs.method.prunes:
            return self._keep_all()
        pruner, record = self._ready_to_cut(self.recipe.schedule.steps)
        graph, earlier = pruner.graph, pruner.plan
        if self.fabric.is_global_zero:
            pruner.method.note_decisions(self.folder.path / "decisions.json")
        result = self.inputs.cut(pruner, guard=self._guard)
        self.display.line(str(result))
        rows = [self.measuring.row("pruned", result.model)]
        compensation = self._carry_over(graph, earlier, result)
        if compensation is not None:
            rows.append(self.measuring.row("compensated", result.model))
        batches = 0
        # with least squares the statistics fit already: estimating them anew takes part of what was won away again
        if self.recipe.compensate.mode != "least_squares":
            batches = recalibrate(result.model, self._plain_images(), self.recipe.evaluate.recalibrate_batches)
        if batches:
            rows.append(self.measuring.row("recalibrated", result.model))
        self._save_pruned(result.model, result.plan)
        return {
            **record,
            "rows": rows,
            **_told(result),
            "compensation": compensation,
            "recalibration_batches": batches,
        }

    def _keep_all(self) -> Record:
        """Without a method, or with one that gates channels: nothing is cut."""
        state, model = read_state(self.folder.sparsified), self.inputs.network()
        model.load_state_dict(state["model"])
        self._save_pruned(model, self.inputs.start_plan or Plan({}))
        method = self.inputs.method
        if method is None:
            return {"rows": []}
        text = f"{method.name} {method.summary}: the network is as large as before, and the budget was not used"
        log.warning(text)
        pruner, gating = self._gated(model)
        if self.fabric.is_global_zero:
            save_weights(self.folder.gates, gating.gates)
        row = self.measuring.row("gated", model, gating)
        pruner.close()
        return {"rows": [row], "warnings": [text]}

    def _gated(self, model: nn.Module) -> tuple[Pruner, Gating]:
        """The method attached to the network, as the sparsity training left it."""
        pruner = self.inputs.pruner(model)
        pruner.load_state_dict(read_state(self.folder.sparsified)["hooks"])
        assert isinstance(pruner.method, Gating)
        return pruner, pruner.method

    @property
    def _gates(self) -> bool:
        """The method stays with the network, and goes on training in the fine-tuning."""
        return self.inputs.method is not None and not self.inputs.method.prunes

    def _finetune(self) -> Record:
        model = load(self.folder.pruned, self.inputs.network(whole=True))
        pruner, gating = self._gated(model) if self._gates else (None, None)
        record = self._fit("finetune", model, pruner)
        if self.fabric.is_global_zero and gating is not None:
            save_weights(self.folder.gates, gating.gates)
        if self.fabric.is_global_zero:
            save(
                self.folder.model, model, Plan.from_json(self.folder.plan.read_text(encoding="utf-8", errors="replace"))
            )
        return record

    def _evaluate(self) -> Record:
        final = load(self.folder.model, self.inputs.network(whole=True))
        gating, name = None, "finetuned" if self.inputs.method is None else "pruned"
        if self._gates:
            (_, gating), name = self._gated(final), "gated"
            load_weights(gating.gates, self.folder.gates)
        row = self.measuring.row("finetuned", final, gating)
        self.measuring.draw_confusion(self.folder.confusion, self.folder.confusion_picture)
        parent = self.inputs.network()
        load_weights(parent, self.folder.parent)
        drawn = self.measuring.draw(self.folder.picture, {"unpruned": parent, name: final})
        if self.fabric.is_global_zero:
            self._exhibit(drawn, parent, final)
        return {"rows": [row]}

    def _exhibit(self, drawn: Record, parent: nn.Module, final: nn.Module) -> None:
        """Leaves what the report shows beside numbers."""
        states = {"before the sparsity training": parent.state_dict()}
        if self.folder.sparsified.is_file():
            states["after it"] = read_state(self.folder.sparsified)["model"]
        exhibits = {**drawn, "widths": widths_of(parent, final), "scales": scales_of(parent, states)}
        write_json(self.folder.path / "exhibits.json", exhibits)

    # What the stages share

    @cached_property
    def _guard(self) -> Guard | None:
        """What the cut must keep to; it falls from the unpruned network's scores."""
        settings = self.recipe.guard
        if not settings.limits:
            return None
        judge = Judge(self.inputs, settings.images, settings.recalibrate_batches)
        parent = self.inputs.network()
        load_weights(parent, self.folder.parent)
        return Guard(judge, settings.limits, judge.whole(parent))

    def _fit(self, stage: str, model: nn.Module, pruner: Pruner | None = None) -> Record:
        return train_stage(stage, model, self.inputs, self.folder, self.fabric, self.measuring, pruner)

    def _ready_to_cut(self, number: int) -> tuple[Pruner, Record]:
        """The pruner of the network as the cut before left it, or the sparsity training, and trained since; and the
        record of this training."""
        state = read_state(self.folder.cut(number - 1))
        model = self.inputs.network()
        if number == 1:
            model.load_state_dict(state["model"])
        pruner = self.inputs.pruner(self.inputs.to_be_cut(model))
        if state["hooks"] is not None:
            pruner.load_state_dict(state["hooks"])
        if number == 1:
            return pruner, {}
        model.load_state_dict(state["model"])  # of the shapes that the pruner has just cut it to
        device = device_of(model)
        stage = f"{STEP}{number}"
        record = self._fit(stage, model, pruner if pruner.needs_training else None)
        model.to(device)  # where the pruner's example inputs are
        if self.fabric.is_global_zero:
            self.folder.checkpoints_of(stage).tidy()
        kept = {"steps": record["steps"], "trained_miou": record["miou"], "unreadable": record["unreadable"]}
        return pruner, kept

    def _carry_over(self, graph: Graph, earlier: Plan, result: Result) -> Record | None:
        """Puts into the weights that stay what a cut took away, if the recipe says so.

        Args:
            graph: of the network in front of the cut.
            earlier: what had been removed from the original by then.
            result: of the cut; its network is changed.
        """
        settings = self.recipe.compensate
        if settings.mode == "none":
            return None
        carried = compensate(
            graph.model.to(self.fabric.device),
            graph,
            result.plan.since(earlier),
            self._plain_images().epoch(0),
            settings.mode,
            batches=settings.batches,
            new_biases=False,  # the file of the pruned network must fit the network as its factory makes it
        )
        result.model.load_state_dict(carried.model.state_dict())
        log.info("%s", carried)
        left_alone = [str(consumer) for consumer in carried.left_alone]
        return {"mode": settings.mode, "consumers": len(carried.consumers), "left_alone": left_alone}

    def _plain_images(self) -> Loader:
        """Training images as they are; the same for every process, so that all come to the same statistics."""
        return self.inputs.loader("train", self.recipe.train.batch_size, training=True)

    def _finish(self, stage: str, work: Callable[[], Record]) -> None:
        begin = time.perf_counter()
        record = work()
        record.setdefault("seconds", time.perf_counter() - begin)
        if self.fabric.is_global_zero:
            self.folder.finish(stage, record)
        self.fabric.barrier()

    def _save_pruned(self, model: nn.Module, plan: Plan) -> None:
        if self.fabric.is_global_zero:
            write_text(self.folder.plan, plan.to_json())
            save(self.folder.pruned, model, plan)

    def _create_folder(self) -> None:
        if self.fabric.is_global_zero:
            with refusals_told(lambda: "the beginning of the run"):
                self.folder.create()
                if not self.folder.recipe.exists():
                    write_text(self.folder.recipe, dump_recipe(self.recipe))
        self.fabric.barrier()


def _told(result: Result) -> Record:
    """What a cut was asked, what it came to, whether it is exact, and what is to be warned of."""
    assert result.report is not None  # the verification is never switched off here
    return {
        "budget": {what: dict(values) for what, values in result.budget.items()},
        "verification": {"relative_error": float(result.report.relative_error), "ok": bool(result.report.ok)},
        "warnings": list(result.warnings),
        "pinned": [
            {"name": group.name, "units": len(group), "why": str(group.pinned)}
            for group in result.graph.groups
            if group.pinned
        ],
    }
