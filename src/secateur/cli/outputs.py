"""Files that a command writes where its user says."""

from __future__ import annotations

from pathlib import Path

from secateur.errors import UserError


def check_outputs(paths: dict[str, Path | None], force: bool) -> None:
    """Refuses, before any work, files that can't be written or would be overwritten.

    Args:
        paths: option -> the file it names, if given.
        force: existing files may be overwritten.

    Raises:
        UserError: a file exists, is none, or has no folder; or two options name the same.
    """
    named: dict[Path, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        exists = _exists(option, path)
        if exists and not path.is_file():
            raise UserError(f"{option} {path} is not a file; choose another name")
        if exists and not force:
            raise UserError(f"{option} {path} exists already; choose another name, or overwrite it with --force")
        if not path.parent.is_dir():
            raise UserError(f"{option} {path}: there is no folder {path.parent}; make it first")
        other = named.setdefault(path.resolve(), option)
        if other != option:
            raise UserError(f"{other} and {option} both name {path}; expected two files")


def _exists(option: str, path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that no file can have
        raise UserError(f"{option} {path} can't be written: {error.strerror or error}") from error


def write_output(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all; of a link, what it leads to.

    Raises:
        UserError: the file can't be written.
    """
    from secateur.files import write_text

    try:
        write_text(path.resolve(), text)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from error
