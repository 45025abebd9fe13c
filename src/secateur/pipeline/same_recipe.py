"""A run can only be gone on with by the recipe that it was begun with."""

from __future__ import annotations

from typing import Any

from secateur.errors import RunFolderError
from secateur.recipe import Recipe, load_recipe
from secateur.training.run_folder import RunFolder

__all__ = ["MAY_DIFFER", "check_same_recipe"]

MAY_DIFFER = {  # what does not change what is computed
    "data.root",
    "data.unreadable",
    "run.checkpoint_minutes",
    "run.tensorboard",
    "run.tensorboard_gammas",
    "run.tensorboard_pictures",
    "run.threads",
}


def check_same_recipe(folder: RunFolder, recipe: Recipe) -> None:
    """Compares `recipe` with the one in the run folder.

    Raises:
        RunFolderError: they differ in something that changes what is computed; names the keys.
    """
    # as JSON, where a tuple and a list are the same
    before, now = (_flat(each.model_dump(mode="json")) for each in (load_recipe(folder.recipe), recipe))
    keys = sorted({*before, *now} - MAY_DIFFER)
    different = [f"{key} was {before.get(key)}, now {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
    if different:
        raise RunFolderError(
            f"{folder.path} holds a run of another recipe ({'; '.join(different)}). Go on with its own recipe.yaml, "
            "or choose another --out."
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'train.epochs': 3, ...} for nested dicts."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
