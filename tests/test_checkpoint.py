"""Checkpoints hold everything they are given, and no damage to a file goes unnoticed."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secateur.errors import CheckpointError
from secateur.files import atomic_path, is_temporary, write_json
from secateur.training.checkpoint import CheckpointFolder, read_state, write_state
from secateur.training.random_state import get_random_state, seed_everything, set_random_state


def example() -> dict[str, Any]:
    shared = torch.arange(12.0).reshape(3, 4)
    return {
        "model": {"weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last), "tied": shared, "t": shared},
        "state": {0: {"step": torch.tensor(3.0), "none": None}, 1: {}},
        "groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "nesterov": False, "params": [0, 1]}],
        "numbers": [7, -(2**40), 1e-308, math.inf],
        "tensors": (torch.tensor([True, False]), torch.zeros(0, 3), torch.ones(2, dtype=torch.bfloat16), shared[:, 1]),
        "text": 'Ünïcode "quoted"\n',
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_a_nested_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = example()
    write_state(tmp_path / "a.safetensors", state)
    assert equal(read_state(tmp_path / "a.safetensors"), state)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_real_optimizers_state_comes_back(tmp_path: Path) -> None:
    model = torch.nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    model(torch.randn(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    write_state(tmp_path / "a.safetensors", optimizer.state_dict())
    assert equal(read_state(tmp_path / "a.safetensors"), optimizer.state_dict())


@pytest.mark.parametrize("value", [{1, 2}, np.float32(1), {("a",): 1}, b"bytes"])
def test_what_cannot_be_stored_is_named_and_nothing_is_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"state\['hooks'\]\[1\]"):
        write_state(tmp_path / "a.safetensors", {"hooks": [0, value]})
    assert not list(tmp_path.iterdir())


def test_a_truncated_file_is_noticed_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_state(path, example())
    whole = path.read_bytes()
    lengths = {0, 1, 7, 8, 9, 100, len(whole) // 2, *range(len(whole) - 20, len(whole))}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            read_state(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError):
        read_state(path)


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    """Flips one bit of each byte: reading fails or, where only padding changed, gives the same."""
    path = tmp_path / "a.safetensors"
    state = example()
    write_state(path, state)
    whole = path.read_bytes()
    noticed = 0
    for index in range(len(whole)):
        broken = bytearray(whole)
        broken[index] ^= 1 << (index % 8)
        path.write_bytes(broken)
        try:
            again = read_state(path)
        except CheckpointError:
            noticed += 1
        else:
            assert equal(again, state), f"byte {index} of {len(whole)}"
    assert noticed > 0.99 * len(whole)


def test_other_files_are_not_taken_for_checkpoints(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        read_state(tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_state(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError):
        read_state(tmp_path)


def test_the_two_newest_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "train")
    assert folder.load() is None
    for step in (5, 50, 500):
        folder.save(step, {"step": step})
    assert [p.name for p in folder.files()] == ["step-00000050.safetensors", "step-00000500.safetensors"]
    assert folder.load() == {"step": 500}
    folder.tidy()
    assert len(folder.files()) == 1


@pytest.mark.parametrize("length", [0, 6, 60, -1])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(5, {"step": 5, "weight": torch.ones(100)})
    newest = folder.save(10, {"step": 10, "weight": torch.ones(100)})
    newest.write_bytes(newest.read_bytes()[:length])
    assert folder.load()["step"] == 5
    assert newest.name in caplog.text and "step-00000005" in caplog.text
    # the damaged one does not push a good one out
    folder.save(7, {"step": 7})
    assert [p.name for p in folder.files()] == ["step-00000005.safetensors", "step-00000007.safetensors"]


def test_when_every_checkpoint_is_damaged_the_error_names_them(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (5, 10):
        folder.save(step, {"step": step}).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"step-00000010.*step-00000005.*Delete") as caught:
        folder.load()
    assert str(tmp_path) in str(caught.value)


def test_what_a_killed_writer_left_is_passed_over(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    path = folder.save(5, {"step": 5})
    (tmp_path / ".tmp-step-00000010.safetensors").write_bytes(path.read_bytes()[:30])
    assert folder.load() == {"step": 5}
    folder.save(10, {"step": 10})
    assert not [p for p in tmp_path.iterdir() if is_temporary(p)]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"miou": 0.5})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "miou": 0.5\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_the_random_generators_go_on_where_they_were(tmp_path: Path) -> None:
    seed_everything(3)
    random.gauss(0, 1)
    np.random.standard_normal()  # noqa: NPY002 (leaves a cached second number)
    write_state(tmp_path / "random.safetensors", get_random_state())

    def draw() -> tuple[float, float, float, float]:
        normal = float(np.random.standard_normal())  # noqa: NPY002
        return random.gauss(0, 1), random.random(), normal, torch.rand(()).item()

    expected = draw()
    seed_everything(4)
    assert draw() != expected
    set_random_state(read_state(tmp_path / "random.safetensors"))
    assert draw() == expected
