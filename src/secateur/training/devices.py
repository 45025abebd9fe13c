"""Where to compute: a Lightning Fabric from the few settings that matter."""

from __future__ import annotations

import ctypes
import os

import torch
from lightning_fabric import Fabric

from secateur.errors import RecipeError

__all__ = ["keep_freed_memory", "make_fabric"]

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def make_fabric(accelerator: str = "auto", devices: int = 1, precision: str | int = 32) -> Fabric:
    """Fabric on `devices` devices: "cpu", "gpu" or "auto" (a GPU if there is one); precision 32, "bf16" or 16 (mixed).

    Under torchrun there is a device for each of its processes, also on several machines; `devices` is then 1, or the
    number of its processes on one machine.

    Raises:
        RecipeError: there is no such device, or it can't compute in this precision, or torchrun has started another
            number of processes.
    """
    devices, nodes = _launched(devices)
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
        num_nodes=nodes,
        precision=PRECISIONS[str(precision)],  # type: ignore[arg-type]
    )


def _launched(devices: int) -> tuple[int, int]:
    """Devices per machine and machines, as torchrun has it if that has started this process."""
    if not (torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()):
        return devices, 1
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if devices not in (1, local):
        raise RecipeError(
            f"run.devices={devices}, but torchrun has started {local} processes here; leave run.devices at 1, or start "
            f"{devices} (--nproc-per-node)."
        )
    return local, world // local


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
