"""A comparison: one recipe, and a list of methods that differ from it; every method, budget and seed is a row.

data: ...            # the sections of a recipe: what all rows share
compare:
  seeds: [0, 1]
  budgets: [{params: 0.4}, {params: 0.2}]
methods:
  - cap              # a method's name, or sections that differ from the shared ones:
  - label: Network Slimming, strong
    method: {name: network_slimming, options: {pull: 1.1, update: proximal}}
    budget: {scope: cost}
  - label: unpruned
    method: {name: none}
  - label: uniform width, from scratch
    scratch: cap     # as many MACs as this row, the same share of every layer, trained from scratch
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from secateur.errors import RecipeError, nearest
from secateur.recipe.complaints import explain, unknown_names
from secateur.recipe.reader import overridden
from secateur.recipe.schema import AMOUNTS, Recipe, Section

_OWN = ("compare", "methods")
_ENTRY = ("label", "scratch")


class Compare(Section):
    """What every method is run with."""

    seeds: Annotated[list[Annotated[int, Field(ge=0, le=2**32 - 1)]], Field(min_length=1)] = Field(
        default_factory=lambda: [0], description="one run each"
    )
    budgets: list[dict[str, float]] = Field(
        default_factory=list, description="one run each, such as {params: 0.4}; none: the recipe's own budget"
    )


@dataclass(frozen=True)
class Row:
    """One run of a comparison.

    Attributes:
        label: the row's name in the table, without budget and seed.
        budget: what was asked of it, in words; "" for the unpruned network.
        name: of its run folder.
        recipe: what is run.
        scratch: label of the row whose MACs a uniformly narrow network, trained from scratch, is to have; "" for
            ordinary rows.
    """

    label: str
    budget: str
    name: str
    recipe: Recipe
    scratch: str = ""

    @property
    def heading(self) -> str:
        """The row's name in the table."""
        return f"{self.label}, {self.budget}" if self.budget else self.label


def load_comparison(path: str | Path, overrides: Sequence[str] = ()) -> list[Row]:
    """The rows of a comparison, in the order of the file; seeds of one row follow each other.

    Args:
        path: a recipe with a list `methods`, and perhaps a section `compare`.
        overrides: section.key=value, for all rows.

    Raises:
        RecipeError: the file is no comparison, or rows of it are wrong; lists every mistake.
    """
    path = Path(path)
    return rows_of(overridden(path, overrides), path)


def rows_of(values: dict[str, Any], path: Path) -> list[Row]:
    """The rows of a comparison from its sections; `path` is where they come from, for messages.

    Raises:
        RecipeError: as `load_comparison`.
    """
    entries, shared = values.get("methods"), {key: value for key, value in values.items() if key not in _OWN}
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"{path}: expected a list `methods:` of what is to be compared")
    complaints: list[str] = []
    try:
        compare = Compare.model_validate(values.get("compare") or {})
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise RecipeError("\n".join(f"{path}: compare.{_dotted(e['loc'])}: {e['msg']}" for e in found)) from None
    rows: list[Row] = []
    labels: list[str] = []
    for number, entry in enumerate(entries, start=1):
        try:
            label, scratch, own = _entry(entry)
        except RecipeError as error:
            complaints.append(f"{path}: methods, number {number}: {error}")
            continue
        where = f"{path}: methods, number {number} ({label})"
        if label in labels:
            complaints.append(f"{where}: a second row of this label; give it another one: label: ...")
        labels.append(label)
        made = [*_rows(label, scratch, {**shared}, own, compare, complaints, where)]
        if len({row.name for row in (*rows, *made)}) < len(rows) + len(made):
            complaints.append(f"{where}: its runs would have the folders of another row; give it another label")
        rows += made
    for row in rows:
        if row.scratch and row.scratch not in labels:
            complaints.append(f"{path}: {row.label}: scratch: no row {row.scratch!r}; {nearest(row.scratch, labels)}")
    if complaints:
        raise RecipeError("\n".join(dict.fromkeys(complaints)))
    return rows


def _entry(entry: Any) -> tuple[str, str, dict[str, Any]]:
    """Label, scratch, and the sections of one element of `methods`."""
    if isinstance(entry, str):
        return entry, "", {"method": {"name": entry}}
    if not isinstance(entry, dict):
        raise RecipeError(f"expected a method's name or sections of a recipe, got {entry!r}")
    sections = {key: value for key, value in entry.items() if key not in _ENTRY}
    for key, value in sections.items():
        if key not in Recipe.model_fields:
            raise RecipeError(f"unknown section {key!r}; {nearest(key, [*Recipe.model_fields, *_ENTRY])}")
        if not isinstance(value, dict):
            raise RecipeError(f"{key}: expected keys with values below it, got {value!r}")
    scratch, label = str(entry.get("scratch") or ""), str(entry.get("label") or "")
    if scratch:
        sections = {**sections, "method": {"name": "none"}}
    label = label or (f"as {scratch}, from scratch" if scratch else str(sections.get("method", {}).get("name", "")))
    if not label:
        raise RecipeError("expected a method's name, or a label")
    return label, scratch, sections


def _rows(
    label: str,
    scratch: str,
    shared: dict[str, Any],
    own: dict[str, Any],
    compare: Compare,
    complaints: list[str],
    where: str,
) -> Iterator[Row]:
    """The runs of one method: every budget, every seed."""
    unpruned = own.get("method", shared.get("method") or {}).get("name") == "none"
    budgets: list[dict[str, float]] = [{}] if unpruned and not scratch else (compare.budgets or [{}])
    for budget in budgets:
        for seed in compare.seeds:
            values = dict(shared)
            for section, keys in own.items():
                base = values.get(section) or {}
                if section in ("method", "model") and keys.get("name") not in (None, base.get("name")):
                    base = {key: value for key, value in base.items() if key != "options"}
                values[section] = {**base, **keys}
            if budget and not scratch:
                kept = {k: v for k, v in (values.get("budget") or {}).items() if k not in AMOUNTS}
                values["budget"] = {**kept, **budget}
            values["run"] = {**(values.get("run") or {}), "seed": seed}
            asked = ", ".join(f"{key} {value:g}" for key, value in budget.items())
            name = "-".join(filter(None, (_slug(label), _slug(asked), str(seed))))
            try:
                recipe = Recipe.model_validate(values)
            except ValidationError as error:
                complaints += [f"{where}: {_dotted(place)}: {message}" for place, message in explain(error)]
                return
            complaints += [f"{where}: {_dotted(place)}: {message}" for place, message in unknown_names(recipe)]
            yield Row(label, asked, name, recipe, scratch)


def _slug(text: str) -> str:
    """A part of a folder's name."""
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")


def _dotted(place: Sequence[Any]) -> str:
    return ".".join(map(str, place))
