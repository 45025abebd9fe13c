"""The results that are shown are those that lie beside them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
RUNS = sorted(path.parent for path in (ROOT / "results").rglob("result.json"))
TABLES = re.findall(r"^    secateur (compare .*)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("command", TABLES)
def test_every_table_is_what_its_command_prints(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "secateur", *shlex.split(command)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line]
    assert len(lines) > 4 and [line for line in lines if line not in PAGE] == []


def test_the_page_of_the_zoo_is_what_its_script_makes_of_its_rows(tmp_path: Path) -> None:
    rows = ROOT / "results" / "engine_zoo.jsonl"
    script = ROOT / "benchmarks" / "engine_zoo.py"
    command = [sys.executable, script, "--out", rows, "--page", tmp_path / "page.md"]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page == (ROOT / "results" / "engine_zoo.md").read_text(encoding="utf-8")
    outcomes = {json.loads(line)["name"]: json.loads(line)["outcome"] for line in rows.read_text().splitlines()}
    assert len(outcomes) >= 350 and not {"wrong", "crash"} & {*outcomes.values()}


def test_there_are_tables() -> None:
    assert TABLES


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.relative_to(ROOT / "results")))
def test_every_run_is_whole_and_met_its_budget(run: Path) -> None:
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert {"recipe.yaml", "plan.json", "metrics.jsonl"} <= {path.name for path in run.iterdir()}
    texts = [path.read_text(encoding="utf-8") for path in run.glob("*.[jy]*")]
    assert [found for text in texts for found in re.findall(r"(?<![\w.])/\w+/\w+", text)] == []  # of one machine only
    for what, asked in (result.get("budget") or {}).get("asked", {}).items():
        assert result["budget"]["achieved"][what] <= asked
    if result.get("verification"):
        assert result["verification"]["ok"] and result["verification"]["relative_error"] <= 1e-5
