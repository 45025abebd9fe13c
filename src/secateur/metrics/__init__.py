"""mIoU and its companions, from one confusion matrix over a whole data set; the logits that they are taken from."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from secateur.metrics.logits import all_logits, at_size, main_logits

if TYPE_CHECKING:
    from secateur.metrics.boundary import Boundary
    from secateur.metrics.confusion import Confusion, Scores

__all__ = ["Boundary", "Confusion", "Scores", "all_logits", "at_size", "main_logits"]

# These need torchmetrics, which takes longer to import than a large network to prune.
_HOME = {"Boundary": "boundary", "Confusion": "confusion", "Scores": "confusion"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'secateur.metrics' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"secateur.metrics.{_HOME[name]}"), name)
    return value
