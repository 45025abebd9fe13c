"""A recipe is the declared experiment: a YAML file whose sections and keys are all checked before anything runs.

`load_recipe(path, overrides)` reads one, `dump_recipe(recipe)` writes one with every key and what it means,
`recipe_schema()` is the JSON schema for editors; `load_comparison(path)` reads one with a list of methods, and
`load_sweep` makes one of a recipe, methods, amounts and seeds.
"""

from secateur.recipe.comparison import Row, load_comparison
from secateur.recipe.reader import load_recipe
from secateur.recipe.schema import (
    BUDGET_KEYS,
    Budget,
    Compensate,
    CutSchedule,
    Data,
    Evaluate,
    Finetune,
    Method,
    Model,
    Recipe,
    Run,
    Sparsify,
    Train,
    recipe_schema,
)
from secateur.recipe.sweep import load_sweep
from secateur.recipe.writer import dump_recipe

__all__ = [
    "BUDGET_KEYS",
    "Budget",
    "Compensate",
    "CutSchedule",
    "Data",
    "Evaluate",
    "Finetune",
    "Method",
    "Model",
    "Recipe",
    "Row",
    "Run",
    "Sparsify",
    "Train",
    "dump_recipe",
    "load_comparison",
    "load_recipe",
    "load_sweep",
    "recipe_schema",
]
