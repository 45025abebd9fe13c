"""The public names: sorted, complete, and cheap to import."""

from __future__ import annotations

import subprocess
import sys

import secateur


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
