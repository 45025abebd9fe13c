"""Grad-CAM of segmentation networks.

Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017
(arXiv:1610.02391), eqs. 1 and 2: L = ReLU(sum_k alpha_k A_k), alpha_k the mean over space of dy/dA_k, A_k the channels
of a layer, y the score of a class. For segmentation, as in Vinogradova, Dibrov and Myers, Towards Interpretable
Semantic Segmentation via Gradient-weighted Class Activation Mapping, AAAI 2020 (arXiv:2002.11434), y is the sum of the
class's logits over a set of pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import ModelError, nearest
from secateur.graph import mode_of
from secateur.metrics import main_logits


def grad_cam(
    model: nn.Module, images: Tensor, layer: str, class_index: int, region: Tensor | str | None = None
) -> Tensor:
    """Which places of a layer speak for a class: a heat map per image.

    The network is run in eval mode and left as it was, gradients, modes and statistics included.

    Args:
        model: a segmentation network; of several heads the main one counts.
        images: (N, 3, H, W), prepared as for the network.
        layer: the name of any module whose output is a map (N, C, h, w), or holds one: the first counts. Of a module
            that is called several times the last call counts.
        class_index: the class, from 0.
        region: the pixels whose logits are added up: None for those that the network gives this class, "all", or a
            mask (H, W) or (N, H, W).

    Returns:
        (N, H, W) between 0 and 1, 1 at the brightest place of every image; all 0 where nothing speaks for the class,
        or where the region is empty.

    Raises:
        ModelError: there is no such layer, class or region, or the layer has no map that the logits hang on.

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(1, 2, 1))
        >>> with torch.no_grad():  # class 1 is what is brighter than 0.25
        ...     for parameter, values in zip(net.parameters(), ([1.0], [0.0], [-1.0, 1.0], [0.5, 0.0])):
        ...         _ = parameter.copy_(torch.tensor(values).view_as(parameter))
        >>> image = torch.tensor([[0.0, 0.1, 0.8], [0.0, 0.2, 0.4]])[None, None]
        >>> secateur.grad_cam(net, image, layer="0", class_index=1)[0]
        tensor([[0.0000, 0.1250, 1.0000],
                [0.0000, 0.2500, 0.5000]])
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if layer not in modules:
        raise ModelError(f"{type(model).__name__} has no module {layer!r}; {nearest(layer, modules, shown=12)}")
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        leaves, spec = pytree.tree_flatten(output)
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.dim() == 4 and leaf.is_floating_point():
                kept[:] = [leaf if leaf.requires_grad else leaf.detach().requires_grad_()]
                leaves[i] = kept[0].clone()  # what follows may write in place
                return pytree.tree_unflatten(leaves, spec)
        return None

    hook = modules[layer].register_forward_hook(keep)
    try:
        with mode_of(model, False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            logits = main_logits(model(images), images.shape[-2:])
            score = (_of_class(model, logits, class_index) * _pixels(logits, class_index, region)).sum()
            if not kept:
                raise ModelError(f"no map (N, C, h, w) comes out of {layer} of {type(model).__name__} for these images")
            gradient = torch.autograd.grad(score, kept, allow_unused=True)[0] if score.requires_grad else None
    finally:
        hook.remove()
    if gradient is None:
        raise ModelError(f"the logits of {type(model).__name__} do not hang on what {layer} puts out")
    with torch.no_grad():
        alpha = gradient.mean((2, 3), keepdim=True)
        maps = F.relu((alpha * kept[0]).sum(1, keepdim=True))
        maps = F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
        highest = maps.amax((1, 2), keepdim=True)
        return torch.where(highest > 0, maps / highest.clamp_min(torch.finfo(maps.dtype).tiny), 0)


def _of_class(model: nn.Module, logits: Tensor, class_index: int) -> Tensor:
    """(N, H, W): the logits of one class."""
    classes = logits.shape[1]
    if isinstance(class_index, bool) or not isinstance(class_index, int) or not 0 <= class_index < classes:
        raise ModelError(
            f"class {class_index!r}: {type(model).__name__} has {classes} classes, a number from 0 to {classes - 1} "
            "was expected"
        )
    return logits[:, class_index]


def _pixels(logits: Tensor, class_index: int, region: Tensor | str | None) -> Tensor:
    """bool (N, H, W) or (H, W): the pixels that count."""
    if region is None:
        return logits.argmax(1) == class_index
    if isinstance(region, Tensor):
        n, _, h, w = logits.shape
        if tuple(region.shape) not in ((h, w), (n, h, w)):
            raise ModelError(f"region of shape {tuple(region.shape)}: a mask {(h, w)} or {(n, h, w)} was expected")
        return region.to(logits.device) != 0
    if region != "all":
        raise ModelError(f"region {region!r}: None, 'all' or a mask was expected")
    return torch.ones_like(logits[:, 0], dtype=torch.bool)
