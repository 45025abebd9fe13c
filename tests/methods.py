"""What tests of methods share: any registered method attached to a network, given what it needs, trained a little."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.methods import get_method, list_methods
from secateur.methods.material import evaluating

PRUNING = [name for name in list_methods() if get_method(name).prunes]


def logits_of(output: Any) -> Tensor:
    """The first tensor of an output."""
    return (
        output
        if isinstance(output, Tensor)
        else logits_of(next(iter(output.values() if hasattr(output, "values") else output)))
    )


def loss_of(output: Any, target: Tensor) -> Tensor:
    logits = logits_of(output)
    if logits.shape[2:] != target.shape[1:]:
        logits = F.interpolate(logits, target.shape[1:], mode="bilinear")
    return F.cross_entropy(logits, target, ignore_index=255)


def labels_for(model: nn.Module, x: Tensor, seed: int = 0) -> tuple[Tensor, int]:
    """Random label maps of the input's size, a few of them void, and the number of classes."""
    with evaluating(model):  # no statistics move
        classes = logits_of(model(x)).shape[1]
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (x.shape[0], *x.shape[2:]), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.05] = 255
    return target, classes


def material(method: str, model: nn.Module, x: Tensor) -> dict[str, Any]:
    """The arguments `data`, `loss` and `classes`, of a method that needs them."""
    if not get_method(method).needs_data:
        return {}
    pairs = []
    for seed in range(2):
        target, classes = labels_for(model, x, seed)
        pairs.append((x + 0.1 * seed, target))
    return {"data": pairs, "loss": loss_of, "classes": classes}


def attach(method: str, model: nn.Module, x: Tensor, **options: Any) -> secateur.Pruner:
    return secateur.Pruner(model, x, method=method, **material(method, model, x), **options)


def train(
    model: nn.Module,
    pruner: secateur.Pruner,
    x: Tensor,
    optimizer: torch.optim.Optimizer,
    epochs: range,
    steps: int = 2,
) -> None:
    """A few steps of one batch each in every one of the epochs."""
    target, _ = labels_for(model, x)
    for epoch in epochs:
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model(x), target).backward()
            pruner.after_backward()
            optimizer.step()
            pruner.after_step(0.1)
        pruner.after_epoch(epoch)


def pruned_to(method: str, model: nn.Module, x: Tensor, budget: dict[str, float], **options: Any) -> secateur.Result:
    """Trained for three epochs with the method attached, and cut to the budget."""
    pruner = attach(method, model, x, **options)
    amount: dict[str, Any] = {"budget": budget}
    if pruner.method.decides:
        pruner.aim(**amount)
        amount = {}
    pruner.begin(steps=6, lr_sum=0.6, epochs=3)
    train(model, pruner, x, torch.optim.SGD(model.parameters(), 0.1), range(3))
    return pruner.finish(**amount)
