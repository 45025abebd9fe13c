"""PAGCP against its formulas written out, its fast search against the literal one, and going on after a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import methods
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from own_networks import Residual
from torch import Tensor, nn

import secateur
from secateur.errors import BudgetError, CheckpointError, MethodError
from secateur.methods import layer_search, oracle
from secateur.methods.greedy import RATIOS, decay
from secateur.methods.oracle import Oracle
from secateur.methods.pagcp import PAGCP


class Shares(nn.Module):
    """Two layers of equal filters; the outputs are the shares of either that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 20, 1, bias=False), nn.Conv2d(1, 40, 1, bias=False)
        self.read_a, self.read_b = nn.Conv2d(20, 1, 1, bias=False), nn.Conv2d(40, 1, 1, bias=False)
        with torch.no_grad():
            for layer in (self.a, self.b):
                layer.weight.fill_(1.0)
            self.read_a.weight.fill_(1 / 20)
            self.read_b.weight.fill_(1 / 40)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"a": self.read_a(self.a(x)), "b": self.read_b(self.b(x))}


def linear_losses(output: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
    """1 + 1.2 r_a + 0.5 r_b and 1 + 0.9 r_b, where r is the share of a layer's filters that is gone."""
    a, b = 1 - output["a"].mean(), 1 - output["b"].mean()
    return {"first": 1 + 1.2 * a + 0.5 * b, "second": 1 + 0.9 * b}


@pytest.mark.parametrize("exact", [False, True])
def test_lambda_thresholds_and_decisions_are_those_worked_out_on_paper(exact: bool) -> None:
    """Two layers, T0 = 0.1 and a bound of 1.32 = 1.1 * 1.2, so lambda = 2, above 1: the layer that saves less is first.
    Base losses are 1.

    a: limits 1.1. 1 + 1.2 * 0.05 = 1.06 passes, 1 + 1.2 * 0.1 = 1.12 does not: 5 %, one filter of 20.
    b: T = 0.2, bases 1.06 and 1: limits 1.272 and 1.2. At 20 % 1.06 + 0.1 = 1.16 and 1.18 pass; at 25 % the second is
    1.225, which does not: 20 %, 8 filters of 40.
    """
    data = [(torch.ones(1, 1, 2, 2, dtype=torch.float64), torch.zeros(1))] * 3
    method = PAGCP(initial_rate=0.1, initial_thres=1.32, topk=1.0, exact=exact)
    pruner = secateur.Pruner(Shares().double(), data[0][0], method, data=data, loss=linear_losses)
    result = pruner.finish()
    assert (result.model.a.out_channels, result.model.b.out_channels) == (19, 32)
    (only,) = method.decisions.rounds
    assert only.factor == pytest.approx(2) and only.order == ["a", "b"]
    a, b = only.layers
    assert [a.threshold, b.threshold] == pytest.approx([0.1, 0.2])
    assert [a.limits[t] / 3 for t in ("first", "second")] == pytest.approx([1.1, 1.1])
    assert [b.limits[t] / 3 for t in ("first", "second")] == pytest.approx([1.272, 1.2])
    assert (a.ratio, b.ratio) == (0.05, 0.2)
    assert [only.final[t] / 3 for t in ("first", "second")] == pytest.approx([1.16, 1.18])
    assert [only.bound[t] / 3 for t in ("first", "second")] == pytest.approx([1.32, 1.32])
    # rises of 0.06, and of 0.1 + 0.18; of 60 filters with two weights each a's is one and b's are eight
    assert a.score == pytest.approx(0.06 / (1 / 60)) and b.score == pytest.approx(0.28 / (8 / 60))


def test_of_the_layers_those_that_save_most_for_the_rise_are_kept() -> None:
    data = [(torch.ones(1, 1, 2, 2, dtype=torch.float64), torch.zeros(1))]
    method = PAGCP(initial_rate=0.1, initial_thres=1.32, topk=0.5)
    pruner = secateur.Pruner(Shares().double(), data[0][0], method, data=data, loss=linear_losses)
    model = pruner.finish().model
    assert (model.a.out_channels, model.b.out_channels) == (20, 32)  # 2.1 for b, 3.6 for a
    assert [layer.kept for layer in method.decisions.rounds[0].layers] == [False, True]


@pytest.mark.parametrize(("rate", "bound", "layers"), [(0.06, 6.0, 20), (0.06, 6.0, 60), (0.5, 1.6, 7), (0.06, 6.0, 2)])
def test_lambda_is_the_root_of_the_product(rate: float, bound: float, layers: int) -> None:
    factor = decay(rate, bound, layers)
    assert math.prod(1 + rate * factor**i for i in range(layers)) == pytest.approx(bound, rel=1e-12)
    assert math.prod(1 + rate * factor**i for i in range(layers)) <= bound * (1 + 1e-12)


def chain() -> nn.Sequential:
    torch.manual_seed(3)
    conv, relu = nn.Conv2d, nn.ReLU
    return nn.Sequential(
        conv(3, 12, 3), relu(), conv(12, 8, 3), relu(), conv(8, 10, 1), relu(), conv(10, 2, 1)
    ).double()


def two_losses(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {"mean": (output - target).abs().mean(), "worst": (output - target).square().amax()}


def by_the_formulas(
    model: nn.Sequential, data: list[Any], rate: float, bound: float, topk: float
) -> dict[int, list[int]]:
    """Layer -> the filters that go, in plain loops over weights that are set to zero."""
    convs, sides = [0, 2, 4], {0: 14 * 14, 2: 12 * 12, 4: 12 * 12, 6: 12 * 12}
    gone: dict[int, list[int]] = {i: [] for i in convs}

    def macs(without: dict[int, list[int]]) -> int:
        widths = [3, *(len(model[i].weight) - len(without[i]) for i in convs), 2]
        kernels = [9, 9, 1, 1]
        return sum(sides[i] * kernels[n] * widths[n] * widths[n + 1] for n, i in enumerate([0, 2, 4, 6]))

    def losses(without: dict[int, list[int]]) -> dict[str, float]:
        kept = {i: (model[i].weight.clone(), model[i].bias.clone()) for i in convs}
        out = {"mean": 0.0, "worst": 0.0}
        with torch.no_grad():
            for i, filters in without.items():
                model[i].weight[filters], model[i].bias[filters] = 0.0, 0.0
            for x, target in data:
                for task, loss in two_losses(model(x), target).items():
                    out[task] += float(loss)
            for i, (weight, bias) in kept.items():
                model[i].weight.copy_(weight)
                model[i].bias.copy_(bias)
        return out

    # L = 3: (1 + T)(1 + T l)(1 + T l^2) = bound
    roots = np.roots([rate**2, rate, rate, 1 - bound / (1 + rate)])
    factor = next(root.real for root in roots if abs(root.imag) < 1e-12 and root.real > 0)
    saved = {i: macs(gone) - macs({**gone, i: list(range(int(0.3 * len(model[i].weight))))}) for i in convs}
    order = sorted(convs, key=lambda i: saved[i] if factor > 1 else -saved[i])
    base = losses(gone)
    whole, threshold, scores = dict(base), rate, {}
    before = dict(base)
    for i in order:
        reads = [f for f in range(model[i].in_channels) if i == 0 or f not in gone[i - 2]]
        norms = model[i].weight.detach()[:, reads].abs().mean((1, 2, 3)).tolist()
        ranking = sorted(range(len(norms)), key=lambda f: norms[f])
        for ratio in RATIOS:
            trial = {**gone, i: ranking[: int(ratio * len(norms) + 1e-9)]}
            if any(loss > base[task] * (1 + threshold) for task, loss in losses(trial).items()):
                break
            chosen = trial
        else:
            chosen = trial
        after = losses(chosen) if ratio > RATIOS[0] else before
        if ratio > RATIOS[0] and chosen[i]:
            share = (macs(gone) - macs(chosen)) / macs({n: [] for n in convs})
            scores[i] = sum((after[task] - before[task]) / whole[task] for task in whole) / share
            gone = chosen
        base, before = {task: max(base[task], after[task]) for task in base}, after
        threshold *= factor
    kept = sorted(scores, key=lambda i: scores[i])[: math.ceil(topk * len(convs))]
    return {i: sorted(gone[i]) if i in kept else [] for i in convs}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("rate", "bound"), [(0.06, 1.5), (0.1, 1.2), (0.4, 6.0)])
def test_the_search_is_the_one_that_the_formulas_say(rate: float, bound: float, exact: bool) -> None:
    model = chain()
    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=generator), torch.ones(1, dtype=torch.float64))
        for _ in range(3)
    ]
    expected = by_the_formulas(model, data, rate, bound, 0.6)
    method = PAGCP(initial_rate=rate, initial_thres=bound, topk=0.6, exact=exact)
    plan = secateur.Pruner(model, data[0][0][:1], method, data=data, loss=two_losses).finish().plan
    assert sum(map(len, expected.values())) > 0
    assert {i: list(plan.removed.get(f"{i}.weight", {}).get(0, ())) for i in expected} == expected


