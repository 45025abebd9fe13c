"""DCFP against its formula written out, on coupled layers, and what it says of short trainings."""

from __future__ import annotations

import methods
import numpy as np
import pytest
import torch
import zoo
from own_networks import Residual, Squeezed
from torch import Tensor, nn

import secateur
from secateur.errors import MethodError
from secateur.methods.dcfp import equalized

OWN = {"residual": Residual, "squeezed": Squeezed}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return (zoo.randomise(OWN[name]()) if name in OWN else zoo.build(name)).double().train()


def image(seed: int) -> Tensor:
    return torch.randn(3, 3, 16, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, pruner: secateur.Pruner, steps: range) -> None:
    for step in steps:
        model.zero_grad()
        methods.logits_of(model(image(step))).square().mean().backward()
        pruner.after_backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad


def by_the_code(model: nn.Module, steps: int, rate: float) -> dict[str, list[float]]:
    """e of every scale, one number at a time, in a training of its own."""
    found: dict[str, list[float]] = {}
    for step in range(steps):
        model.zero_grad()
        methods.logits_of(model(image(step))).square().mean().backward()
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                e = found.setdefault(f"{name}.weight", [0.0] * module.num_features)
                for j in range(module.num_features):
                    g, gamma = float(module.weight.grad[j]), float(module.weight.detach()[j])
                    if g * gamma > 0:
                        e[j] = rate * e[j] + (1 - rate) * abs(g)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
    return found


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("name", ["residual", "resnet_bottleneck", "segnet", "dense", "squeezed"])
def test_the_score_is_the_average_of_shrinking_gradients(name: str, reduce: str) -> None:
    rate = 0.7
    importance = by_the_code(network(name), 5, rate)
    model = network(name)
    pruner = secateur.Pruner(model, image(0), method="dcfp", rate=rate, reduce=reduce)
    train(model, pruner, range(5))
    graph, expected = pruner.graph, []
    for unit in range(graph.units):
        slots = [(graph.tensors[t].name, index) for t, dim, index in graph.slots(unit)]
        mine = [importance[tensor][index] for tensor, index in slots if tensor in importance]
        put = max if reduce == "max" else np.mean
        expected.append(float(put(mine)) if mine and graph.prunable[unit] else np.inf)
    assert pruner.method.scores(graph).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert any(0 < value < np.inf for value in expected)


def test_only_gradients_that_would_shrink_a_scale_count() -> None:
    """Five channels: g and gamma both positive, both negative, of different signs twice, and a gradient of 0."""
    gamma = torch.tensor([1.0, -2.0, 1.0, -1.0, 1.0])
    gradient = torch.tensor([3.0, -1.0, -3.0, 1.0, 0.0])
    before = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    after = equalized(before, gamma, gradient, 0.9)
    assert after.tolist() == pytest.approx([0.9 + 0.3, 0.9 + 0.1, 1.0, 1.0, 1.0])
    assert equalized(before, gamma, torch.tensor([torch.inf, torch.nan, 1, 1, 1]), 0.9)[:2].tolist() == [1.0, 1.0]


def test_a_channel_that_the_loss_would_rather_have_smaller_stays() -> None:
    """By this criterion the more a loss pulls a scale towards zero, the more important it is: as published."""
    net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1, bias=False)).train()
    pruner = secateur.Pruner(net, torch.randn(2, 1, 4, 4), method="dcfp")
    for weight in ([3.0, 1.0, -2.0],):
        net[1].weight.grad = torch.tensor(weight)
        pruner.after_backward()
    scores = pruner.method.scores(pruner.graph)[pruner.graph.prunable]
    assert scores.tolist() == pytest.approx([0.003, 0.001, 0.0])
    assert pruner.finish(pruning_ratio=0.34).plan.removed["0.weight"][0] == (2,)


def test_a_training_too_short_for_the_average_is_told() -> None:
    model = network("residual")
    pruner = secateur.Pruner(model, image(0), method="dcfp")
    train(model, pruner, range(2))
    assert any("2 steps only" in text for text in pruner.finish(pruning_ratio=0.3).warnings)
    model = network("residual")
    pruner = secateur.Pruner(model, image(0), method="dcfp", rate=0.5)
    train(model, pruner, range(3))
    assert not any("steps only" in text for text in pruner.finish(pruning_ratio=0.3).warnings)


def test_misuse_is_refused() -> None:
    graph = secateur.trace(network("residual"), image(0))
    with pytest.raises(MethodError, match=r"pruner.after_backward\(\)"):
        secateur.score(graph, "dcfp")
    with pytest.raises(MethodError, match="rate 1"):
        secateur.score(graph, "dcfp", rate=1.0)
    with pytest.raises(MethodError, match="known: max, mean"):
        secateur.score(graph, "dcfp", reduce="median")
    with pytest.raises(MethodError, match="no batch norm"):
        secateur.Pruner(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)), image(0).float(), method="dcfp")
