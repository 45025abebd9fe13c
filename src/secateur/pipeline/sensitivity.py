"""Sensitivity curves of a run's unpruned network, left in its folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.allocate import Curve, sensitivity
from secateur.errors import RunFolderError
from secateur.files import atomic_path, write_json
from secateur.graph import trace
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.judge import Judge
from secateur.recipe import load_recipe
from secateur.report import sensitivity_picture
from secateur.training.run_folder import RunFolder
from secateur.training.weights import load_weights

__all__ = ["measure"]


def measure(
    run: Path,
    ratios: Sequence[float],
    groups: Sequence[str],
    images: int | None,
    batches: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Cut every group of the unpruned network by itself and judge it; the units go in the order of the run's method.

    Args:
        run: a run folder whose training is done.
        ratios: shares of a group to remove.
        groups: names or patterns; all for none.
        images: validation images, None for all.
        batches: that re-estimate the BN statistics of every cut.
        say: takes a line on every group.

    Returns:
        The content of `sensitivity.json`: `curves`, a list of {"group", "units", "points": [{"removed", "mIoU", and the
        IoU of every class}]}; the picture is in `pictures/sensitivity.png`.

    Raises:
        RunFolderError: there is no run, or its training is not done.
        MethodError, NothingPrunableError: see `secateur.sensitivity`.
    """
    folder = RunFolder(run)
    if "train" not in folder.records():
        raise RunFolderError(f"{run} holds no trained network; run `secateur train RECIPE.yaml --out {run}` first.")
    recipe = load_recipe(folder.recipe)
    inputs = Inputs(recipe)
    model = inputs.network()
    load_weights(model, folder.parent)
    if inputs.method is None:
        scores, graph = None, trace(model, inputs.example)
    else:
        pruner = inputs.pruner(model)
        graph = pruner.graph
        scores = np.where(graph.prunable, pruner.method.scores(graph), np.inf)
        pruner.close()

    def told(curve: Curve) -> None:
        share, worst = min(curve.points, key=lambda point: point[1]["mIoU"])
        lost = 100 * (curve.points[0][1]["mIoU"] - worst["mIoU"])
        say(f"{curve.group} ({curve.units} units): up to {lost:.1f} points of mIoU, with {share:.0%} of it gone")

    curves = sensitivity(
        graph,
        np.arange(graph.units, dtype=float) if scores is None else scores,
        Judge(inputs, images, batches),
        ratios=ratios,
        groups=groups,
        say=told,
    )
    record = {
        "method": recipe.method.name,
        "images": images,
        "recalibrate_batches": batches,
        "ratios": sorted(set(ratios)),
        "curves": [_plain(curve) for curve in curves],
    }
    write_json(folder.path / "sensitivity.json", record)
    with atomic_path(folder.path / "pictures" / "sensitivity.png") as path:
        sensitivity_picture(path, record)
    return record


def _plain(curve: Curve) -> dict[str, Any]:
    """For JSON, which has no NaN."""
    record = curve.to_dict()
    points = [{key: None if math.isnan(value) else value for key, value in point.items()} for point in record["points"]]
    return {**record, "points": points}
