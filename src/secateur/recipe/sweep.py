"""A sweep: a recipe's method, or several, at many ratios with many seeds; a comparison written on the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.errors import RecipeError, nearest
from secateur.recipe.comparison import Row, rows_of
from secateur.recipe.reader import overridden
from secateur.recipe.schema import BUDGET_KEYS

__all__ = ["load_sweep", "numbers"]

_MOST = 1000  # values of one list; more of them are a slip


def load_sweep(
    path: str | Path,
    overrides: Sequence[str],
    methods: Sequence[str],
    amounts: Sequence[float],
    amount: str,
    seeds: Sequence[int],
) -> list[Row]:
    """The rows of a sweep.

    Args:
        path: a recipe, or a comparison.
        overrides: section.key=value, for all rows.
        methods: registered names; or, of a comparison, labels of its rows. None: the recipe's own.
        amounts: what every method is asked for, one run each; none: what the recipe says.
        amount: what they are of: a key of `budget`, such as "pruning_ratio" or "params".
        seeds: one run each; none: what the recipe says.

    Raises:
        RecipeError: something in it is wrong; lists every mistake.
    """
    path = Path(path)
    values = overridden(path, overrides)
    if amount not in BUDGET_KEYS:
        raise RecipeError(f"{amount!r} is no amount; {nearest(amount, BUDGET_KEYS)}")
    values["methods"] = _entries(values, methods, path)
    compare = {**(values.get("compare") or {})}
    if amounts:
        compare["budgets"] = [{amount: value} for value in amounts]
    if seeds:
        compare["seeds"] = list(seeds)
    elif "seeds" not in compare:
        compare["seeds"] = [(values.get("run") or {}).get("seed", 0)]
    rows = rows_of({**values, "compare": compare}, path)
    if any(row.recipe.budget.scope == "cost" and row.recipe.budget.pruning_ratio is not None for row in rows):
        raise RecipeError(
            f"{path}: budget.scope is cost, which ranks by what is saved of a budget; add --of params (or macs), whose "
            "ratios say what stays, or budget.scope=global"
        )
    return rows


def _entries(values: dict[str, Any], methods: Sequence[str], path: Path) -> list[Any]:
    """What `methods:` of the comparison is to hold."""
    listed = values.get("methods")
    if listed is None:
        return list(methods) or [{"label": (method := _own(values, path))["name"], "method": method}]
    if not isinstance(listed, list) or not methods:
        return listed
    by_name = {_name(entry): entry for entry in listed}
    if unknown := [name for name in methods if name not in by_name]:
        raise RecipeError(f"{path}: no row {unknown[0]!r}; {nearest(unknown[0], [*by_name])}")
    return [by_name[name] for name in methods]


def _own(values: dict[str, Any], path: Path) -> dict[str, Any]:
    method = values.get("method")
    if not isinstance(method, dict) or "name" not in method:
        raise RecipeError(f"{path} names no method; say which ones, as in --methods l1,cap")
    return method


def _name(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    method = entry.get("method")
    return str(entry.get("label") or (method.get("name", "") if isinstance(method, dict) else ""))


def numbers(text: str, what: str) -> list[float]:
    """Numbers from "0.1:0.9:0.1" (first, last, step; the last is among them) or "0.1,0.2,0.5".

    Raises:
        RecipeError: it is neither; names `what`.
    """
    wrong = RecipeError(f"{what} {text!r}: expected numbers as in 0.1,0.5 or first:last:step as in 0.1:0.9:0.1")
    try:
        if ":" not in text:
            found = [float(part) for part in text.split(",")]
        else:
            first, last, step = (float(part) for part in text.split(":"))
            if not step > 0 or not last >= first or not math.isfinite(last) or (last - first) / step > _MOST:
                raise wrong
            count = math.floor((last - first) / step + 1e-6) + 1
            found = [float(f"{first + number * step:.10g}") for number in range(count)]
    except ValueError:
        raise wrong from None
    if not all(map(math.isfinite, found)):
        raise wrong
    return list(dict.fromkeys(found))
