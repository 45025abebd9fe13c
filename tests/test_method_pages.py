"""Every method has a page, which tells all of its options with their defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.methods import get_method, list_methods

PAGES = Path(__file__).parents[1] / "docs" / "methods"
INDEX = (PAGES / "README.md").read_text(encoding="utf-8")


def page_of(method: str) -> Path:
    """The page that the index names for a method."""
    row = next(line for line in INDEX.splitlines() if line.startswith(f"| [`{method}`]("))
    return PAGES / row.partition("](")[2].partition(")")[0]


@pytest.mark.parametrize("method", list_methods())
def test_every_option_is_on_the_page(method: str) -> None:
    lines = page_of(method).read_text(encoding="utf-8").splitlines()
    for option, (default, text) in get_method(method).options_help().items():
        shown = default if isinstance(default, str) else json.dumps(default)
        assert f"| `{option}` | {shown} | {text} |" in lines


def test_the_index_names_every_method_and_no_other() -> None:
    named = [line.partition("`")[2].partition("`")[0] for line in INDEX.splitlines() if line.startswith("| [`")]
    assert sorted(named) == sorted(list_methods())
