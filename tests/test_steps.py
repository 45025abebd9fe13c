"""Prune a little, train a little: schedules, plans one after the other, and cuts that all refer to the original."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import secateur
from secateur.allocate import KINDS
from secateur.errors import BudgetError, CheckpointError, MethodError, PlanError
from secateur.plan import Plan, plan_of, units_of

# schedules


def test_schedules_follow_their_formulas() -> None:
    assert secateur.schedule(0.4, 3) == (0.8, 0.6, 0.4)
    assert secateur.schedule(0.25, 2, "geometric") == (0.5, 0.25)
    # 0.5 + 0.5 (1 - k / 4)^3
    assert secateur.schedule(0.5, 4, "cubic") == pytest.approx((0.7109375, 0.5625, 0.5078125, 0.5))
    assert secateur.schedule(0.3, 1, "cubic") == (0.3,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("remains", [0.1, 0.37, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_schedule_falls_to_its_end(kind: str, remains: float, steps: int) -> None:
    shares = secateur.schedule(remains, steps, kind)
    assert len(shares) == steps and shares[-1] == remains
    assert all(a >= b for a, b in itertools.pairwise((1.0, *shares)))
    assert remains == 1.0 or all(a > b for a, b in itertools.pairwise((1.0, *shares)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.5, 0), "steps 0: a whole number of cuts, at least 1"),
        ((0.5, -1), "steps -1"),
        ((0.5, 2.5), r"steps 2\.5"),
        ((0.5, True), "steps True"),
        ((0.5, 2, "linaer"), "kind 'linaer'; .*did you mean 'linear'"),
        ((0.5, 2, None), "kind None"),
        ((-0.1, 2), r"remains -0\.1"),
        ((1.5, 2), r"remains 1\.5"),
        ((float("nan"), 2), "remains nan"),
        ((0.0, 2, "geometric"), "never comes to nothing: .*linear or cubic"),
    ],
)
def test_wrong_schedules_are_named(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(MethodError, match=words):
        secateur.schedule(*arguments)


# plans, one after the other


def some(model: nn.Module, seed: int, ratio: float) -> Plan:
    graph = secateur.trace(model, zoo.example())
    if not graph.prunable.any():
        return Plan({})
    scores = np.where(graph.prunable, np.random.default_rng(seed).random(graph.units), np.inf)
    return secateur.select(graph, scores, pruning_ratio=ratio, min_keep=0.0)


def numbers(model: nn.Module) -> dict[str, dict[str, int]]:
    return {name: {k: v for k, v in vars(m).items() if type(v) is int} for name, m in model.named_modules()}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(zoo.NETWORKS)),
    seed=st.integers(0, 99),
    first=st.sampled_from([0.0, 0.2, 0.5]),
    second=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_one_plan_does_what_two_do_one_after_the_other(name: str, seed: int, first: float, second: float) -> None:
    model = zoo.build(name)
    a = some(model, seed, first)
    between = secateur.apply(model, a)
    b = some(between, seed + 1, second)
    both = a.then(b)
    twice, once = secateur.apply(between, b), secateur.apply(model, both)
    expected, found = twice.state_dict(), once.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert numbers(twice) == numbers(once)
    assert Plan.from_json(both.to_json()) == both
    assert both.since(a) == b and both.since(both) == Plan({}) and both.since(Plan({})) == both
    assert len(both) >= max(len(a), len(b))


def test_plans_are_put_together_by_hand() -> None:
    first = Plan({"a": {0: (1, 4)}}, {"a": (6, 3)}, {"conv": {"out_channels": 4}})
    later = Plan({"a": {0: (1, 3), 1: (0,)}, "b": {0: (2,)}}, {"a": (4, 3), "b": (3,)}, {"conv": {"out_channels": 2}})
    both = first.then(later)
    # 0 2 3 5 are left by the first; the second takes those at 1 and 3
    assert both == Plan(
        {"a": {0: (1, 2, 4, 5), 1: (0,)}, "b": {0: (2,)}}, {"a": (6, 3), "b": (3,)}, {"conv": {"out_channels": 2}}
    )
    assert both.since(first) == later


def test_plans_that_do_not_follow_each_other_are_refused() -> None:
    first = Plan({"a": {0: (1, 4)}}, {"a": (6, 3)})
    with pytest.raises(PlanError, match=r"does not follow the first: a has the shape \(4, 3\) .* made for \(6, 3\)"):
        first.then(first)
    with pytest.raises(PlanError, match="made for None"):
        first.then(Plan({"a": {0: (1,)}}))
    with pytest.raises(PlanError, match="removes parts of a that this plan keeps"):
        first.since(Plan({"a": {0: (1, 2)}}, {"a": (6, 3)}))
    with pytest.raises(PlanError, match="removes parts of a that this plan keeps"):
        Plan({}, {"a": (6, 3)}).since(first)
    with pytest.raises(PlanError, match="a has another shape there"):
        first.since(Plan({"a": {0: (1,)}}, {"a": (5, 3)}))


# cuts that refer to the original

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def unet() -> nn.Module:
    torch.manual_seed(0)
    return zoo.randomise(secateur.create_model("unet", classes=5, width=8))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: secateur.Pruner | None = None) -> None:
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(IMAGE).square().mean().backward()
        if pruner is not None:
            pruner.after_backward()
        optimizer.step()
        if pruner is not None:
            pruner.after_step()


def of_original(model: nn.Module, what: str) -> float:
    """Counted on the network as it is, without any memory of the steps."""
    return getattr(secateur.cost(model, IMAGE), what) / getattr(secateur.cost(unet(), IMAGE), what)


SETTINGS: dict[str, dict[str, Any]] = {
    "ratio": {},
    "group": {"scope": "group"},
    "rounded": {"round_to": 2},
    "floors": {"min_keep": 0.6},
    "protected": {"protect": ["decoder.*"]},
    "params": {"what": "params"},
    "macs": {"what": "macs", "scope": "group"},
    "paper_flops": {"what": "paper_flops", "round_to": 4},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_without_training_end_where_one_cut_ends(name: str) -> None:
    """Scales stay what they are when others go, so that the order of units does not change from step to step."""
    options = dict(SETTINGS[name])
    what = options.pop("what", None)

    def asked(remains: float) -> dict[str, Any]:
        return {"pruning_ratio": 1 - remains} if what is None else {"budget": {what: remains}}

    pruner = secateur.Pruner(unet(), IMAGE, method="bn_scale")
    results = [pruner.step(**asked(remains), **options) for remains in (0.8, 0.65, 0.5)]
    once = secateur.prune(unet(), IMAGE, method="bn_scale", **asked(0.5), **options)
    assert results[-1].plan == pruner.plan == once.plan
    assert results[-1].budget == once.budget and results[-1].after == once.after
    assert len(results[0].plan) < len(results[1].plan) < len(results[2].plan)
    for remains, result in zip((0.8, 0.65, 0.5), results, strict=True):
        alone = secateur.prune(unet(), IMAGE, method="bn_scale", **asked(remains), **options)
        assert result.plan == alone.plan and result.report.ok


@pytest.mark.parametrize(
    ("what", "kind"),
    [("params", "linear"), ("macs", "geometric"), ("paper_flops", "cubic"), ("pruning_ratio", "linear")],
)
def test_with_training_between_them_budgets_stay_those_of_the_original(what: str, kind: str, tmp_path: Path) -> None:
    model, shares = unet(), secateur.schedule(0.4, 3, kind)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    pruner = secateur.Pruner(model, IMAGE, method="l1")
    units = int(pruner.graph.prunable.sum())
    for remains in shares:
        train(model, optimizer, pruner)
        average.update_parameters(model)
        asked: dict[str, Any] = {"budget": {what: remains}}
        if what == "pruning_ratio":
            asked = {"pruning_ratio": 1 - remains}
        result = pruner.step(**asked, inplace=True, optimizer=optimizer, averages=average)
        assert result.model is model and result.report.ok and result.report.relative_error <= 1e-5
        if what == "pruning_ratio":
            assert units_of(result.graph, result.plan).sum() == int((1 - remains) * units + 1e-9)
        else:
            assert remains - 0.03 <= of_original(model, what) <= remains
            assert result.budget["achieved"][what] == pytest.approx(of_original(model, what))
        assert result.before.params == secateur.cost(unet(), IMAGE).params
        assert result.after.as_dict() == secateur.cost(model, IMAGE).as_dict()
        for parameter in model.parameters():
            assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        shapes = [tensor.shape for tensor in model.state_dict().values()]
        assert shapes == [tensor.shape for tensor in average.module.state_dict().values()]
    train(model, optimizer, pruner)
    average.update_parameters(model)
    pruner.close()
    for name, network in {"model": model, "average": average.module}.items():
        secateur.save(tmp_path / name, network, result.plan)
        loaded = secateur.load(tmp_path / name, unet())
        assert torch.equal(loaded.eval()(IMAGE), network.eval()(IMAGE))


def test_what_the_average_loses_is_what_the_network_loses() -> None:
    model = unet()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    pruner = secateur.Pruner(model, IMAGE, method="l1")
    first = pruner.step(0.3, averages=[average])
    before = copy.deepcopy(average.module)
    second = pruner.step(0.6, averages=[average])
    expected = secateur.apply(before, second.plan.since(first.plan)).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in average.module.state_dict().items())


@pytest.mark.parametrize("inplace", [True, False])
def test_a_method_goes_on_in_the_network_that_was_cut(inplace: bool) -> None:
    model = unet()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruner = secateur.Pruner(model, IMAGE, method="cap", pull=(0.3, 0.3), update="proximal")
    state = copy.deepcopy(model.state_dict())
    for ratio in (0.2, 0.4):
        pruner.begin(steps=2, lr_sum=0.02, momentum=0.9)
        train(model, optimizer, pruner)
        result = pruner.step(ratio, inplace=inplace, optimizer=optimizer)
        assert (result.model is model) == inplace
        if not inplace:
            assert not result.model.state_dict().keys() ^ state.keys()
        model = result.model
    before = {name: scale.clone() for name, scale in scales(model)}
    pruner.begin(steps=2, lr_sum=0.02, momentum=0.9)
    train(model, optimizer, pruner)
    assert all((scale.abs() < before[name].abs()).sum() > len(scale) / 2 for name, scale in scales(model))
    final = pruner.finish(0.5)
    assert final.budget["achieved"]["pruning_ratio"] == pytest.approx(0.5, abs=0.01) and final.report.ok
    assert not any(module._forward_hooks for module in final.model.modules())
    assert secateur.apply(unet(), final.plan).load_state_dict(final.model.state_dict())


def scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            yield name, module.weight.detach()


def test_a_step_that_asks_for_less_than_is_gone_removes_nothing() -> None:
    pruner = secateur.Pruner(unet(), IMAGE, method="l1")
    first = pruner.step(0.5)
    again = pruner.step(0.3)
    assert again.plan == first.plan and again.report.ok
    assert again.budget["achieved"]["pruning_ratio"] == first.budget["achieved"]["pruning_ratio"]


def test_floors_are_those_of_the_original_groups() -> None:
    pruner = secateur.Pruner(unet(), IMAGE, method="l1")
    whole = {group.name: len(group) for group in pruner.graph.groups if group.pinned is None}
    for _ in range(3):
        result = pruner.step(1.0, min_keep=0.5)
        removed = units_of(result.graph, result.plan)
        left = {g.name: len(g) - int(removed[list(g.units)].sum()) for g in result.graph.groups if g.name in whole}
        assert left == {name: -(-count // 2) for name, count in whole.items()}
    result = pruner.step(ratios={"encoder.stage1.conv1": 0.75}, min_keep=0.0)
    assert result.budget["achieved"]["ratio of encoder.stage1.conv1"] == 0.75


def test_down_to_the_last_channels_shares_still_count_the_whole() -> None:
    pruner = secateur.Pruner(unet(), IMAGE, method="l1")
    units = int(pruner.graph.prunable.sum())
    groups = sum(group.pinned is None for group in pruner.graph.groups)
    pruner.step(0.9, min_keep=0.0)
    result = pruner.step(1.0, min_keep=0.0)
    assert result.budget["achieved"]["pruning_ratio"] == pytest.approx((units - groups) / units)


class Wide(nn.Module):
    """The first of its layers can't be cut: what follows depends on how many channels there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = zoo.conv_bn(3, 8), zoo.conv_bn(8, 12), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(self.b(y * torch.ones(()).expand(y.shape[1]).sum()))


