"""What a recipe says of its network and how that is asked, without its data."""

from __future__ import annotations

from torch import nn

from secateur.models import create_model
from secateur.recipe import Model, Recipe
from secateur.training import Inference

__all__ = ["fresh_network", "inference_of"]


def fresh_network(settings: Model, classes: int) -> nn.Module:
    """The network with fresh weights and of its whole width.

    Raises:
        ModelError: the name or an option is unknown, or the factory failed.
    """
    options = dict(settings.options) if settings.width is None else {**settings.options, "width": settings.width}
    return create_model(settings.name, classes=classes, **options)


def inference_of(recipe: Recipe) -> Inference:
    """How networks are asked about the images that they are evaluated on."""
    settings = recipe.evaluate
    return Inference(
        settings.mode, settings.window or recipe.data.crop, settings.overlap, tuple(settings.scales), settings.flip
    )
