"""Reads a recipe and reports everything that is wrong with it at once, each with its line or override."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from secateur.errors import RecipeError
from secateur.recipe.complaints import Place, elsewhere, explain, kind_of, unknown_names
from secateur.recipe.schema import AMOUNTS, Recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads `path` and applies `overrides`, each 'section.key=value' with the value in YAML.

    Relative paths inside a recipe are relative to the current working directory. An override of one budget key replaces
    the budget of the file; one of method.name, model.name or data.name drops the file's options of the other one.

    Raises:
        RecipeError: the file can't be read or is not YAML, or keys or values are wrong: one message that lists every
            mistake with its line (or its override), what was expected, and the nearest known name.
    """
    path = Path(path)
    text = _read(path)
    values, root = _parse(text, path)
    given, complaints = _override(values, overrides)
    source = _Source(path, root, given)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        complaints += source.sort(explain(error))
    else:
        complaints += source.sort(unknown_names(recipe))
    if complaints:
        raise RecipeError("\n".join(complaints))
    return recipe


def overridden(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a file with overrides written into them; nothing but YAML and overrides is checked.

    Raises:
        RecipeError: the file can't be read or is not YAML, or an override is none.
    """
    values, _ = _parse(_read(path), path)
    _, complaints = _override(values, overrides)
    if complaints:
        raise RecipeError("\n".join(complaints))
    return values


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such recipe") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}); expected a recipe in YAML") from None
    except OSError as error:
        raise RecipeError(f"{path}: can't be read: {error.strerror}") from None


def _parse(text: str, path: Path) -> tuple[dict[str, Any], Node]:
    """The file's values and its node tree, which knows the lines."""
    try:
        root = YAML(typ="safe", pure=True).compose(io.StringIO(text))
        values = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{path}, line {mark.line + 1}: " if mark else f"{path}: "
        problem = str(getattr(error, "problem", None) or error).strip().splitlines()[0]
        hint = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
        raise RecipeError(f"{where}not valid YAML: {problem}{hint}") from None
    except (ValueError, RecursionError) as error:  # characters that YAML refuses, dates that are none, endless nesting
        raise RecipeError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if values is None:
        raise RecipeError(f"{path}: the recipe is empty; `secateur recipe --defaults` prints a complete one")
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path}, line {root.start_mark.line + 1}: expected sections ({', '.join(Recipe.model_fields)}), "
            f"got {kind_of(values)}"
        )
    # `train:` with nothing below it is an empty section.
    return {key: {} if value is None and key in Recipe.model_fields else value for key, value in values.items()}, root


def _override(values: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[Place, str], list[str]]:
    """Writes the overrides into `values`. Returns which place came from which override, and complaints."""
    given: dict[Place, str] = {}
    complaints = []
    parsed: list[tuple[tuple[str, ...], Any]] = []
    for text in overrides:
        name, equals, raw = text.partition("=")
        place = tuple(name.strip().split("."))
        if not equals or not all(place):
            complaints.append(f"override {text!r}: expected section.key=value, as in train.epochs=10")
        elif len(place) == 1:
            complaints.append(f"override {text!r}: expected section.key=value; {elsewhere(place[0])}")
        else:
            try:
                parsed.append((place, YAML(typ="safe", pure=True).load(raw)))
                given[place] = text
            except (YAMLError, ValueError) as error:
                problem = str(getattr(error, "problem", None) or error).strip().splitlines()[0]
                complaints.append(f"override {text!r}: the value is not valid YAML: {problem}")
    _drop_replaced(values, parsed)
    for place, value in parsed:
        _write(values, place, value)
    return given, complaints


def _drop_replaced(values: dict[str, Any], overrides: Sequence[tuple[tuple[str, ...], Any]]) -> None:
    """Takes out of the file's values what overrides replace: the budget, the options of another data set, method or
    network."""
    names = {head: getattr(Recipe(), head).name for head in ("data", "method", "model")}
    for (head, key, *_), value in overrides:
        section = values.get(head)
        if not isinstance(section, dict):
            continue
        if head == "budget" and key in AMOUNTS:
            values[head] = {name: kept for name, kept in section.items() if name not in AMOUNTS}
        elif head in names and key == "name" and value != section.get("name", names[head]):
            values[head] = {name: kept for name, kept in section.items() if name != "options"}


def _write(values: dict[str, Any], place: Sequence[str], value: Any) -> None:
    """values[a][b]... = value. Stops at something without keys: that is complained of by itself."""
    for key in place[:-1]:
        below = values.get(key)
        if below is not None and not isinstance(below, dict):
            return
        values[key] = dict(below or {})  # a copy, since YAML aliases may share one mapping between sections
        values = values[key]
    values[place[-1]] = value


class _Source:
    """Tells where in the file or in the overrides a value came from."""

    def __init__(self, path: Path, root: Node, given: Mapping[Place, str]) -> None:
        self.path, self.root, self.given = path, root, given

    def sort(self, findings: Iterable[tuple[Place, str]]) -> list[str]:
        """The complaints with their places, in the order of the file."""
        ordered = sorted(findings, key=lambda finding: self._line(finding[0])[0])
        return [self._at(place) + message for place, message in ordered]

    def _at(self, place: Place) -> str:
        """'recipes/x.yaml, line 12: train.epoch: ' or "override 'train.epoch=3': train.epoch: "."""
        name = f"{'.'.join(map(str, place))}: " if place else ""
        line, depth = self._line(place)
        in_file = depth == len(place)
        for origin, text in self.given.items():
            # An override of a budget key replaces the file's budget, so a conflict there is the overrides' own.
            whole = origin[: len(place)] == place and (not in_file or place == ("budget",))
            if place and (whole or place[: len(origin)] == origin):
                return f"override {text!r}: {name}"
        return f"{self.path}, line {line}: {name}"

    def _line(self, place: Place) -> tuple[int, int]:
        """The line of the deepest part of `place` that is in the file, and how deep that is."""
        node, line, depth = self.root, self.root.start_mark.line, 0
        for key in place:
            if isinstance(node, MappingNode):
                found = [pair for pair in node.value if str(pair[0].value) == str(key)]
                if not found:
                    break
                line, node = found[-1][0].start_mark.line, found[-1][1]
            elif isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                line = node.start_mark.line
            else:
                break
            depth += 1
        return line + 1, depth
