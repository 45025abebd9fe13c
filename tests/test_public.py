"""The public names: sorted, complete, cheap to import, and each with an example that runs."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

import secateur

# What people call on the objects that they are handed.
METHODS = (
    "Graph.explain", "Plan.from_json", "Plan.then", "Plan.to_json", "Pruner.after_backward", "Pruner.after_epoch",
    "Pruner.finish", "Pruner.load_state_dict", "Pruner.state_dict",
)  # fmt: skip


def examples(name: str) -> dict[str, doctest.DocTest]:
    """The examples of a public name and of its methods. They see nothing but what they import."""
    finder = doctest.DocTestFinder(exclude_empty=False)
    found = finder.find(getattr(secateur, name), name, globs={"__name__": "__main__"})
    return {test.name: test for test in found if test.examples}


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert secateur.__all__ == sorted(secateur.__all__)
    assert all(callable(getattr(secateur, name)) for name in secateur.__all__)
    assert set(secateur.__all__) <= set(dir(secateur))
    assert not hasattr(secateur, "nothing_of_this_name")


def test_names_stay_functions_whatever_was_imported_before() -> None:
    code = "import secateur.costs, secateur.pruner, secateur; print(callable(secateur.cost), callable(secateur.prune))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True", "True"]


def test_importing_secateur_and_its_command_line_imports_no_torch() -> None:
    code = "import sys, secateur, secateur.cli; print('torch' in sys.modules, 'scipy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


@pytest.mark.parametrize("name", secateur.__all__)
def test_examples_of_every_public_name_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = examples(name)
    wanted = {name, *(method for method in METHODS if method.startswith(f"{name}."))}
    assert wanted <= found.keys(), f"without an example: {wanted - found.keys()}"
    for test in found.values():
        outcome = doctest.DocTestRunner(verbose=False).run(test)
        assert outcome.failed == 0, capsys.readouterr().out


def test_every_method_that_needs_an_example_is_one_of_a_public_name() -> None:
    assert {method.partition(".")[0] for method in METHODS} <= set(secateur.__all__)
