"""Pruned networks on disk: one safetensors file, the plan as JSON in its header. No pickle, nothing executed at load."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.errors import CheckpointError, PlanError
from secateur.plan import Plan
from secateur.surgery.cut import apply

FORMAT = "1"


def _persistent(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tied tensor once, under its first name."""
    once: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: t.detach() for name, t in state.items() if isinstance(t, Tensor) and once.setdefault(id(t), name) == name}


def save(path: str | Path, model: nn.Module, plan: Plan) -> None:
    """Write a pruned network's tensors and its plan.

    Args:
        path: the file; a finished file appears at once or not at all.
        model: the pruned network.
        plan: what was removed from the original.
    """
    path = Path(path)
    tensors = {name: tensor.contiguous().clone() for name, tensor in _persistent(model).items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"secateur": FORMAT, "plan": plan.to_json()})
        with Path(temporary).open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Tensor], Plan]:
    """The tensors and the plan in a file.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it was not written by `save`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file ({error})") from error
    if "plan" not in metadata:
        raise CheckpointError(f"{path}: weights without a plan; a file written by secateur.save was expected")
    if metadata.get("secateur") != FORMAT:
        raise CheckpointError(f"{path}: format {metadata.get('secateur')!r}; this release reads format {FORMAT}")
    try:
        return tensors, Plan.from_json(metadata["plan"])
    except PlanError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """Cut a fresh, unpruned network to a file's plan and load the file's tensors into it.

    Args:
        path: a file written by `save`.
        model: the network as it was before pruning; it is not changed.

    Returns:
        The pruned network.

    Raises:
        CheckpointError: the file is damaged or belongs to another network; all names that do not fit are told.
    """
    tensors, plan = read(path)
    try:
        small = apply(model, plan)
    except PlanError as error:
        raise CheckpointError(f"{path}: {error}") from error
    expected = _persistent(small)
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(expected[name].shape)} in the network"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    problems = [
        f"{what}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for what, names in (("missing in the file", missing), ("not in the network", surplus), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not belong to this {type(model).__name__}; " + "; ".join(problems))
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
    return small
