"""L2 against its formula, and beside L1."""

from __future__ import annotations

import pytest
import torch
import zoo

import secateur


def test_l2_is_the_root_mean_square_of_the_filter() -> None:
    model = zoo.build("plain").double()
    graph = secateur.trace(model, zoo.example().double())
    units = list(graph.find("a.0")[0].units)
    lengths = [sum(float(w) ** 2 for w in model.a[0].weight[i].detach().flatten()) ** 0.5 for i in range(8)]
    assert secateur.score(graph, "l2", normalise=False)[units].tolist() == pytest.approx(lengths, rel=1e-12)
    expected = [length / 27**0.5 for length in lengths]
    assert secateur.score(graph, "l2")[units].tolist() == pytest.approx(expected, rel=1e-12)


def test_a_unit_of_several_filters_has_their_mean() -> None:
    """A residual sum: the stem and the second convolution of the first block make the same channels."""
    model = zoo.build("resnet_basic").double()
    graph = secateur.trace(model, zoo.example().double())
    group = next(g for g in graph.groups if ("stem.0.weight", 0) in g.members)
    convs = ("conv1.weight", "conv2.weight", "0.weight")
    makers = [name for name, dim in group.members if dim == 0 and name.endswith(convs)]
    state = model.state_dict()
    expected = torch.stack([state[name].flatten(1).square().mean(1).sqrt() for name in makers]).mean(0)
    assert len(makers) >= 2
    assert secateur.score(graph, "l2")[list(group.units)].tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_one_large_weight_weighs_more_than_many_small_ones() -> None:
    """L1 and L2 differ: (3, 0, 0, 0) against (1, 1, 1, 1)."""
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 2, 1, bias=False), torch.nn.Conv2d(2, 2, 1))
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([[3.0, 0, 0, 0], [1, 1, 1, 1]]).reshape(2, 4, 1, 1)
    graph = secateur.trace(net, torch.zeros(1, 4, 2, 2))
    assert secateur.score(graph, "l1")[list(graph.groups[0].units)].tolist() == [0.75, 1.0]
    assert secateur.score(graph, "l2")[list(graph.groups[0].units)].tolist() == [1.5, 1.0]
