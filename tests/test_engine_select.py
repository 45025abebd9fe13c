"""From scores to plans: ratios, budgets, floors, rounding; plans as data; surgery on optimizers; files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur
from secateur.costs import COLUMNS, CostModel
from secateur.errors import BudgetError, CheckpointError, MethodError, NothingPrunableError, PlanError
from secateur.models import create_model
from secateur.plan import units_of


@pytest.fixture(scope="module")
def graph() -> secateur.Graph:
    return secateur.trace(create_model("unet", classes=5, width=8), torch.zeros(1, 3, 32, 32))


def kept_per_group(graph: secateur.Graph, plan: secateur.Plan) -> list[tuple[int, int]]:
    removed = units_of(graph, plan)
    return [(len(g), len(g) - int(removed[list(g.units)].sum())) for g in graph.groups if g.pinned is None]


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.37, 0.5, 0.8])
def test_the_ratio_is_the_share_of_units_removed(graph: secateur.Graph, ratio: float) -> None:
    plan = secateur.select(graph, secateur.score(graph, "random"), pruning_ratio=ratio)
    assert int(units_of(graph, plan).sum()) == int(ratio * graph.prunable.sum() + 1e-9)


def test_the_smallest_scores_go(graph: secateur.Graph) -> None:
    scores = secateur.score(graph, "random")
    removed = units_of(graph, secateur.select(graph, scores, pruning_ratio=0.3, min_keep=0.0))
    assert scores[removed].max() < scores[~removed & graph.prunable].min()


def test_ten_percent_of_every_group_stay_and_at_least_one(graph: secateur.Graph) -> None:
    plan = secateur.select(graph, secateur.score(graph, "random"), pruning_ratio=1.0)
    assert kept_per_group(graph, plan) == [(n, max(1, -(-n // 10))) for n, _ in kept_per_group(graph, plan)]
    plan = secateur.select(graph, secateur.score(graph, "random"), pruning_ratio=1.0, min_keep=0.0)
    assert {kept for _, kept in kept_per_group(graph, plan)} == {1}


def test_scope_group_takes_the_same_share_everywhere(graph: secateur.Graph) -> None:
    plan = secateur.select(graph, secateur.score(graph, "random"), pruning_ratio=0.5, scope="group")
    assert all(kept == n // 2 for n, kept in kept_per_group(graph, plan))


@pytest.mark.parametrize("name", ["unet", "dense", "resnext", "segnet"])
@pytest.mark.parametrize("column", COLUMNS)
def test_what_a_unit_saves_is_what_the_counts_differ_by(name: str, column: str) -> None:
    costs = CostModel(secateur.trace(zoo.build(name), zoo.example()))
    alone = np.eye(costs.graph.units, dtype=bool)
    assert costs.saved(column).tolist() == [costs.total(column) - costs.total(column, unit) for unit in alone]


def test_scope_cost_takes_the_smallest_squares_per_cost(graph: secateur.Graph) -> None:
    scores = secateur.score(graph, "random")
    plan = secateur.select(graph, scores, budget={"params": 0.8}, scope="cost", min_keep=0.0)
    removed, saved = units_of(graph, plan), CostModel(graph).saved("params")
    value = np.asarray(scores, dtype=np.float64) ** 2 / np.maximum(saved, 1)
    assert value[removed].max() < value[~removed & graph.prunable].min()
    plain = units_of(graph, secateur.select(graph, scores, budget={"params": 0.8}, min_keep=0.0))
    assert removed.sum() < plain.sum()


def test_scope_cost_weighs_all_budgets_and_lets_negative_scores_go_first(graph: secateur.Graph) -> None:
    scores = np.array(secateur.score(graph, "random"))
    some = np.flatnonzero(graph.prunable)[::7]
    scores[some] = -1.0
    budget = {"params": 0.7, "macs": 0.4}
    removed = units_of(graph, secateur.select(graph, scores, budget=budget, scope="cost", min_keep=0.0))
    after = CostModel(graph)(removed)
    whole = CostModel(graph)()
    assert removed[some].all() and after.params <= 0.7 * whole.params and after.macs <= 0.4 * whole.macs


@pytest.mark.parametrize("name", ["unet", "resnext", "inverted", "segnet"])
def test_round_to_keeps_multiples_in_every_tensor(name: str) -> None:
    model = zoo.build(name)
    graph = secateur.trace(model, zoo.example())
    plan = secateur.select(graph, secateur.score(graph, "random"), pruning_ratio=0.6, round_to=4)
    small = secateur.apply(model, plan)
    removed = units_of(graph, plan)
    touched = {graph.tensors[t].name for u in np.flatnonzero(removed) for t, _, _ in graph.slots(int(u))}
    assert touched
    for module_name, module in small.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d) and f"{module_name}.weight" in touched:
            assert module.num_features % 4 == 0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    column=st.sampled_from(COLUMNS),
    remains=st.floats(0.15, 1.0),
    round_to=st.sampled_from([1, 2, 4]),
    scope=st.sampled_from(["global", "group", "cost"]),
)
def test_budgets_are_met_and_not_undercut_without_need(column: str, remains: float, round_to: int, scope: str) -> None:
    graph = _unet16()
    costs = CostModel(graph)
    whole = costs.total(column)
    plan = secateur.select(
        graph, secateur.score(graph, "random"), budget={column: remains}, round_to=round_to, scope=scope
    )
    got = costs.total(column, units_of(graph, plan))
    assert got <= remains * whole
    slack = 0.01 if round_to == 1 and scope != "group" else 0.12
    assert got >= (remains - slack) * whole


def _unet16() -> secateur.Graph:
    if not hasattr(_unet16, "graph"):
        _unet16.graph = secateur.trace(create_model("unet", classes=5, width=16), torch.zeros(1, 3, 32, 32))
    return _unet16.graph


def left(result: secateur.Result) -> dict[str, float]:
    """Kept share of every group, by name."""
    removed = units_of(result.graph, result.plan)
    return {g.name: 1 - removed[list(g.units)].mean() for g in result.graph.groups if g.pinned is None}


def unet() -> torch.nn.Module:
    return create_model("unet", classes=5, width=8)


@pytest.mark.parametrize("asked", [{"pruning_ratio": 0.5}, {"budget": {"params": 0.6}}])
def test_what_is_protected_stays_and_the_rest_makes_up_for_it(asked: dict[str, Any]) -> None:
    protect = ["decoder.*", "encoder.stage2.conv1"]
    result = secateur.prune(unet(), torch.zeros(1, 3, 32, 32), protect=protect, verify=False, **asked)
    kept = left(result)
    safe = {name for name in kept if name.startswith("decoder") or name == "encoder.stage2.conv1"}
    assert len(safe) >= 8 and all(kept[name] == 1 for name in safe)
    assert any(share < 1 for share in kept.values())
    achieved = result.budget["achieved"]
    assert achieved == pytest.approx(result.budget["asked"], abs=0.02)
    assert list(achieved) == (["pruning_ratio"] if "pruning_ratio" in asked else ["params"])


@pytest.mark.parametrize("asked", [{"pruning_ratio": 0.5}, {"budget": {"params": 0.4}}, {}])
def test_ratios_by_name_hold_whatever_the_rest_does(asked: dict[str, Any]) -> None:
    ratios = {"encoder.*": 0.25, "encoder.stage3.conv?": 0.5, "encoder.stage1.conv2": 0.0}
    result = secateur.prune(unet(), torch.zeros(1, 3, 32, 32), ratios=ratios, **asked)
    kept = left(result)
    assert kept["encoder.stage3.conv1"] == kept["encoder.stage3.conv2"] == 0.5
    assert kept["encoder.stage4.conv1"] == 0.75 and kept["encoder.stage1.conv2"] == 1.0
    assert (kept["decoder.stage4.conv1"] < 1) == bool(asked)
    for what, value in asked.get("budget", {}).items():
        assert getattr(result.after, what) <= value * getattr(result.before, what)
    assert result.budget["asked"]["ratio of encoder.stage3.conv?"] == 0.5
    assert result.budget["achieved"]["ratio of encoder.stage3.conv?"] == 0.5


def test_absolute_budget(graph: secateur.Graph) -> None:
    plan = secateur.select(graph, secateur.score(graph, "random"), budget={"params": 100_000})
    assert 98_000 < CostModel(graph).total("params", units_of(graph, plan)) <= 100_000


def test_several_budgets_at_once(graph: secateur.Graph) -> None:
    plan = secateur.select(graph, secateur.score(graph, "random"), budget={"params": 0.7, "macs": 0.4})
    before, after = CostModel(graph)(), CostModel(graph)(units_of(graph, plan))
    assert after.params <= 0.7 * before.params and after.macs <= 0.4 * before.macs


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_predicted_cost_is_the_counted_cost(name: str) -> None:
    model = zoo.build(name)
    graph = secateur.trace(model, zoo.example())
    plan = secateur.select(graph, secateur.score(graph, "random"), pruning_ratio=0.5)
    predicted = CostModel(graph)(units_of(graph, plan))
    counted = secateur.cost(secateur.apply(model, plan), zoo.example())
    assert predicted.as_dict() == counted.as_dict()
    assert predicted.params == sum(p.numel() for p in secateur.apply(model, plan).parameters() if p.requires_grad)


def test_macs_agree_with_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for name in ("unet", "segnet", "resnext", "shuffle", "flat", "dense", "pyramid"):
        model = zoo.build(name)
        with FlopCounterMode(display=False) as counter:
            model(zoo.example())
        inference = secateur.cost(model, zoo.example()).modules
        assert (
            2 * sum(row["macs"] for module, row in inference.items() if not module.startswith("aux"))
            == counter.get_total_flops()
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pruning_ratio": 1.5}, "between 0 and 1"),
        ({"pruning_ratio": -0.1}, "between 0 and 1"),
        ({"pruning_ratio": float("nan")}, "between 0 and 1"),
        ({}, "either pruning_ratio"),
        ({"pruning_ratio": 0.5, "budget": {"params": 0.5}}, "either pruning_ratio"),
        ({"budget": {"parms": 0.5}}, "did you mean 'params'"),
        ({"budget": {"params": 0.0}}, "params 0.0"),
        ({"budget": {}}, "empty budget"),
        ({"pruning_ratio": 0.5, "scope": "locl"}, "scope 'locl'"),
        ({"pruning_ratio": 0.5, "protect": ["encodr"]}, "protect 'encodr' names no channels; .*did you mean 'encoder'"),
        ({"pruning_ratio": 0.5, "protect": "nothing"}, "protect 'nothing' names no channels"),
        ({"ratios": {"encoder": 1.5}}, "ratios 'encoder': 1.5"),
        ({"ratios": {}}, "give either pruning_ratio"),
        ({"pruning_ratio": 0.5, "scope": "cost"}, "give budget=... instead of pruning_ratio"),
        ({"pruning_ratio": 0.5, "min_keep": 2}, "min_keep 2"),
        ({"pruning_ratio": 0.5, "round_to": 0}, "round_to 0"),
    ],
)
def test_wrong_arguments_are_named(graph: secateur.Graph, options: dict, words: str) -> None:
    with pytest.raises(MethodError, match=words):
        secateur.select(graph, secateur.score(graph, "random"), **options)


def test_wrong_arguments_are_named_before_the_network_is_run() -> None:
    class Never(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("it was run")

    with pytest.raises(MethodError, match="round_to 0"):
        secateur.prune(Never(), zoo.example(), pruning_ratio=0.5, round_to=0)


def test_patterns_may_come_from_a_generator() -> None:
    patterns = ["encoder.*"]
    given = secateur.prune(unet(), torch.zeros(1, 3, 32, 32), pruning_ratio=0.5, protect=iter(patterns))
    listed = secateur.prune(unet(), torch.zeros(1, 3, 32, 32), pruning_ratio=0.5, protect=patterns)
    assert given.budget["achieved"] == listed.budget["achieved"]
    assert all(share == 1 for name, share in left(given).items() if name.startswith("encoder"))


def test_a_budget_out_of_reach_says_what_can_be_had(graph: secateur.Graph) -> None:
    with pytest.raises(BudgetError, match=r"params .* asked, [\d,]+ \(\d+\.\d%\) is the least"):
        secateur.select(graph, secateur.score(graph, "random"), budget={"params": 0.001})


def test_nothing_prunable_is_an_error_with_the_table_of_reasons() -> None:
    model = torch.nn.Conv2d(3, 5, 1)
    with pytest.raises(NothingPrunableError, match="output of the network") as caught:
        secateur.prune(model, zoo.example(), pruning_ratio=0.5)
    assert caught.value.exit_code == 3


def test_nan_scores_name_the_place(graph: secateur.Graph) -> None:
    scores = secateur.score(graph, "random")
    scores[graph.find("encoder.stage2.conv1")[0].units[0]] = float("nan")
    with pytest.raises(MethodError, match="NaN, first in encoder"):
        secateur.select(graph, scores, pruning_ratio=0.5)


# plans as data


def test_plan_json_round_trip(graph: secateur.Graph) -> None:
    plan = secateur.select(graph, secateur.score(graph, "random"), pruning_ratio=0.5)
    again = secateur.Plan.from_json(plan.to_json())
    assert again == plan and again.to_json() == plan.to_json()
    assert all(indices == tuple(sorted(indices)) for dims in again.removed.values() for indices in dims.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "removed"),
        ('{"removed": {"a": {"0": ["x"]}}}', "not a plan"),
        ('{"removed": {"a": {"0": [1.5]}}}', "whole number"),
        ('{"removed": {"a": {"0": [2, 1]}}}', "sorted"),
        ('{"removed": {"a": {"0": [0, 7]}}, "shapes": {"a": [4]}}', "beyond its size 4"),
        ('{"removed": {"a": {"3": [0]}}, "shapes": {"a": [4]}}', "1 dimensions"),
        ('{"removed": {"a": {"0": [0, 1]}}, "shapes": {"a": [2]}}', "at least one must stay"),
        ('{"removed": {}, "secateur_plan": 99}', "version 99"),
    ],
)
def test_damaged_plans_are_refused(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        secateur.Plan.from_json(text)


def test_a_plan_of_another_network_is_refused(graph: secateur.Graph) -> None:
    plan = secateur.select(graph, secateur.score(graph, "random"), pruning_ratio=0.5)
    with pytest.raises(PlanError, match=r"does not fit this UNet: .*shape \(.*\), the plan was made for"):
        secateur.apply(create_model("unet", classes=5, width=16), plan)
    with pytest.raises(PlanError, match="does not fit this SegNet"):
        secateur.apply(create_model("segnet", classes=5, width=8), plan)
    small = secateur.apply(graph.model, plan)
    with pytest.raises(PlanError):  # not twice
        secateur.apply(small, plan)


# optimizers


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_optimizer_state_is_cut_along(kind: str, inplace: bool) -> None:
    model = zoo.build("resnet_basic").train()
    make = {"sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, 0.01)}[kind]
    optimizer = make(model.parameters())
    model(zoo.example()).square().sum().backward()
    optimizer.step()
    before = {
        name: {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v)}
        for name, p in model.named_parameters()
    }
    plan = secateur.select(
        secateur.trace(model, zoo.example()),
        secateur.score(secateur.trace(model, zoo.example()), "random"),
        pruning_ratio=0.5,
    )
    small = secateur.apply(model, plan, inplace=inplace, optimizer=optimizer)
    assert (small is model) == inplace
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in small.named_parameters():
        assert id(parameter) in held
        for key, value in optimizer.state[parameter].items():
            expected = before[name][key]
            if expected.shape == plan.shapes.get(name):
                for dim in plan.removed[name]:
                    expected = expected.index_select(dim, torch.as_tensor(plan.kept(name, dim)))
            assert torch.equal(value, expected)
    optimizer.zero_grad()
    small(zoo.example()).square().sum().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in small.parameters())


def test_gradients_are_cut_along() -> None:
    model = zoo.build("plain")
    model(zoo.example()).sum().backward()
    gradient = model.b[0].weight.grad.clone()
    result = secateur.prune(model, zoo.example(), pruning_ratio=0.5, inplace=True)
    kept0, kept1 = (torch.as_tensor(result.plan.kept("b.0.weight", d)) for d in (0, 1))
    assert torch.equal(model.b[0].weight.grad, gradient.index_select(0, kept0).index_select(1, kept1))


def test_channels_last_stays() -> None:
    model = zoo.build("resnet_basic").to(memory_format=torch.channels_last)
    small = secateur.prune(model, zoo.example(), pruning_ratio=0.5).model
    assert small.blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


# files


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_save_and_load(name: str, tmp_path: Path) -> None:
    result = secateur.prune(zoo.build(name), zoo.example(), method="random", pruning_ratio=0.5)
    secateur.save(tmp_path / "small.safetensors", result.model, result.plan)
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]
    fresh = zoo.build(name, seed=9)
    loaded = secateur.load(tmp_path / "small.safetensors", fresh).eval()
    a, b = loaded(zoo.example()), result.model(zoo.example())
    for key in a if isinstance(a, dict) else [slice(None)]:
        assert torch.equal(a[key], b[key])


def test_files_that_do_not_fit_are_refused_with_all_names(tmp_path: Path) -> None:
    result = secateur.prune(zoo.build("plain"), zoo.example(), pruning_ratio=0.5)
    path = tmp_path / "small.safetensors"
    secateur.save(path, result.model, result.plan)
    with pytest.raises(CheckpointError, match=r"small\.safetensors"):
        secateur.load(path, zoo.build("segnet"))
    with pytest.raises(CheckpointError, match="no such file"):
        secateur.load(tmp_path / "nowhere.safetensors", zoo.build("plain"))
    other = secateur.prune(torch.nn.Sequential(*zoo.build("plain").children()), zoo.example(), pruning_ratio=0.5)
    secateur.save(path, other.model, result.plan)
    with pytest.raises(CheckpointError, match=r"missing in the file: a\.0\.weight.*not in the network"):
        secateur.load(path, zoo.build("plain"))


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    result = secateur.prune(zoo.build("plain"), zoo.example(), pruning_ratio=0.5)
    path, bad = tmp_path / "small.safetensors", tmp_path / "bad.safetensors"
    secateur.save(path, result.model, result.plan)
    data = path.read_bytes()
    for size in (0, 1, 8, 100, len(data) // 2, len(data) - 1):
        bad.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
            secateur.load(bad, zoo.build("plain"))
    save_file({"a": torch.zeros(2)}, bad)
    with pytest.raises(CheckpointError, match="without a plan"):
        secateur.load(bad, zoo.build("plain"))
    torch.save(result.model.state_dict(), bad)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        secateur.load(bad, zoo.build("plain"))


def test_plans_are_plain_data() -> None:
    result = secateur.prune(zoo.build("inverted"), zoo.example(), method="random", pruning_ratio=0.5)
    data = json.loads(result.plan.to_json())
    assert set(data) == {"secateur_plan", "removed", "shapes", "numbers"}
    assert data["numbers"]["depth.0"]["groups"] == result.model.depth[0].groups
