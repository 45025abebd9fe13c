"""Pruned networks on disk: one safetensors file, the plan as JSON in its header. Nothing is executed at load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.errors import CheckpointError, PlanError
from secateur.files import atomic_path
from secateur.plan import Plan
from secateur.surgery.cut import apply

FORMAT = "1"


def _persistent(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tied tensor once, under its first name."""
    once: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {
        name: t.detach() for name, t in state.items() if isinstance(t, Tensor) and once.setdefault(id(t), name) == name
    }


def save(path: str | Path, model: nn.Module, plan: Plan) -> None:
    """Write a pruned network's tensors and its plan.

    Args:
        path: the file; a finished file appears at once or not at all.
        model: the pruned network.
        plan: what was removed from the original.
    """
    path = Path(path)
    tensors = {name: tensor.contiguous().clone() for name, tensor in _persistent(model).items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"secateur": FORMAT, "plan": plan.to_json()})


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}
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
    problems = misfits(expected, tensors)
    if problems:
        raise CheckpointError(f"{path} does not belong to this {type(model).__name__}; {problems}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
    return small


def misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The names by which a file's tensors differ from a network's, a few of each kind; empty if they fit."""
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = {
        "missing in the file": [name for name in expected if name not in found],
        "not in the network": [name for name in found if name not in expected],
        "of another shape": shapes,
    }
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)


def _some(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
