"""The table operator -> rule. A rule reads its inputs' layouts, tells what goes together, and sets its outputs'."""

from __future__ import annotations

from collections.abc import Callable

from secateur.graph.flow import Rule

RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named ATen operators (names without namespace and overload)."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            assert operator not in RULES, f"{operator} has a rule already"
            RULES[operator] = function
        return function

    return register
