"""A network's weights as a plain safetensors file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from secateur.errors import CheckpointError
from secateur.files import atomic_path
from secateur.surgery import misfits

__all__ = ["load_weights", "save_weights"]


def save_weights(path: Path, model: nn.Module) -> None:
    """Writes the state dict to `path`, atomically; shared tensors are written once for each name."""
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict into `model`, whole or not at all.

    Raises:
        CheckpointError: there is no such file, it is damaged, or its tensors are another network's; lists the names
            that are missing, unexpected or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no weights file {path}.")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"The weights file {path} is damaged or truncated ({error}).") from error
    expected = model.state_dict()
    problems = misfits(expected, found)
    if problems:
        raise CheckpointError(
            f"The weights in {path} are not those of this {type(model).__name__}; {problems}. "
            "Were they trained with another network, width or number of classes?"
        )
    model.load_state_dict(found)
