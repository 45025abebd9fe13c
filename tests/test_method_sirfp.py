"""SIRFP against its formulas written out, by hand, on coupled layers, and where there is nothing to compare."""

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
from secateur.methods.sirfp import detail_of, redundancy, taken_away

OWN = {"residual": Residual, "squeezed": Squeezed}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return (zoo.randomise(OWN[name]()) if name in OWN else zoo.build(name)).double().train()


def image(seed: int) -> Tensor:
    return torch.randn(3, 3, 16, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, pruner: secateur.Pruner | None, steps: range) -> None:
    for step in steps:
        model.zero_grad()
        methods.logits_of(model(image(step))).square().mean().backward()
        if pruner is not None:
            pruner.after_backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad


def dots(maps: Tensor) -> list[list[float]]:
    """R of one step, sample by sample and pair by pair."""
    n, channels = maps.shape[:2]
    out = [[0.0] * channels for _ in range(channels)]
    for sample in maps:
        normed = [m.flatten() / (m.abs().sum() + 1e-5) for m in sample]
        for j in range(channels):
            for k in range(channels):
                out[j][k] += float(normed[j] @ normed[k]) / n
    return out


def spread(maps: Tensor) -> list[float]:
    """D of one step, pixel by pixel."""
    out = []
    for channel in range(maps.shape[1]):
        total = 0.0
        for sample in maps[:, channel]:
            z = nn.functional.pad(sample, (1, 1, 1, 1))
            height, width = sample.shape
            lengths = []
            for y in range(1, height + 1):
                for x in range(1, width + 1):
                    gx = sum(w * (z[y + d, x + 1] - z[y + d, x - 1]) for d, w in ((-1, 0.5), (0, 1.0), (1, 0.5)))
                    gy = sum(w * (z[y + 1, x + d] - z[y - 1, x + d]) for d, w in ((-1, 0.5), (0, 1.0), (1, 0.5)))
                    lengths.append(float((gx**2 + gy**2) ** 0.5))
            total += float(np.std(lengths))
        out.append(total / len(maps))
    return out


def greedy(matrix: list[list[float]]) -> list[float]:
    """Take away the channel of the largest sum over those that are left, until none is."""
    left, out = set(range(len(matrix))), [0.0] * len(matrix)
    while left:
        sums = {j: sum(abs(matrix[j][k]) for k in left) for j in sorted(left)}
        going = max(sums, key=lambda j: (sums[j], -j))
        out[going] = sums[going]
        left.remove(going)
    return out


@pytest.mark.parametrize("detail", [0.0, 0.4])
@pytest.mark.parametrize("name", ["residual", "segnet", "unet", "squeezed"])
def test_the_score_is_detail_minus_redundancy_with_what_is_left(name: str, detail: float) -> None:
    rate, steps, averages = 0.6, 2, {}
    model = network(name)
    maps: dict[str, Tensor] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(
                lambda m, a, out, name=f"{module_name}.weight": maps.__setitem__(name, out.detach().clone())
            )
    for step in range(steps):
        train(model, None, range(step, step + 1))
        for key, value in maps.items():
            new = np.column_stack([dots(value), spread(value) if detail else np.zeros(value.shape[1])])
            averages[key] = rate * averages.get(key, 0.0) + (1 - rate) * new
    scores = {
        key: (detail * average[:, -1] - np.array(greedy(average[:, :-1].tolist()))).tolist()
        for key, average in averages.items()
    }
    model = network(name)
    pruner = secateur.Pruner(model, image(0), method="sirfp", rate=rate, detail=detail)
    train(model, pruner, range(steps))
    graph, expected = pruner.graph, []
    for unit in range(graph.units):
        slots = [(graph.tensors[t].name, index) for t, dim, index in graph.slots(unit)]
        mine = [scores[tensor][index] for tensor, index in slots if tensor in scores]
        expected.append(max(mine) if mine and graph.prunable[unit] else np.inf)
    assert pruner.method.scores(graph).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_of_two_alike_one_goes_first_and_what_is_alone_last() -> None:
    """Maps of four places: a and b the same, c elsewhere. |x|_1 = 2, so R_aa = R_ab = R_bb = 1/2; R_cc = 1, R_ac = 0.

    a and b have sums of 1, c has 1 as well; by channel a goes first at 1; then b has 1/2 and c 1, so c goes at 1, and b
    last at 1/2.
    """
    maps = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]).reshape(1, 3, 2, 2)
    matrix = redundancy(maps)
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(matrix, expected, atol=3e-5, rtol=0)
    assert taken_away(expected.double().numpy()).tolist() == [1.0, 0.5, 1.0]
    assert redundancy(7 * maps).numpy() == pytest.approx(matrix.numpy(), abs=3e-5)  # its scale is no matter


def test_even_maps_have_no_detail_but_at_the_border() -> None:
    """A constant map of ones: the length is 0 inside; at the edges 2 (1.5 + ... without the corners' padding)."""
    flat, step = torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    step[..., 3:] = 1
    assert float(detail_of(flat)) == 0 < float(detail_of(step))
    assert detail_of(torch.cat([step, step], 1)).tolist() == [float(detail_of(step))] * 2


def test_what_is_taken_away_first_is_pruned_first() -> None:
    """Four filters, two of which are the same but for their sign and size: one of these two goes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).train()
    with torch.no_grad():
        net[0].weight[3] = -2 * net[0].weight[1]
    x = torch.randn(4, 1, 12, 12)
    pruner = secateur.Pruner(net, x, method="sirfp")
    net(x).square().mean().backward()
    pruner.after_backward()
    assert pruner.finish(pruning_ratio=0.25).plan.removed["0.weight"][0] in ((1,), (3,))


def test_maps_of_one_position_stay() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.second, self.b = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(self.first(x)).relu().mean((2, 3), keepdim=True)
            return self.head(self.b(self.second(z)).relu())

    net, x = Pooled().train(), torch.randn(4, 3, 8, 8)
    pruner = secateur.Pruner(net, x, method="sirfp")
    net(x).square().mean().backward()
    pruner.after_backward()
    result = pruner.finish(pruning_ratio=0.5)
    assert result.model.second.out_channels == 6 and result.model.first.out_channels == 4


def test_layers_that_took_no_part_are_told() -> None:
    model = network("residual")
    pruner = secateur.Pruner(model, image(0), method="sirfp")
    assert any("ranked blindly" in text for text in pruner.finish(pruning_ratio=0.3).warnings)


def test_misuse_is_refused() -> None:
    graph = secateur.trace(network("residual"), image(0))
    with pytest.raises(MethodError, match=r"pruner.after_backward\(\)"):
        secateur.score(graph, "sirfp")
    for options, expected in (({"rate": 1.0}, "rate 1.0"), ({"detail": -1.0}, "detail"), ({"reduce": "median"}, "max")):
        with pytest.raises(MethodError, match=expected):
            secateur.score(graph, "sirfp", **options)
