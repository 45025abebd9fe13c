"""Checkpoints: nested state in one safetensors file, written so that no crash can lose the last good one.

No pickle anywhere: tensors are stored as safetensors, everything around them as JSON in the file's metadata. Every
tensor and the JSON carry a checksum, so that a damaged file is noticed and never half loaded.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import CheckpointError
from secateur.files import atomic_path, remove_temporary
from secateur.surgery.tensor_file import disk_errors

__all__ = ["CheckpointFolder", "read_state", "write_state"]

log = logging.getLogger(__name__)
FORMAT = "secateur-state-1"


def write_state(path: Path, state: Any) -> None:
    """Writes `state`, a nest of dicts, lists and tuples of tensors, numbers, strings, bools and None, to `path`.

    Atomic and durable: `path` holds either what it held before or all of the new state, also after a crash.

    Raises:
        TypeError: something in the state is of another kind; names where it is.
        OSError: the disk is full, or fails; `path` is as it was.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(state, tensors, "state"))
    metadata = {"format": FORMAT, "structure": structure, "crc": str(zlib.crc32(structure.encode()))}
    with atomic_path(path) as temporary, disk_errors(path):
        save_file(tensors, temporary, metadata=metadata)


def read_state(path: Path) -> Any:
    """Reads what `write_state` wrote; tensors come back on the CPU, contiguous.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = metadata.get("format", "none")
                raise CheckpointError(f"{path} is not a training checkpoint (format {found}, expected {FORMAT}).")
            structure = metadata.get("structure", "")
            if str(zlib.crc32(structure.encode())) != metadata.get("crc"):
                raise CheckpointError(f"The checkpoint {path} is damaged (checksum of its structure).")
            # cloned: the file is memory-mapped, and the state must outlive it
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            return _unpack(json.loads(structure), tensors, path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"The checkpoint {path} is damaged or truncated ({error}).") from error


class CheckpointFolder:
    """The checkpoints of one training stage: `step-00000120.safetensors` and its predecessor.

    Reading takes the newest file that is whole. Two are kept, so one damaged file never ends a run.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = Path(path)
        self.keep = keep
        self._damaged: list[Path] = []

    def files(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(f for f in self.path.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", f.stem))

    def save(self, step: int, state: Any) -> Path:
        """Writes the state after optimizer step `step`, then removes all but the newest `keep` checkpoints."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / f"step-{step:08d}.safetensors"
        write_state(path, state)
        # a damaged file must not take the place of a good one
        for damaged in self._damaged:
            if damaged != path:
                damaged.unlink(missing_ok=True)
        self._damaged = []
        self.tidy(self.keep)
        return path

    def load(self) -> Any | None:
        """The newest state that can be read, or None when there is no checkpoint yet.

        Raises:
            CheckpointError: there are checkpoints, and every one is damaged.
        """
        problems = []
        for path in reversed(self.files()):
            try:
                state = read_state(path)
            except CheckpointError as error:
                problems.append(error)
                self._damaged.append(path)
                log.warning("%s", error)
                continue
            if problems:
                log.warning("Going on from the older checkpoint %s.", path)
            return state
        if problems:
            raise CheckpointError(
                f"No checkpoint in {self.path} can be read: {' '.join(map(str, problems))} "
                f"Delete {self.path} to begin this stage again."
            )
        return None

    def tidy(self, keep: int = 1) -> None:
        """Removes all but the newest `keep` checkpoints, and what killed processes left half-written."""
        for old in self.files()[:-keep]:
            old.unlink()
        if self.path.is_dir():
            remove_temporary(self.path)


# In the JSON an object is always a tag with one key, so that dicts with any scalar keys, tuples and tensors survive.


def _pack(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # a copy where memory is shared or strided: safetensors stores every tensor whole and once
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": [name, list(value.shape), str(value.dtype), _checksum(tensors[name])]}
    if isinstance(value, list):
        return [_pack(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, dict):
        items = []
        for key, item in value.items():
            if not (key is None or isinstance(key, bool | int | float | str)):
                raise TypeError(f"{where} has a key of type {type(key).__name__}; only scalars can be stored.")
            items.append([key, _pack(item, tensors, f"{where}[{key!r}]")])
        return {"dict": items}
    raise TypeError(f"{where} is of type {type(value).__name__}, which a checkpoint cannot hold.")


def _unpack(value: Any, tensors: dict[str, Tensor], path: Path) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors, path) for item in value]
    if not isinstance(value, dict):
        return value
    [(tag, content)] = value.items()
    if tag == "tuple":
        return tuple(_unpack(item, tensors, path) for item in content)
    if tag == "dict":
        return {key: _unpack(item, tensors, path) for key, item in content}
    name, shape, dtype, crc = content
    tensor = tensors[name]
    if list(tensor.shape) != shape or str(tensor.dtype) != dtype or _checksum(tensor) != crc:
        raise CheckpointError(f"The checkpoint {path} is damaged (checksum of tensor {name}).")
    return tensor


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)
