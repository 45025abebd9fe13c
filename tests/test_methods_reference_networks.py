"""Every method prunes the networks of the papers exactly: in their full depth; few channels and small images keep it
fast."""

from __future__ import annotations

import functools
from typing import Any

import methods
import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.methods import get_method, list_methods

NETWORKS = {"icnet": 64, "pspnet101": 33, "pspnet50": 33, "unet": 32}  # and the side of an image
AT_ONCE = [name for name in methods.PRUNING if not (get_method(name).decides or get_method(name).needs_training)]
SEARCHING = ["pagcp"]
TRAINING = [name for name in methods.PRUNING if name not in AT_ONCE + SEARCHING]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A network with an eighth of its channels or less, with gradients, and a batch."""
    torch.manual_seed(0)
    model, x = (
        secateur.create_model(name, classes=3, width=4).train(),
        torch.randn(2, 3, NETWORKS[name], NETWORKS[name]),
    )
    methods.loss_of(model(x), methods.labels_for(model, x)[0]).backward()
    return model, x


@functools.cache
def traced(name: str) -> tuple[secateur.Graph, Tensor]:
    """Traced once for all methods that need no training."""
    model, x = build(name)
    return secateur.trace(model, x), x


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", AT_ONCE)
def test_methods_that_score_once_prune_exactly(method: str, name: str) -> None:
    graph, x = traced(name)
    data: dict[str, Any] = {}
    if get_method(method).takes_data:
        target, classes = methods.labels_for(graph.model, x)
        data = {"data": [(x, target)], "loss": methods.loss_of, "classes": classes}
    scores = secateur.score(graph, method, **data)
    plan = secateur.select(graph, scores, pruning_ratio=0.3)
    small = secateur.apply(graph.model, plan)
    report = secateur.verify(graph.model, small, plan, x)
    assert report.ok, str(report)
    assert sum(p.numel() for p in small.parameters()) < 0.9 * sum(p.numel() for p in graph.model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", TRAINING)
def test_methods_with_a_part_in_training_prune_exactly(method: str, name: str) -> None:
    model, x = build(name)
    pruner, amount = methods.attach(method, model, x), {"budget": {"params": 0.7}}
    if pruner.method.decides:
        pruner.aim(**amount)
    pruner.begin(steps=2, lr_sum=0.02, epochs=2)
    methods.train(model, pruner, x, torch.optim.SGD(model.parameters(), 0.01), range(2), steps=1)
    result = pruner.finish(**({} if pruner.method.decides else amount))
    assert result.report is not None and result.report.ok, str(result.report)
    assert result.after.params <= 0.75 * result.before.params  # rounded in layers of 4 channels


@pytest.mark.parametrize("name", ["icnet", "unet"])  # a PSPNet takes some twenty seconds of search
@pytest.mark.parametrize("method", SEARCHING)
def test_methods_that_search_prune_exactly(method: str, name: str) -> None:
    """Told how far the output moves, so that it stops early in each of a hundred layers: it never falls, as the loss of
    an untrained network does."""
    model, x = build(name)
    with torch.no_grad():
        whole = methods.logits_of(model.eval()(x))
    model.train()

    def moved(output: Any, target: Tensor) -> Tensor:
        return 1 + (methods.logits_of(output) - target).square().mean() / target.var()

    pruner = secateur.Pruner(
        model, x, method=method, data=[(x, whole)], loss=moved, classes=3, initial_rate=0.01, initial_thres=1.5
    )
    result = pruner.finish()
    assert result.report is not None and result.report.ok, str(result.report)
    assert result.after.params < result.before.params


@pytest.mark.parametrize("name", NETWORKS)
def test_what_only_gates_channels_prunes_nothing_and_says_so(name: str) -> None:
    gating = [method for method in list_methods() if method not in methods.PRUNING]
    assert gating == ["ccgn"]
    for method in gating:
        model, x = build(name)
        pruner = methods.attach(method, model, x)
        with pytest.raises(secateur.errors.MethodError, match="removes none"):
            pruner.finish(pruning_ratio=0.3)
        pruner.close()