def test_a_group_that_fails_the_verification_is_kept_at_every_step() -> None:
    pruner = secateur.Pruner(zoo.randomise(Wide()), zoo.example(), method="l1")
    for remains in (0.7, 0.5):
        result = pruner.step(budget={"params": remains})
        assert result.report.ok and result.model.a[0].out_channels == 8
        assert result.after.params <= remains * result.before.params


@pytest.mark.parametrize("inplace", [True, False])
def test_a_step_that_fails_changes_nothing_and_training_goes_on(inplace: bool) -> None:
    model = unet()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruner = secateur.Pruner(model, IMAGE, method="cap")
    train(model, optimizer, pruner)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(BudgetError, match="out of reach"):
        pruner.step(budget={"params": 1e-4}, inplace=inplace, optimizer=optimizer)
    other = AveragedModel(secateur.create_model("unet", classes=5, width=4))
    with pytest.raises(PlanError, match="does not fit this UNet"):
        pruner.step(0.5, inplace=inplace, optimizer=optimizer, averages=other)
    with pytest.raises(MethodError, match="min_keep 3"):
        pruner.step(0.5, min_keep=3)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    train(model, optimizer, pruner)
    assert set(pruner.method.beta) == set(pruner.method.guided) and pruner.method.guided
    assert pruner.step(0.5, inplace=inplace, optimizer=optimizer).report.ok


