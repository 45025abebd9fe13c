"""Where to compute: a Lightning Fabric from the few settings that matter."""

from __future__ import annotations

import ctypes

import torch
from lightning_fabric import Fabric

from secateur.errors import RecipeError

__all__ = ["keep_freed_memory", "make_fabric"]

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def make_fabric(accelerator: str = "auto", devices: int = 1, precision: str | int = 32) -> Fabric:
    """Fabric on `devices` devices: "cpu", "gpu" or "auto" (a GPU if there is one); precision 32, "bf16" or 16 (mixed).

    Raises:
        RecipeError: there is no such device, or it can't compute in this precision.
    """
    available = torch.cuda.device_count()
    if accelerator == "gpu" and devices > available:
        raise RecipeError(
            f"run.accelerator=gpu with run.devices={devices}: this machine has {available} CUDA devices; "
            "use accelerator=cpu or auto."
        )
    if accelerator == "auto":
        accelerator = "gpu" if available else "cpu"
        if accelerator == "gpu" and devices > available:
            raise RecipeError(f"run.devices={devices}: this machine has {available} CUDA devices.")
    if accelerator == "cpu" and str(precision) == "16":
        raise RecipeError("run.precision=16 needs a GPU; on the CPU use 32 or bf16.")
    return Fabric(
        accelerator={"gpu": "cuda"}.get(accelerator, accelerator),
        devices=devices,
        precision=PRECISIONS[str(precision)],  # type: ignore[arg-type]
    )


def keep_freed_memory() -> bool:
    """Has the C library keep what tensors on the CPU free, for the whole process.

    glibc gives every large block back to the system and asks for it again in the next step, page by page; training on
    the CPU then spends up to a third of its time on page faults. Only glibc has this, and needs it.

    Returns:
        Whether the C library took it on.
    """
    trim_threshold, mmap_max = -1, -4  # parameters of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; another system
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, -1))
