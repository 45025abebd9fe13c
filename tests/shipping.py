"""A finished run for the tests of what comes after it: `predict`, `export`, `bench`."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from secateur.cli import app

RECIPE = """
data: {name: streets, length: 4, limit: 4, size: [32, 48], workers: 0}
model: {name: unet, width: 4}
method: {name: l1}
budget: {params: 0.6}
train: {epochs: 1, batch_size: 2, evaluate_every: 1}
sparsify: {epochs: 0}
finetune: {epochs: 1}
evaluate: {recalibrate_batches: 1, latency_repeats: 0, pictures: 0}
run: {threads: 1, accelerator: cpu, tensorboard: false}
"""


def secateur(*arguments: object) -> Result:
    """A command; what it prints is in `stdout` and `stderr`."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def finished_run(place: Path) -> Path:
    """The folder of a small run on drawn scenes."""
    (place / "r.yaml").write_text(RECIPE)
    result = secateur("run", place / "r.yaml", "--out", place / "run")
    assert result.exit_code == 0, result.output
    return place / "run"
