"""The network that a user names: of a run folder, or of a file with the recipe that it was made by."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.data import Normalise
from secateur.data.classes import Classes, classes_of
from secateur.data.voc2012 import colour_map
from secateur.errors import CannotError, CheckpointError, DataError, RunFolderError
from secateur.methods import get_method
from secateur.pipeline.from_recipe import fresh_network, inference_of
from secateur.plan import Plan
from secateur.recipe import Recipe, load_recipe
from secateur.surgery import apply, load
from secateur.surgery.storage import opened
from secateur.training import Inference
from secateur.training.run_folder import RunFolder
from secateur.training.weights import load_weights

__all__ = ["Network", "Stage", "open_network"]

Stage = Literal["final", "parent"]


@dataclass(frozen=True)
class Network:
    """A trained network in eval mode, with what its recipe says of images and classes.

    name: what messages and tables call it.
    file: the weights.
    folder: the run's; None of a file without one.
    classes, palette: names of the classes, and (R, G, B) of each.
    """

    name: str
    model: nn.Module
    recipe: Recipe
    file: Path
    folder: RunFolder | None
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    @property
    def normalise(self) -> Normalise:
        """What is done to colours."""
        return Normalise(self.recipe.data.mean, self.recipe.data.std)

    @property
    def inference(self) -> Inference:
        """How it is asked about an image."""
        return inference_of(self.recipe)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images that it was trained on."""
        return self.recipe.data.input_size

    @property
    def example(self) -> Tensor:
        """An image of noise, (1, 3, H, W)."""
        return torch.randn(1, 3, *self.input_size, generator=torch.Generator().manual_seed(0))


def open_network(
    path: Path,
    stage: Stage = "final",
    recipe: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Network:
    """Opens a run folder or a file of weights.

    Args:
        path: a run folder; or a file written by `secateur.save`, or by a run as parent.safetensors.
        stage: of a run folder the pruned, fine-tuned network, or the parent.
        recipe: of a file; by default the recipe.yaml beside it.
        say: takes a line where something has to be guessed.

    Raises:
        RunFolderError: there is nothing, or the run has not come so far.
        CheckpointError: the file is damaged, or belongs to another network than the recipe's.
        RecipeError, ModelError, DataError: the recipe, its network or its classes can't be had.
        CannotError: the network needs what a file does not hold: gates.
    """
    folder = None
    if path.is_dir():
        folder = RunFolder(path)
        file = folder.parent if stage == "parent" else folder.model
        if not folder.recipe.is_file():
            raise RunFolderError(f"{path} holds no run (no recipe.yaml); expected a run folder or a .safetensors file.")
        if not file.is_file():
            way_on = (
                "" if stage == "parent" or not folder.parent.is_file() else "; its parent can be had: --stage parent"
            )
            raise RunFolderError(f"{path} has no {file.name}: the run is not finished{way_on}.")
    elif path.is_file():
        file = path
        if recipe is None and (path.parent / "recipe.yaml").is_file():
            folder = RunFolder(path.parent)
    else:
        raise RunFolderError(f"{path}: there is no such run folder or file.")
    if recipe is None and folder is None:
        raise RunFolderError(
            f"{path}: there is no recipe.yaml beside it, which says what network this is; give it with --recipe."
        )
    settings = load_recipe(recipe or folder.recipe)  # type: ignore[union-attr]
    classes, palette = _classes(settings, folder, say)
    model = _loaded(file, settings, len(classes))
    if file.name != "parent.safetensors":
        _refuse_gates(settings, path)
    name = path.name if path.is_dir() and stage == "final" else f"{file.parent.name}/{file.name}".removeprefix("/")
    return Network(name, model.eval(), settings, file, folder, classes, palette)


def _loaded(file: Path, recipe: Recipe, classes: int) -> nn.Module:
    model = fresh_network(recipe.model, classes)
    with opened(file, model.state_dict()) as found:
        with_plan = "plan" in found.metadata
    if with_plan:
        return load(file, model)
    if recipe.model.plan is not None:
        if not recipe.model.plan.is_file():
            raise CheckpointError(f"{file} is of the widths in {recipe.model.plan} (model.plan), which is not there.")
        model = apply(model, Plan.from_json(recipe.model.plan.read_text(encoding="utf-8", errors="replace")))
    load_weights(model, file)
    return model


def _classes(recipe: Recipe, folder: RunFolder | None, say: Callable[[str], None]) -> Classes:
    """Of the data set; where the file that describes it is gone, as many as the run had, in colours of our own."""
    try:
        return classes_of(recipe.data.name, recipe.data.root)
    except DataError as error:
        if folder is None or not folder.result.is_file():
            raise
        try:
            names = tuple(json.loads(folder.result.read_text(encoding="utf-8"))["stages"][0]["per_class"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise error from None
        say(f"{error}; the names of the classes are those in {folder.result}, their colours VOC's")
        return names, tuple(colour_map(len(names) + 1)[1:])


def _refuse_gates(recipe: Recipe, path: Path) -> None:
    if recipe.method.name != "none" and not get_method(recipe.method.name).prunes:
        raise CannotError(
            f"{path}: {recipe.method.name} gates channels while the network runs, and removes none; its gates are "
            "hooks that belong to the run and can't be shipped. The network without them: --stage parent."
        )