class Heads(nn.Module):
    """A trained-like trunk with two heads, of which neither sees the other's layers."""

    def __init__(self, trunk: nn.Module, channels: int) -> None:
        super().__init__()
        self.trunk, self.first = trunk, nn.Sequential(zoo.conv_bn(channels, 8), nn.Conv2d(8, 3, 1))
        self.second = nn.Sequential(zoo.conv_bn(channels, 6), nn.Conv2d(6, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = methods.logits_of(self.trunk(x))
        return {"first": self.first(x), "second": self.second(x)}


def heads_losses(output: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
    return {"first": F.cross_entropy(output["first"], target), "second": (output["second"] - 0.3).square().mean()}


def heads(name: str) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(1)
    trunk = Residual() if name == "residual" else zoo.build(name)
    x = torch.cat([zoo.example()[:1]] * 2)
    channels = methods.logits_of(trunk.eval()(x)).shape[1]
    model = zoo.randomise(Heads(trunk, channels)).eval()
    size = model(x)["first"].shape[-2:]
    generator = torch.Generator().manual_seed(2)
    return model, [
        (
            torch.randn(x.shape, generator=generator),
            torch.randint(0, 3, (len(x), *size), generator=generator),
        )
        for _ in range(4)
    ]


def searched(model: nn.Module, data: list[Any], **options: Any) -> PAGCP:
    method = PAGCP(**{"initial_thres": 2.0, **options})
    pruner = secateur.Pruner(model, data[0][0][:1], method, data=data, loss=heads_losses)
    method.removed = method.decided(pruner.graph)
    return method


def chosen(method: PAGCP) -> list[Any]:
    return [
        (layer.group, layer.ratio, layer.chunks, layer.losses, layer.kept)
        for each in method.decisions.rounds
        for layer in each.layers
    ]


@pytest.mark.parametrize("name", ["plain", "residual", "dense"])
def test_less_work_comes_to_the_same_decisions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = heads(name)
    calls = {"full": 0, "played": 0}
    full, played = Oracle._full, oracle.played

    def counting_full(self: Oracle, *args: Any) -> Any:
        calls["full"] += 1
        return full(self, *args)

    def counting_played(known: Any, *args: Any) -> Any:
        calls["played"] += known is not None
        return played(known, *args)

    monkeypatch.setattr(Oracle, "_full", counting_full)
    monkeypatch.setattr(oracle, "played", counting_played)
    literal = searched(model, data, exact=True)
    literally = calls.pop("full")
    calls["full"] = 0
    ours = searched(model, data)
    assert chosen(ours) == chosen(literal) and np.array_equal(ours.removed, literal.removed)
    assert ours.decisions.rounds[0].final == literal.decisions.rounds[0].final
    assert 2 * calls["full"] < literally and calls["played"] > 0
    final = ours.decisions.rounds[0].final
    base = literal.decisions.rounds[0].base
    assert all(final[task] <= 2.0 * base[task] for task in base)


def test_the_decisions_are_the_same_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = heads("plain")
    whole = searched(model, data)
    monkeypatch.setattr(Oracle, "__init__", _forgetful(Oracle.__init__))
    assert chosen(searched(model, data)) == chosen(whole)


def _forgetful(begin: Any) -> Any:
    def without_memory(self: Oracle, graph: Any, material: Any, mode: str, limit: int | None, memory: int) -> None:
        begin(self, graph, material, mode, limit, 0)

    return without_memory


class Awkward(nn.Module):
    """Sums in place, slices written to, branches taken by values, random noise, buffers that count: all of it legal."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.left, self.right = zoo.conv_bn(3, 8), zoo.conv_bn(8, 8), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        y = self.right(x)
        if self.kind == "in place":
            y += self.left(x)
        elif self.kind == "slices":
            z = torch.zeros_like(y)
            z[:, :, ::2] = self.left(x)[:, :, ::2]
            y = y + z
        elif self.kind == "noise":
            y = y + self.left(x) + 0.01 * torch.randn_like(x[:, :1])
        elif self.kind == "counts":
            self.calls += 1
            y = y + self.left(x) * self.calls
        else:
            y = self.left(x) if float(y.sum()) > 0 else self.left(x) + y
        out = self.head(y)
        return {"first": out[:, :3], "second": out[:, 3:]}


@pytest.mark.parametrize("kind", ["in place", "slices", "noise", "counts", "branches"])
def test_whatever_forward_does_the_decisions_are_the_same(kind: str) -> None:
    torch.manual_seed(0)
    model = zoo.randomise(Awkward(kind)).eval()
    before = float(model.calls)
    data = [(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))) for _ in range(3)]
    assert chosen(searched(model, data)) == chosen(searched(model, data, exact=True))
    assert float(model.calls) == before  # the network itself was never run


@pytest.mark.filterwarnings("ignore")
def test_a_search_that_was_killed_goes_on_with_the_same_decisions(tmp_path: Path) -> None:
    model, data = heads("plain")
    whole = searched(model, data)
    journal, evaluations = tmp_path / "decisions.json", [0]

    def killing(output: Any, target: Tensor) -> dict[str, Tensor]:
        evaluations[0] += 1
        if evaluations[0] == 40:
            raise KeyboardInterrupt
        return heads_losses(output, target)

    method = PAGCP(initial_thres=2.0, journal=str(journal))
    pruner = secateur.Pruner(model, data[0][0][:1], method, data=data, loss=killing)
    with pytest.raises(KeyboardInterrupt):
        pruner.finish()
    decided = json.loads(journal.read_text())["rounds"][0]["layers"]
    assert 0 < len(decided) < len(whole.decisions.rounds[0].layers)
    again = searched(model, data, journal=str(journal))
    assert chosen(again) == chosen(whole) and np.array_equal(again.removed, whole.removed)
    assert json.loads(journal.read_text())["rounds"][0]["layers"][: len(decided) - 1] == [
        {**layer, "kept": now.kept} for layer, now in zip(decided[:-1], again.decisions.rounds[0].layers, strict=False)
    ]
    with pytest.raises(CheckpointError, match="initial_rate"):
        searched(model, data, initial_rate=0.1, journal=str(journal))
    with torch.no_grad():
        model.first[1].weight *= 2
    with pytest.raises(CheckpointError, match="another network"):
        searched(model, data, journal=str(journal))
    journal.write_text("{")
    with pytest.raises(CheckpointError, match="remove it"):
        searched(model, data, journal=str(journal))


def test_losses_below_zero_are_not_stopped_early() -> None:
    """The first batch pays for the second one: only the whole sum counts, in both searches."""

    def paying_back(output: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        a = 1 - output["a"].mean()
        return {"first": 1 - 8 * a if target.item() == 0 else 1 + 9 * a}

    data = [(torch.ones(1, 1, 2, 2, dtype=torch.float64), torch.tensor(float(i))) for i in range(2)]
    found = []
    for exact in (False, True):
        method = PAGCP(initial_rate=0.1, initial_thres=1.32, exact=exact)
        pruner = secateur.Pruner(Shares().double(), data[0][0], method, data=data, loss=paying_back)
        found.append((method.decided(pruner.graph).tolist(), chosen(method)))
    assert found[0] == found[1]
    assert {group: ratio for group, ratio, *_ in found[0][1]}["a"] == 0.15  # 2 + r within 2.2, at first


def test_a_ratio_that_fails_in_the_middle_is_found() -> None:
    """Losses that fall again: the first ratio that fails ends the layer, however good the larger ones are."""

    def bump(output: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        a = 1 - output["a"].mean()
        return {"first": 1 + torch.exp(-(((a - 0.2) / 0.15) ** 2)) * 0.5}

    data = [(torch.ones(1, 1, 2, 2, dtype=torch.float64), torch.zeros(1))] * 2
    ratios = []
    for exact in (False, True):
        method = PAGCP(initial_rate=0.3, initial_thres=1.8, exact=exact)
        pruner = secateur.Pruner(Shares().double(), data[0][0], method, data=data, loss=bump)
        method.decided(pruner.graph)
        ratios.append([ratio for _, ratio, *_ in chosen(method)])
    assert ratios[0] == ratios[1] and 0 < min(ratios[0]) < 0.2


def test_a_budget_is_met_by_the_best_layers_or_said_to_be_out_of_reach() -> None:
    ones = [(torch.ones(1, 1, 2, 2, dtype=torch.float64), torch.zeros(1))]
    method = PAGCP(initial_rate=0.1, initial_thres=1.32)
    pruner = secateur.Pruner(Shares().double(), ones[0][0], method, data=ones, loss=linear_losses)
    pruner.aim(budget={"macs": 0.5})
    with pytest.raises(BudgetError, match=r"macs 0\.5 was asked; macs 0\.85 is what pagcp can have"):
        pruner.finish()
    model, data = heads("plain")
    pruner = secateur.Pruner(model, data[0][0][:1], "pagcp", data=data, loss=heads_losses, initial_thres=2.0)
    pruner.aim(budget={"macs": 0.8}, protect="first.0.*")
    result = pruner.finish()
    assert 0.75 < result.budget["achieved"]["macs"] <= 0.8 and result.report.ok
    assert result.model.first[0][0].out_channels == 8


def test_what_can_not_be_is_said() -> None:
    with pytest.raises(MethodError, match=r"initial_thres 1\.05"):
        PAGCP(initial_thres=1.05)
    model, data = heads("plain")
    with pytest.raises(MethodError, match="latency"):
        secateur.Pruner(model, data[0][0][:1], "pagcp", data=data, loss=heads_losses).aim(budget={"latency": 0.5})
    with pytest.raises(MethodError, match="'first' of the network is -"):
        secateur.Pruner(
            model, data[0][0][:1], "pagcp", data=data, loss=lambda o, t: {"first": -o["first"].square().mean()}
        ).finish()


def test_sampling_is_used_with_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = heads("plain")
    guesses = []
    guess = layer_search._Search.guess
    monkeypatch.setattr(layer_search._Search, "guess", lambda self: guesses.append(guess(self)) or guesses[-1])
    ours = searched(model, data * 2)
    assert guesses and chosen(ours) == chosen(searched(model, data * 2, exact=True))
