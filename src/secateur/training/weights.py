"""A network's weights as a plain safetensors file."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from secateur.surgery.storage import form_of, opened, write_tensors

__all__ = ["load_weights", "save_weights"]


def save_weights(path: Path, model: nn.Module) -> None:
    """Writes the state dict to `path`, atomically; shared tensors are written once for each name."""
    write_tensors(Path(path), model.state_dict(), {})


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict into `model`, whole or not at all; the file may come from anybody.

    Raises:
        CheckpointError: there is no such file, it is damaged, or its tensors are another network's; lists the names
            that are missing, unexpected or of another shape or type.
    """
    expected = model.state_dict()
    with opened(Path(path), expected) as file:
        file.check({name: form_of(tensor) for name, tensor in expected.items()}, type(model).__name__)
        found = {name: file.tensor(name) for name in expected}
    model.load_state_dict(found)
