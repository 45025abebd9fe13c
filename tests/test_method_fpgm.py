"""FPGM against its formula written out, by hand, on coupled layers, and what it does not see."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import Tensor, nn

import secateur
from secateur.methods import distances
from secateur.methods.distances import distance_matrix, distance_sums


def by_the_paper(filters: Tensor) -> list[float]:
    """sum over j of ||F_i - F_j||, one pair at a time."""
    rows = filters.detach().double().flatten(1)
    return [sum(float(torch.sqrt(((a - b) ** 2).sum())) for b in rows) for a in rows]


def expected_scores(model: nn.Module, graph: secateur.Graph, relative: bool) -> list[float]:
    """The mean over every convolution and linear layer that a unit has filters in."""
    sums = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            dim = int(isinstance(module, nn.ConvTranspose2d))  # of its filters
            scores = by_the_paper(module.weight.transpose(0, dim))
            mean = sum(scores) / len(scores) if relative else 1.0
            sums[f"{name}.weight", dim] = [s / mean for s in scores]
    out = []
    for unit in range(graph.units):
        slots = [((graph.tensors[t].name, dim), index) for t, dim, index in graph.slots(unit)]
        mine = [sums[place][index] for place, index in slots if place in sums]
        out.append(sum(mine) / len(mine) if mine and graph.prunable[unit] else float("inf"))
    return out


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("name", ["plain", "resnet_bottleneck", "unet", "segnet", "dense", "inverted", "resnext"])
def test_the_score_is_the_sum_of_distances_within_the_layer(name: str, relative: bool) -> None:
    model = zoo.build(name).double()
    graph = secateur.trace(model, zoo.example().double())
    got = secateur.score(graph, "fpgm", relative=relative)
    assert got.tolist() == pytest.approx(expected_scores(model, graph, relative), rel=1e-7)


def test_fpgm_removes_the_filter_nearest_the_median() -> None:
    """Five filters of two weights: the corners of a square and a point in it, by no means the shortest.

    (10, 10) (10, 12) (12, 10) (12, 12) and (11, 11): the last is sqrt 2 from all others, 5.66 in all; a corner is
    2 + 2 + 2 sqrt 2 + sqrt 2 = 8.24 from the others.
    """
    net = nn.Sequential(nn.Conv2d(2, 5, 1, bias=False), nn.ReLU(), nn.Conv2d(5, 2, 1))
    points = torch.tensor([[10.0, 10], [10, 12], [12, 10], [12, 12], [11, 11]])
    with torch.no_grad():
        net[0].weight[:] = points.reshape(5, 2, 1, 1)
    image = torch.zeros(1, 2, 4, 4)
    scores = secateur.score(secateur.trace(net, image), "fpgm", relative=False)
    assert scores[:5].tolist() == pytest.approx([8.2426, 8.2426, 8.2426, 8.2426, 5.6569], abs=1e-4)
    result = secateur.prune(net, image, method="fpgm", pruning_ratio=0.2)
    assert result.plan.removed["0.weight"][0] == (4,)
    assert secateur.prune(net, image, method="l1", pruning_ratio=0.2).plan.removed["0.weight"][0] == (0,)


def test_a_common_shift_and_the_layers_scale_change_nothing() -> None:
    model = zoo.build("plain").double()
    graph = secateur.trace(model, zoo.example().double())
    before = secateur.score(graph, "fpgm")
    with torch.no_grad():
        model.a[0].weight.add_(torch.randn(3, 3, 3, dtype=torch.float64))
        model.b[0].weight.mul_(7.0)
    assert secateur.score(graph, "fpgm").tolist() == pytest.approx(before.tolist(), rel=1e-7)


def test_filters_that_are_all_the_same_have_distance_zero() -> None:
    assert distance_sums(torch.ones(4, 9)).tolist() == [0.0] * 4
    net = nn.Sequential(nn.Conv2d(2, 5, 1), nn.Conv2d(5, 2, 1))
    nn.init.ones_(net[0].weight)
    assert secateur.score(secateur.trace(net, torch.zeros(1, 2, 4, 4)), "fpgm")[:5].tolist() == [0.0] * 5


def test_many_filters_are_compared_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = torch.randn(23, 40)
    whole = distance_matrix(filters).sum(1)
    monkeypatch.setattr(distances, "BLOCK", 5 * 23)
    seen: list[int] = []
    original = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b, **kw: (seen.append(len(a)), original(a, b, **kw))[1])
    torch.testing.assert_close(distance_sums(filters), whole)
    assert seen == [5, 5, 5, 5, 3]
