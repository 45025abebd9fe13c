"""What is wrong with a recipe, in words: pydantic's findings with the allowed values and the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from secateur.errors import nearest
from secateur.recipe.schema import Recipe, recipe_schema

Place = tuple[str | int, ...]

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "a name",
    "is_instance_of": "a path",
    "list_type": "a list",
    "too_short": "a list that is not empty",
    "model_type": "a section with keys below it",
    "dict_type": "keys with values below it",
}
_TUPLES = {"tuple_type", "missing", "too_long"}
_COUNTS = {2: "two", 3: "three"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def explain(error: ValidationError) -> Iterator[tuple[Place, str]]:
    """Every finding of pydantic: the place in the recipe, and the message."""
    for each in error.errors(include_url=False):
        place, kind, value = each["loc"], each["type"], each["input"]
        got = f", got {kind_of(value)}"
        if kind == "extra_forbidden":
            yield place, _unknown_key(place)
        elif kind == "invalid_key" or place[-1:] == ("[key]",):
            yield place[:1], f"a key must be text{got}" if kind != "invalid_key" else "a key must be text"
        elif kind == "at_key":
            yield (*place, *each["ctx"]["key"].split(".")), each["msg"]
        elif kind == "budget":
            yield place, each["msg"]
        elif kind == "literal_error":
            allowed = [str(choice) for choice in _allowed(place, "enum")["enum"]]
            close = difflib.get_close_matches(str(value).lower(), allowed, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield place, f"expected one of {', '.join(allowed)}{got}{hint}"
        elif kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
            bounds = _allowed(place, *_BOUNDS)
            limits = " and ".join(f"{sign} {bounds[key]:g}" for key, sign in _BOUNDS.items() if key in bounds)
            yield place, f"expected a number {limits}{got}"
        elif kind in _TUPLES:
            count = _COUNTS[len(_allowed(place, "prefixItems")["prefixItems"])]
            yield place, f"expected a list of {count} numbers{got}"
        else:
            yield place, f"expected {_EXPECTED[kind]}{got}" if kind in _EXPECTED else f"{each['msg']}{got}"


def unknown_names(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    """Networks, methods and methods' options that are not registered; a network 'module:factory' is looked up later."""
    from secateur.methods import get_method, list_methods  # imports torch: not needed to print a schema
    from secateur.models import list_models

    name = recipe.model.name
    if ":" not in name and name not in list_models():
        yield ("model", "name"), f"unknown network {name!r} (or package.module:factory); {nearest(name, list_models())}"
    name = recipe.method.name
    if name != "none" and name not in list_methods():
        yield ("method", "name"), f"unknown method {name!r}; {nearest(name, [*list_methods(), 'none'])}"
    else:
        options = set() if name == "none" else set(get_method(name).options_help())
        for option in recipe.method.options:
            if option not in options:
                known = nearest(option, options) if options else "it has none"
                yield ("method", "options", option), f"unknown option of {name}; {known}"


def elsewhere(key: str) -> str:
    """Where a key without its section belongs."""
    sections = [name for name in Recipe.model_fields if key in _keys(name)]
    return f"did you mean {' or '.join(f'{name}.{key}' for name in sections)}?" if sections else _known(key, None)


def kind_of(value: Any) -> str:
    """A value as an error message shows it."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "keys with values"
    if isinstance(value, list | tuple):
        return f"the list {list(value)!r}"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(section: str) -> dict[str, Any]:
    """The keys of a section with their JSON schemas."""
    schema = recipe_schema()
    reference = schema["properties"][section]["$ref"].rpartition("/")[2]
    return schema["$defs"][reference]["properties"]


def _known(key: str, section: str | None) -> str:
    return nearest(key, Recipe.model_fields if section is None else _keys(section))


def _unknown_key(place: Place) -> str:
    key = str(place[-1])
    if len(place) == 1:
        sections = [name for name in Recipe.model_fields if key in _keys(name)]
        return f"unknown section; {elsewhere(key) if sections else _known(key, None)}"
    sections = [name for name in Recipe.model_fields if key in _keys(name)]
    hint = f"it is a key of {', '.join(sections)}" if sections else _known(key, str(place[0]))
    return f"unknown key; {hint}"


def _allowed(place: Place, *words: str) -> dict[str, Any]:
    """The innermost part of a key's JSON schema that holds one of `words`."""
    pending = [_keys(str(place[0]))[str(place[1])]]
    while pending:
        node = pending.pop()
        if any(word in node for word in words):
            return node
        pending += [*node.get("anyOf", ()), *node.get("prefixItems", ())]
    raise LookupError(f"no {' or '.join(words)} in the schema of {place}")
