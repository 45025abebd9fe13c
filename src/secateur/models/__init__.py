"""Networks by name: ours from a table, the user's own from `package.module:factory` or `path/to/file.py:factory`.

Networks know nothing of pruning. To add one: a file in this folder and a line in `NETWORKS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from secateur.errors import ModelError, nearest
from secateur.models.factory import load_factory
from secateur.models.icnet import ICNet
from secateur.models.pspnet import PSPNet, pspnet50, pspnet101
from secateur.models.resnet import ResNet, resnet18_cifar, resnet50, resnet101
from secateur.models.segnet import SegNet
from secateur.models.unet import UNet
from secateur.models.yolov5 import YOLOv5, yolov5l, yolov5m, yolov5s, yolov5x

__all__ = ["ICNet", "PSPNet", "ResNet", "SegNet", "UNet", "YOLOv5", "create_model", "list_models"]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "icnet": ICNet,
    "pspnet50": pspnet50,
    "pspnet101": pspnet101,
    "resnet18_cifar": resnet18_cifar,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "segnet": SegNet,
    "unet": UNet,
    "yolov5l": yolov5l,
    "yolov5m": yolov5m,
    "yolov5s": yolov5s,
    "yolov5x": yolov5x,
}


def list_models() -> list[str]:
    """The registered names, sorted.

    Examples:
        >>> import secateur
        >>> secateur.list_models()  # doctest: +ELLIPSIS
        ['icnet', 'pspnet101', ..., 'unet', 'yolov5l', 'yolov5m', 'yolov5s', 'yolov5x']
    """
    return sorted(NETWORKS)


def create_model(name: str, classes: int = 11, **options: Any) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: a registered name, `package.module:factory` or `path/to/file.py:factory`, where the factory is a function
            or class that returns an `nn.Module`. The working directory, or the file's folder, can be imported from.
        classes: number of classes; a user's factory receives it only if its signature takes `classes`.
        options: passed on to the network, for instance `width=16`.

    Raises:
        ModelError: the name, the module, the factory or an option is unknown, or the factory failed or returned
            something else.

    Examples:
        >>> import torch, secateur
        >>> net = secateur.create_model("unet", classes=5, width=4)
        >>> net.eval()(torch.zeros(1, 3, 32, 48)).shape
        torch.Size([1, 5, 32, 48])
        >>> secateur.create_model("torch.nn:Conv2d", in_channels=3, out_channels=8, kernel_size=1)
        Conv2d(3, 8, kernel_size=(1, 1), stride=(1, 1))
    """
    if name in NETWORKS:
        factory = NETWORKS[name]
    elif ":" in name:
        factory = load_factory(name)
    else:
        raise ModelError(
            f"unknown network {name!r}; {nearest(name, NETWORKS)}. For a network of your own give "
            "'package.module:factory' or 'path/to/file.py:factory'"
        )
    arguments = _arguments(name, factory, classes, options)
    try:
        model = factory(**arguments)
    except ModelError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ModelError(
            f"network {name!r}: its call with ({given}) failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"network {name!r}: the factory must return a torch.nn.Module, got {type(model).__name__}")
    return model


def _arguments(name: str, factory: Callable[..., Any], classes: int, options: dict[str, Any]) -> dict[str, Any]:
    """What the factory is called with, checked against its signature."""
    parameters = inspect.signature(factory).parameters
    named = {key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        allowed = named - {"classes"}
        unknown = sorted(set(options) - allowed)
        if unknown:
            hint = nearest(unknown[0], allowed) if allowed else "it takes none"
            raise ModelError(f"network {name!r} has no option {', '.join(map(repr, unknown))}; {hint}")
    return {"classes": classes, **options} if "classes" in named else dict(options)
