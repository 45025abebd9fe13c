"""Writes a recipe as YAML with every key and, beside it, what it means."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from secateur.recipe.schema import Recipe, Section

_COLUMN = 36  # where the comments start, unless a value reaches further


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal one; every key carries its description."""
    document = CommentedMap()
    for name, section in recipe:
        document[name] = _section(section)
        heading = (type(section).__doc__ or "").strip()
        document.yaml_set_comment_before_after_key(name, before=f"\n{heading}" if len(document) > 1 else heading)
    yaml = YAML()
    yaml.width = 4096  # a value and its comment stay on one line
    yaml.representer.add_representer(type(None), lambda it, _: it.represent_scalar("tag:yaml.org,2002:null", "null"))
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _section(section: Section) -> CommentedMap:
    plain = CommentedMap()
    for key, value in section:
        plain[key] = _plain(value)
        description = type(section).model_fields[key].description
        plain.yaml_add_eol_comment(description, key, column=_COLUMN)
    return plain


def _plain(value: Any) -> Any:
    """Paths as text; lists and mappings in one line."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        sequence = CommentedSeq([_plain(each) for each in value])
        sequence.fa.set_flow_style()
        return sequence
    if isinstance(value, dict):
        mapping = CommentedMap((key, _plain(each)) for key, each in value.items())
        mapping.fa.set_flow_style()
        return mapping
    return value
