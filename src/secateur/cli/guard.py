"""Ends every command with the exit code and the one message that its user needs.

0 done; 1 a bug of ours, with the traceback in a file; 2 the user's mistake; 3 what was asked can't be had;
130 interrupted.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer

from secateur.errors import SecateurError

INTERRUPTED = 130

_run: list[tuple[Path, str]] = []


def remember_run(folder: Path, way_on: str) -> None:
    """Names the folder whose log.txt takes the traceback of a bug, and tells how an interrupted run goes on."""
    _run[:] = [(folder, way_on)]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turns exceptions of a command into one message on standard error and an exit code."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        _run.clear()
        try:
            command(*arguments, **options)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except SecateurError as error:
            _end(str(error), error.exit_code)
        except KeyboardInterrupt:
            _end(
                "interrupted" + "".join(f"; {folder} holds the run so far, {way}" for folder, way in _run), INTERRUPTED
            )
        except BrokenPipeError:  # the reader of our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            _end(
                f"a bug in secateur, or something the machine refused: {type(error).__name__}: {error}\n"
                f"The traceback is in {_write_traceback()}: please report it with the command and this file to the "
                "project's issue tracker.",
                1,
            )

    return run


def note(message: str) -> None:
    """One line on standard error."""
    print(message, file=sys.stderr)


def _end(message: str, code: int) -> NoReturn:
    note(f"secateur: {message}")
    raise typer.Exit(code)


def _write_traceback() -> Path:
    """Appends the current traceback to the run's log, or to a new file if there is no run."""
    log = _run[0][0] / "log.txt" if _run else None
    if log is None or not log.is_file():
        handle, name = tempfile.mkstemp(prefix="secateur-", suffix=".log")
        os.close(handle)
        log = Path(name)
    with log.open("a", encoding="utf-8") as file:
        file.write(traceback.format_exc())
    return log
