"""A disk that is full, or fails, at any position of any file: nothing good is lost, and the run can be gone on with."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import test_resume
import torch
from typer.testing import CliRunner

import secateur.training.checkpoint as checkpoint
from secateur.cli import app
from secateur.errors import CannotError, RunFolderError
from secateur.files import atomic_path, is_temporary, write_text
from secateur.surgery.storage import write_tensors
from secateur.training.checkpoint import CheckpointFolder, write_state
from secateur.training.failures import refusals_told
from secateur.training.progress import ProgressDisplay
from secateur.training.run_folder import RunFolder


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file can be longer meanwhile; Python ignores the signal, and the write fails behind that many bytes."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_cut_off_at_any_position_leaves_the_last_good_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    first, state = {"step": 1, "weight": torch.zeros(300)}, {"step": 2, "weight": torch.ones(300)}
    good = folder.save(1, first)
    size = folder.save(2, state).stat().st_size
    (tmp_path / "step-00000002.safetensors").unlink()
    before = good.read_bytes()
    for position in [*range(0, size, 41), size - 1]:
        with room(position), pytest.raises(OSError, match="File too large") as caught:
            folder.save(2, state)
        assert caught.value.errno == errno.EFBIG and caught.value.filename.endswith("step-00000002.safetensors")
        assert [path.name for path in tmp_path.iterdir()] == [good.name], position
        assert good.read_bytes() == before
    with room(size):
        folder.save(2, state)
    assert folder.load()["step"] == 2


@pytest.mark.parametrize("write", [write_state, lambda path, value: write_tensors(path, value, {})])
def test_a_file_that_is_written_anew_is_as_it_was_until_the_new_one_is_whole(
    tmp_path: Path, write: Callable[[Path, Any], None]
) -> None:
    path = tmp_path / "x.safetensors"
    write(path, {"weight": torch.zeros(300)})
    before = path.read_bytes()
    for position in range(0, len(before), 97):
        with room(position), pytest.raises(OSError, match="File too large"):
            write(path, {"weight": torch.ones(300)})
        assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace", "folder", "unlink"])
def test_a_failing_file_server_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {"step": 1})
    folder.save(2, {"step": 2})
    calls = []

    def fail(*arguments: Any, **_: Any) -> None:
        calls.append(arguments)
        raise OSError(errno.EIO, "Input/output error")

    real = os.fsync
    with monkeypatch.context() as patched:
        if failing == "fsync":
            patched.setattr(os, "fsync", fail)
        elif failing == "folder":  # the rename is done, and not known to be on the disk
            patched.setattr(os, "fsync", lambda number: real(number) if not calls and not calls.append(0) else fail())
        else:
            patched.setattr(Path, failing, fail)
        with pytest.raises(OSError, match="Input/output error"):
            folder.save(3, {"step": 3})
    assert folder.load()["step"] in {"fsync": (2,), "replace": (2,)}.get(failing, (3,))
    folder.save(4, {"step": 4})
    assert folder.load()["step"] == 4 and not [path for path in tmp_path.iterdir() if is_temporary(path)]


def test_the_first_error_is_told_though_the_rest_can_not_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **_: Any) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    kept = [folder.path / name for name in (".git", ".tmpfs", ".tmpA1b2C3.txt", "x.tmp", "tmpA1b2C3")]
    for path in kept:
        path.write_text("mine")
    (folder.path / ".tmpdirect").mkdir()
    left = [folder.path / ".tmpA1b2C3", folder.checkpoints / ".tmp-cut-1.safetensors", folder.path / ".x.json.tmp"]
    for path in left:
        path.write_text("half")
    folder.create()
    assert all(path.exists() for path in kept) and not any(path.exists() for path in left)
    stage = folder.checkpoints_of("train")
    stage.save(1, {})
    (stage.path / ".tmpA1b2C3").write_text("half")
    stage.save(2, {})
    assert len([*stage.path.iterdir()]) == 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            "full.* at stage prune: No space left .*a/b.*--resume",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota .*--resume"),
        (OSError(errno.EIO, "Input/output error", "a/b"), "file server failed at stage prune: .*a/b.*--resume"),
        (OSError(errno.ESTALE, "Stale file handle"), "file server failed"),
        (MemoryError(), r"Out of memory at stage prune\. Lower the batch size"),
    ],
)
def test_refusals_outside_the_training_are_told_too(error: Exception, said: str) -> None:
    with pytest.raises(CannotError, match=said), refusals_told(lambda: "stage prune"):
        raise error


def test_a_log_that_can_not_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, display = RunFolder(tmp_path / "run"), ProgressDisplay()
    folder.create()
    with folder.logging(display), room(60):
        for number in range(5):
            display.line(f"a line of some length, number {number}")
    said = capsys.readouterr().err
    assert said.count("log.txt can't be written (File too large)") == 1 and "number 4" in said
    assert "Traceback" not in said and "Logging error" not in said


def test_a_folder_that_can_not_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file/run can't be made .*choose another --out"):
        RunFolder(tmp_path / "file" / "run").create()


# -- whole runs -------------------------------------------------------------------------------------------------------

# positions all over the run, in an attempt each
CHAINS = {
    "full": [f"full:{n}" for n in (1, 3, 9, 24, 6)],
    "failing": [f"failing:{n}" for n in (1, 7, 26, 8)],
}


def test_a_run_whose_disk_refuses_again_and_again_ends_bit_identically(tmp_path: Path) -> None:
    chains = dict(CHAINS)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode == 0:  # where this is allowed, a disk that is full indeed
        chains["small"] = ["disk:16k", "disk:100k", "disk:140k", "disk:64m"]
    try:
        folder, told = test_resume.disturbed(tmp_path, chains, {})
        for name, moments in chains.items():
            refusals = len(moments) - (name == "small")
            assert told[name]["ends"] == ["refused"] * refusals + ["done"], name
            test_resume.check_the_same(folder / name, folder / "whole")
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(small)], check=True)


def test_a_full_disk_ends_the_command_with_a_message_and_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = """
    data: {name: streets, size: [32, 48], length: 4, workers: 0}
    model: {name: unet, width: 4}
    train: {epochs: 1}
    sparsify: {epochs: 0}
    finetune: {epochs: 0}
    method: {name: l1}
    evaluate: {recalibrate_batches: 1, latency_repeats: 0, pictures: 0}
    run: {threads: 1, accelerator: cpu, tensorboard: false}
    """
    write_text(tmp_path / "r.yaml", recipe)
    real = checkpoint.save_file

    def full(*arguments: Any, **options: Any) -> None:
        with room(1000):
            real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        result = CliRunner().invoke(app, ["run", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run")])
    assert result.exit_code == 3, result.output
    assert "The disk is full" in result.stderr and "step-00000001.safetensors" in result.stderr
    assert "--resume" in result.stderr and "Traceback" not in result.output
    again = CliRunner().invoke(app, ["run", str(tmp_path / "run"), "--resume"])
    assert again.exit_code == 0, again.output
