"""Files that are either as they were or wholly new, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "copy_file", "is_temporary", "remove_temporary", "write_json", "write_text"]

# asking for the mask means setting it, so it is asked for once, before there are threads
UMASK = os.umask(0)
os.umask(UMASK)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving it is flushed to the disk and renamed to `path`.

    If the body raises, the temporary file is removed and `path` is untouched.
    """
    path = Path(path)
    # the ending is kept: some writers choose the format by it
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        yield temporary
        # some libraries create files that only their owner may read
        temporary.chmod(0o666 & ~UMASK)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def copy_file(source: Path, path: Path) -> None:
    """Copies `source` to `path`, atomically."""
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON to `path`, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def is_temporary(path: Path) -> bool:
    """Whether `path` is what a killed process left of an atomic write: of ours, or of the safetensors library's own."""
    return re.fullmatch(r"\.tmp-.+|\..+\.tmp|\.tmp[0-9A-Za-z]{6}", path.name) is not None


def remove_temporary(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder; folders in it are left alone."""
    for entry in folder.iterdir():
        if is_temporary(entry) and entry.is_file():
            entry.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; a folder cannot be opened on Windows, where it is not needed."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
