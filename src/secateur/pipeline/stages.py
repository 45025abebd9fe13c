"""The stages of a run by name, and how those that train do it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from secateur.pipeline.inputs import Inputs
from secateur.pipeline.measuring import Measuring
from secateur.pipeline.record import Record, number
from secateur.pruner import Pruner
from secateur.recipe import Recipe, Train
from secateur.training import MetricsLog, Settings, fit, seed_everything
from secateur.training.distill import Distillation
from secateur.training.run_folder import RunFolder
from secateur.training.weights import load_weights

__all__ = ["STAGES", "STEP", "stages_of", "train_stage", "training_steps"]

log = logging.getLogger(__name__)
STAGES = ("train", "sparsify", "prune", "finetune", "evaluate")
STEP = "step-"  # of several cuts, all but the last are stages of their own in front of "prune": step-1, step-2 ...


def stages_of(recipe: Recipe) -> tuple[str, ...]:
    """All stages of a recipe, in their order."""
    steps = (f"{STEP}{step}" for step in range(1, recipe.schedule.steps))
    return (*STAGES[:2], *steps, *STAGES[2:])


def trainings_of(recipe: Recipe) -> list[str]:
    """The stages that train; of several cuts all but the first have a training in front of them."""
    return ["train", "sparsify", *(f"{STEP}{step}" for step in range(2, recipe.schedule.steps + 1)), "finetune"]


def training_steps(inputs: Inputs) -> dict[str, tuple[int, int]]:
    """Epochs and optimizer steps of every training, by its name."""
    recipe, steps = inputs.recipe, {}
    for stage in trainings_of(recipe):
        section = _section(recipe, stage)
        batches = len(inputs.loader("train", section.batch_size, training=True, of=recipe.run.devices))
        steps[stage] = section.epochs, section.epochs * -(-batches // section.accumulate)
    return steps


def train_stage(
    stage: str,
    model: nn.Module,
    inputs: Inputs,
    folder: RunFolder,
    fabric: Fabric,
    measuring: Measuring,
    pruner: Pruner | None = None,
) -> Record:
    """Trains a network, in place, as the recipe says for this stage: "train", "sparsify", "finetune", or a step's
    training in front of its cut. Goes on from the stage's newest checkpoint.

    Returns:
        Optimizer steps, seconds, the share of them spent waiting, and the last mIoU.
    """
    recipe = inputs.recipe
    trainings = trainings_of(recipe)
    steps = trainings[2:-1]
    settings = _section(recipe, stage)
    between, sparsify = stage in steps, recipe.stage("sparsify")
    rank, of = fabric.global_rank, fabric.world_size
    metrics = MetricsLog(folder.metrics, folder.tensorboard if recipe.run.tensorboard else None)
    later = trainings[trainings.index(stage) + 1 :]
    measuring.display.ahead = sum(count for name, (_, count) in training_steps(inputs).items() if name in later)
    seed_everything(recipe.run.seed + (len(STAGES) + steps.index(stage) if between else STAGES.index(stage)))
    loader = inputs.loader(
        "train", settings.batch_size, training=True, augment=True, rank=rank, of=of, device=fabric.device
    )
    try:
        result = fit(
            model,
            loader,
            _settings(recipe, stage),
            fabric,
            stage=stage,
            first_epoch=sum(_section(recipe, name).epochs for name in trainings[: trainings.index(stage)]),
            class_weights=None if settings.class_weights == "none" else inputs.class_weights,
            hooks=pruner,
            # in later trainings a method's pull goes on at its rate, rather than once more as a whole
            hooks_follow=_settings(recipe, "sparsify") if stage != "sparsify" and sparsify.epochs else None,
            distillation=distillation_of(inputs, folder, fabric) if stage == "finetune" else None,
            evaluate=measuring.scores,
            checkpoints=folder.checkpoints_of(stage),
            metrics=metrics,
            display=measuring.display,
            replaced=loader.replaced,
            pictures=measuring.pictures,
            gammas=recipe.run.tensorboard_gammas and (stage == "sparsify" or between),
        )
    finally:
        metrics.close()
    if result.unreadable:
        log.warning(
            "%s: %d samples could not be read; others took their place %d times (result.json names them)",
            stage,
            len(result.unreadable),
            sum(result.unreadable.values()),
        )
    return {
        "unreadable": result.unreadable,
        "steps": result.steps,
        "seconds": result.seconds,
        "waiting_share": result.waiting_share,
        "miou": None if result.scores is None else number(result.scores.miou),
    }


def distillation_of(inputs: Inputs, folder: RunFolder, fabric: Fabric) -> Distillation | None:
    """The unpruned network as the teacher of the fine-tuning, if the recipe wants one."""
    settings = inputs.recipe.finetune
    if not settings.distill:
        return None
    teacher = inputs.network()
    load_weights(teacher, folder.parent)
    teacher.eval().requires_grad_(False)
    if inputs.recipe.run.channels_last:
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Distillation(teacher.to(fabric.device), settings.distill, settings.temperature)


def _key(stage: str) -> Any:
    """The section that a stage has its settings from."""
    return "schedule" if stage.startswith(STEP) else stage


def _section(recipe: Recipe, stage: str) -> Train:
    return recipe.stage(_key(stage))


def _settings(recipe: Recipe, stage: str) -> Settings:
    run = recipe.run
    return Settings(
        **_section(recipe, stage).model_dump(exclude={"batch_size", "class_weights"}),
        last_of=recipe.train.epochs if recipe.rewinds(_key(stage)) else None,
        checkpoint_minutes=run.checkpoint_minutes,
        channels_last=run.channels_last,
        sync_batchnorm=run.sync_batchnorm,
    )
