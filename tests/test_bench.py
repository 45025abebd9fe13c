"""`secateur bench`: who is faster, by how much, and how much of the MACs saved became time saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from shipping import finished_run, secateur
from torch import nn

import secateur as library
from secateur.cli.bench import _table
from secateur.costs import Stopwatch
from secateur.errors import CannotError, UserError
from secateur.ship.bench import Contender, bench


class Known(Stopwatch):
    """Times that are given, in milliseconds."""

    def __init__(self, *times: list[float]) -> None:
        self.times = [*times]

    def in_turns(self, models, example_inputs, seconds):
        return self.times


def contender(name: str, channels: int, runtime: str = "eager", size: tuple[int, int] = (16, 24), fixed: bool = False):
    network = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 5, 1)).eval()
    return Contender(name, runtime, Path(name), network, size, fixed)


def test_shares_are_taken_pair_by_pair_from_the_first_of_the_same_runtime():
    """A machine that becomes twice as slow in the middle changes no share."""
    networks = [contender("whole", 16), contender("half", 8), contender("whole", 16, "compiled")]
    stopwatch = Known([10.0, 10.0, 20.0, 20.0], [6.0, 6.0, 12.0, 12.0], [5.0, 5.0, 10.0, 10.0])
    record = bench(networks, 4, None, 1.0, memory=lambda network, images: 7, stopwatch=stopwatch)
    whole, half, compiled = record["rows"]
    assert record["size"] == [16, 24] and record["rounds"] == 4 and record["batch"] == 4
    assert [row["time_share"] for row in record["rows"]] == [1.0, pytest.approx(0.6), 1.0]
    assert whole["ms"] == 15.0 and (whole["low"], whole["high"]) == (10.0, 20.0)
    assert half["images_per_second"] == pytest.approx(4000 / 9)
    assert whole["macs"] == 16 * 24 * (27 * 16 + 5 * 16) and half["macs_share"] == pytest.approx(0.5)
    assert half["realised"] == pytest.approx(0.4 / 0.5)  # 40 % of the time for 50 % of the MACs
    assert whole["realised"] is None and compiled["realised"] is None and half["peak_bytes"] == 7


def test_the_table_fits_sixty_columns():
    networks = [contender("runs/first/parent.safetensors", 16), contender("runs/first", 8)]
    stopwatch = Known([1234.5] * 8, [1034.5] * 8)
    record = bench(networks, 1, None, 1.0, memory=lambda network, images: None, stopwatch=stopwatch)
    record["machine"] = "a processor"
    assert max(map(len, _table(record).splitlines())) <= 60


def test_networks_run_in_turns_and_as_often():
    order: list[int] = []

    class Noting(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            order.append(self.number)
            return x

    times = Stopwatch().in_turns([Noting(number) for number in range(3)], torch.zeros(1), seconds=0.0)
    rounds = len(times[0])
    assert rounds >= 7 and [len(each) for each in times] == [rounds] * 3
    assert order[:6] == [0, 0, 1, 1, 2, 2]  # each is warmed up by two passes
    measured = order[6:]
    assert [sorted(measured[at : at + 3]) for at in range(0, 3 * rounds, 3)] == [[0, 1, 2]] * rounds
    assert {measured[at] for at in range(0, 3 * rounds, 3)} == {0, 1, 2}  # each is first now and then


def test_sizes_that_do_not_fit_are_told():
    with pytest.raises(UserError, match="16x24 alone, not 32x32"):
        bench([contender("fixed", 4, fixed=True)], 1, (32, 32), 0.0)

    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("only batches of 8")

    with pytest.raises(CannotError, match=r"picky \(eager\) fails on images 2 x 3 x 8x8: only batches of 8"):
        bench([Contender("picky", "eager", Path("picky"), Picky(), (8, 8))], 2, None, 0.0)


def test_runs_and_onnx_files_stand_side_by_side(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = finished_run(tmp_path)
    result = secateur("export", run, "--out", tmp_path / "small.onnx")
    assert result.exit_code == 0, result.output
    result = secateur(
        "bench", run / "parent.safetensors", run, tmp_path / "small.onnx", "--threads", "1", "--seconds", "0", "--json"
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["runtime"] for row in rows] == ["eager", "eager", "onnxruntime"]
    stages = {each["stage"]: each for each in json.loads((run / "result.json").read_text())["stages"]}
    assert [row["macs"] for row in rows] == [stages[name]["macs"] for name in ("unpruned", "finetuned", "finetuned")]
    assert all(row["ms"] > 0 and row["low"] <= row["ms"] <= row["high"] for row in rows)
    if Path("/proc/self/clear_refs").exists():
        weights = sum(p.numel() * 4 for p in library.create_model("unet", classes=11, width=4).parameters())
        assert weights < rows[0]["peak_bytes"] < 10**9
    result = secateur("bench", tmp_path / "small.onnx", "--size", "64x64")
    assert result.exit_code == 2 and "32x48 alone" in result.stderr


@pytest.mark.parametrize(
    ("model", "message"), [("nowhere.onnx", "there is no such file"), ("text.onnx", "onnxruntime can't load it")]
)
def test_a_mistake_is_told(tmp_path, monkeypatch, model, message):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    Path("text.onnx").write_text("not a network")
    result = secateur("bench", model)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
