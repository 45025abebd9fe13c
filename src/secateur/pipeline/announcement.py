"""What a run says before it begins: the data, the network, what it costs and shall cost, and what will be done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from secateur.costs import Cost, cost
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.stages import STEP, training_steps
from secateur.recipe import Recipe

__all__ = ["announcement"]


def announcement(inputs: Inputs, stages: Sequence[str], done: Sequence[str], device: torch.device) -> list[str]:
    """Lines to show.

    Args:
        inputs: what the recipe names.
        stages: those that will be done, in their order.
        done: those that are, by an earlier attempt.
        device: where it is computed.
    """
    recipe = inputs.recipe
    whole = cost(inputs.network(), inputs.example)
    lines = [_data(inputs), _network(recipe, whole), _target(inputs, whole)]
    run = recipe.run
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
    devices = f"{run.devices} x {device.type}" if run.devices > 1 else str(device)
    lines.append(f"to do: {', '.join(_stages(inputs, stages))}; on {devices}{threads}, precision {run.precision}")
    if done:
        lines.append(f"done by an earlier attempt: {', '.join(done)}")
    return lines


def _stages(inputs: Inputs, stages: Sequence[str]) -> Iterator[str]:
    trainings, cuts = training_steps(inputs), inputs.recipe.schedule.steps
    for stage in stages:
        training = trainings.get(f"{STEP}{cuts}" if stage == "prune" else stage)  # the one in front of the last cut
        if training is None:
            yield stage
        elif training[0]:
            yield f"{stage} ({training[0]} epochs, {training[1]} steps)"


def _data(inputs: Inputs) -> str:
    data, train, val = inputs.recipe.data, inputs.data["train"], inputs.data["val"]
    where = "" if data.root is None else f" in {data.root}"
    size = "of their own sizes" if data.size is None else f"of {data.size[0]}x{data.size[1]} pixels"
    crop = "" if data.crop is None else f", training on crops of {data.crop[0]}x{data.crop[1]}"
    return (
        f"data: {data.name}{where}, {len(train)} images to train on ({data.train_split}) and {len(val)} to evaluate "
        f"({data.val_split}), {size}{crop}, {len(train.classes)} classes"
    )


def _network(recipe: Recipe, whole: Cost) -> str:
    height, width = recipe.data.input_size
    start = recipe.model.weights or recipe.model.pretrained
    return (
        f"network: {recipe.model.name}, {whole.params:,} parameters, {whole.macs:,} MACs for an image of "
        f"{height}x{width}" + (f", starting from {start}" if start else "")
    )


def _target(inputs: Inputs, whole: Cost) -> str:
    budget, name = inputs.recipe.budget, inputs.recipe.method.name
    if inputs.method is None:
        return "pruning: none (method.name=none)"
    if not inputs.method.prunes:
        return f"pruning: {name}, which removes no channels"
    if budget.by_method:
        return f"pruning: {name}, as much as its options say"
    if budget.pruning_ratio is not None:
        return f"pruning: {name}, {budget.pruning_ratio:.0%} of the units go"
    [(resource, limit)] = (budget.limits or {}).items()
    if resource == "latency":
        return f"pruning: {name}, " + (f"to {limit:.0%} of the latency" if limit <= 1 else f"to {limit:g} ms an image")
    before = getattr(whole, resource)
    target = limit * before if limit <= 1 else limit
    return f"pruning: {name}, {resource} {before:,} -> at most {target:,.0f} ({target / before:.0%})"
