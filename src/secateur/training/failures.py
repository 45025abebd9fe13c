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
_DISK = re.compile(r"no space left|quota exceeded|file too large", re.IGNORECASE)
_DISK_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def refusals_told(where: Callable[[], str], shape: Callable[[], Sequence[int]]) -> Iterator[None]:
    """Turns a lack of memory, a dead worker and a full disk into a message; everything else passes.

    Args:
        where: the step, when it is asked.
        shape: of the images in it.

    Raises:
        CannotError: the machine refused; what was saved before is as it was.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_NUMBERS and not _DISK.search(str(error)):
            raise
        raise CannotError(
            f"The disk is full ({error}), at {where()}. The last checkpoint is as it was: make room, and go on with "
            "--resume."
        ) from error
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or _MEMORY.search(text):
            raise CannotError(
                f"Out of memory at {where()}, with images of shape {tuple(shape())} in a step. Lower the batch size "
                "(train.batch_size), the image size (data.size) or the network's width (model.width), or compute in "
                "half precision (run.precision=bf16); the last checkpoint is as it was."
            ) from error
        if _WORKER.search(text):
            raise CannotError(
                f"A process that loads data has died at {where()}: {text.strip().splitlines()[-1]} It was most likely "
                "killed for memory, or /dev/shm is too small: lower data.workers (0 loads in the main process), and go "
                "on with --resume."
            ) from error
        raise