def test_interrupted_between_two_steps_and_resumed_equals_uninterrupted() -> None:
    def begun() -> tuple[nn.Module, secateur.Pruner]:
        model = unet()
        return model, secateur.Pruner(model, IMAGE, method="network_slimming", lam=0.1)

    def steps(model: nn.Module, pruner: secateur.Pruner, optimizer: Any, ratios: tuple[float, ...]) -> None:
        for ratio in ratios:
            train(model, optimizer, pruner)
            pruner.step(ratio, inplace=True, optimizer=optimizer)

    model, pruner = begun()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    steps(model, pruner, optimizer, (0.2, 0.4))
    saved = copy.deepcopy((pruner.state_dict(), model.state_dict(), optimizer.state_dict()))
    steps(model, pruner, optimizer, (0.5, 0.6))

    again, resumed = begun()
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    other = torch.optim.SGD(again.parameters(), 0.1, momentum=0.9)
    other.load_state_dict(saved[2])
    assert resumed.plan == Plan.from_json(saved[0]["plan"])
    steps(again, resumed, other, (0.5, 0.6))
    assert resumed.plan == pruner.plan and len(pruner.plan)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    with pytest.raises(CheckpointError, match="cut otherwise"):
        resumed.load_state_dict(saved[0])


def test_an_empty_plan_is_verified_too() -> None:
    for asked in ({"pruning_ratio": 0.0}, {"budget": {"params": 1.0}}):
        result = secateur.prune(zoo.build("plain"), zoo.example(), **asked)
        assert len(result.plan) == 0 and result.report is not None and result.report.ok


def test_units_that_one_unit_became_part_of_are_not_lost() -> None:
    """The scores of a cut network come back to the units of the original that they belong to."""
    model = zoo.build("plain")
    graph = secateur.trace(model, zoo.example())
    group = next(g for g in graph.groups if g.name == "b.0")
    gone = [group.units[1], group.units[4]]
    small = secateur.apply(model, plan_of(graph, gone))
    from secateur.pruner.progress import Progress

    at = Progress(graph, plan_of(graph, gone), secateur.trace(small, zoo.example()))
    now = next(g for g in at.now.groups if g.name == "b.0")
    scores = np.where(at.now.prunable, 100.0 + np.arange(at.now.units), np.inf)
    back = at.in_original(scores)
    kept = [unit for unit in group.units if unit not in gone]
    assert back[kept].tolist() == [100.0 + unit for unit in now.units]
    assert back[gone].tolist() == [0.0, 0.0] and np.isinf(back[~graph.prunable]).all()
    removed = np.zeros(graph.units, dtype=bool)
    removed[kept[2:4]] = True
    assert np.flatnonzero(at.in_now(removed)).tolist() == list(now.units[2:4])
