"""What the machine refuses in the middle of a run, in words that say what to change."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from secateur.errors import CannotError

__all__ = ["refusals_told"]

_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|failed to allocate", re.IGNORECASE)
_WORKER = re.compile(r"DataLoader worker.*(exited unexpectedly|is killed|out of shared memory)", re.DOTALL)
_CUT_OFF = (ConnectionResetError, ConnectionRefusedError, EOFError)  # what a process leaves that dies while it sends
_FULL = re.compile(r"no space left|quota exceeded|file too large", re.IGNORECASE)
_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# a disk or a file server that does not answer as it should; a stale handle is NFS's
_FAILING_NUMBERS = (errno.EIO, errno.ESTALE, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT)
_RESUME = "What was saved before is as it was"


@contextmanager
def refusals_told(where: Callable[[], str], shape: Callable[[], Sequence[int]] | None = None) -> Iterator[None]:
    """Turns a lack of memory, a dead worker and a disk that is full or fails into a message; everything else passes.

    Args:
        where: the step or the stage, when it is asked.
        shape: of the images in it; None where that is not known.

    Raises:
        CannotError: the machine refused; what was saved before is as it was.
    """
    try:
        yield
    except _CUT_OFF as error:
        raise _worker_died(where(), f"{type(error).__name__}: {error}") from error
    except OSError as error:
        if error.errno in _FULL_NUMBERS or _FULL.search(str(error)):
            raise CannotError(
                f"The disk is full, or a quota is used up, at {where()}: {_told(error)}. {_RESUME}: make room, and go "
                "on with --resume."
            ) from error
        if error.errno in _FAILING_NUMBERS:
            raise CannotError(
                f"The disk or the file server failed at {where()}: {_told(error)}. {_RESUME}: when the disk answers "
                "again, go on with --resume."
            ) from error
        raise
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or _MEMORY.search(text):
            images = "" if shape is None or not shape() else f", with images of shape {tuple(shape())} in a step"
            raise CannotError(
                f"Out of memory at {where()}{images}. Lower the batch size "
                "(train.batch_size), the image size (data.size) or the network's width (model.width), or compute in "
                f"half precision (run.precision=bf16). {_RESUME}."
            ) from error
        if _WORKER.search(text):
            raise _worker_died(where(), text.strip().splitlines()[-1]) from error
        raise


def _worker_died(where: str, what: str) -> CannotError:
    return CannotError(
        f"A process that loads data has died at {where}: {what} It was most likely killed for memory, or /dev/shm is "
        "too small: lower data.workers (0 loads in the main process), and go on with --resume."
    )


def _told(error: OSError) -> str:
    """What was refused, and of which file."""
    return f"{error.strerror}, {error.filename}" if error.strerror and error.filename else str(error)
