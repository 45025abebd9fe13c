"""Pruned networks on disk: one safetensors file, the plan as JSON in its header.

Files may come from anybody. Nothing in them is executed, nothing they say is believed before it was compared with the
network at hand, and nothing larger than that network can need is ever read.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from secateur.errors import CheckpointError, PlanError
from secateur.graph import state_of, unwrapped
from secateur.plan import Plan
from secateur.plan.plan import shown
from secateur.surgery.cut import apply
from secateur.surgery.forms import form_of, forms_after, persistent
from secateur.surgery.tensor_file import DIGEST, TensorFile, opened, write_tensors

__all__ = ["DIGEST", "FORMAT", "form_of", "load", "opened", "save", "write_tensors"]

FORMAT = "1"


def save(path: str | Path, model: nn.Module, plan: Plan) -> None:
    """Write a pruned network's tensors and its plan; equal content makes equal bytes.

    Args:
        path: the file; a finished file appears at once or not at all.
        model: the pruned network.
        plan: what was removed from the original.

    Examples:
        >>> import tempfile, torch, secateur
        >>> from pathlib import Path
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 1))
        >>> result = secateur.prune(net, torch.zeros(1, 3, 8, 8), pruning_ratio=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("one", "two"):
        ...         secateur.save(Path(folder, name), result.model, result.plan)
        ...     Path(folder, "one").read_bytes() == Path(folder, "two").read_bytes()
        True
    """
    write_tensors(Path(path), persistent(model), {"secateur": FORMAT, "plan": plan.to_json()})


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """Cut a fresh, unpruned network to a file's plan and load the file's tensors into it.

    Args:
        path: a file written by `save`; it may come from anybody.
        model: the network as it was before pruning; it is not changed.

    Returns:
        The pruned network.

    Raises:
        CheckpointError: the file is damaged or belongs to another network; all names that do not fit are told.

    Examples:
        >>> import tempfile, torch, secateur
        >>> from pathlib import Path
        >>> def network():
        ...     return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 1))
        >>> image = torch.randn(1, 3, 8, 8)
        >>> result = secateur.prune(network(), image, pruning_ratio=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     secateur.save(Path(folder, "small.safetensors"), result.model, result.plan)
        ...     small = secateur.load(Path(folder, "small.safetensors"), network())
        >>> small[0].out_channels, torch.equal(small(image), result.model(image))
        (4, True)
    """
    path, model = Path(path), unwrapped(model)
    with opened(path, {**model.state_dict(), **state_of(model)}) as file:
        plan = _plan_in(file)
        owner = type(model).__name__
        try:
            expected = forms_after(model, plan)
        except PlanError as error:
            raise CheckpointError(
                f"{path}: its plan does not fit this {owner}: {error}. Give load the unpruned network that the file "
                "was made from"
            ) from error
        file.check(expected, owner)
        small = apply(model, plan)
        with torch.no_grad():
            for name, tensor in persistent(small).items():
                tensor.copy_(file.tensor(name))
    return small


def _plan_in(file: TensorFile) -> Plan:
    if "plan" not in file.metadata:
        raise CheckpointError(f"{file.path}: weights without a plan; a file written by secateur.save was expected")
    version = file.metadata.get("secateur")
    if version != FORMAT:
        raise CheckpointError(
            f"{file.path}: format {shown(version)}; this release reads format {FORMAT}. Load it with the release that "
            "wrote it"
        )
    try:
        return Plan.from_json(file.metadata["plan"])
    except PlanError as error:
        raise CheckpointError(f"{file.path}: {error}. Write it again with secateur.save") from error
