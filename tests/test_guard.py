"""Guards per class, and sensitivity curves: checked on networks whose scores are known functions of their widths."""

from __future__ import annotations

import methods
import pytest
import torch
import zoo
from torch import nn

import secateur
from secateur import Guard
from secateur.errors import BudgetError, MethodError, NothingPrunableError


def chain(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip((3, *widths), (*widths, 2), strict=True):
        layers += [nn.Conv2d(a, b, 1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


IMAGE = torch.randn(1, 3, 4, 4)


def shares(model: nn.Module) -> list[float]:
    """What is left of each of the three layers of `chain(20, 20, 20)`."""
    return [model[i].out_channels / 20 for i in (0, 2, 4)]


def classes(model: nn.Module) -> dict[str, float]:
    """'pole' lives in the first layer, 'sign' in the second, 'road' in all together."""
    first, second, third = shares(model)
    return {"pole": first**2, "sign": second, "road": (first + second + third) / 3}


@pytest.mark.parametrize("scope", ["global", "group", "cost"])
def test_a_guard_moves_the_cut_elsewhere_and_the_budget_is_met(scope: str) -> None:
    model = chain(20, 20, 20)
    guard = Guard(classes, {"pole": 0.1, "sign": 0.2})
    result = secateur.prune(model, IMAGE, budget={"params": 0.5}, scope=scope, guard=guard)
    after = classes(result.model)
    assert 1 - after["pole"] <= 0.1 + 1e-9 and 1 - after["sign"] <= 0.2 + 1e-9
    assert result.after.params <= 0.5 * result.before.params and result.report.ok
    free = classes(secateur.prune(model, IMAGE, budget={"params": 0.5}, scope=scope).model)
    assert 1 - free["pole"] > 0.1 or 1 - free["sign"] > 0.2  # without the guard they are broken


def test_a_guard_that_holds_anyway_changes_nothing_and_costs_one_evaluation() -> None:
    guard = Guard(classes, {"road": 0.9})
    model = chain(20, 20, 20)
    plan = secateur.prune(model, IMAGE, pruning_ratio=0.4, guard=guard).plan
    assert plan == secateur.prune(model, IMAGE, pruning_ratio=0.4).plan and guard.evaluations == 1


def test_what_can_be_had_is_said_and_is_true() -> None:
    model = chain(20, 20, 20)
    with pytest.raises(BudgetError, match=r"road may lose 0.1.*params 0\.\d+ can be had") as caught:
        secateur.prune(model, IMAGE, budget={"params": 0.3}, guard=Guard(classes, {"road": 0.1}))
    amount = float(str(caught.value).partition("params ")[2].split()[0])
    result = secateur.prune(model, IMAGE, budget={"params": amount + 0.001}, guard=Guard(classes, {"road": 0.1}))
    assert classes(result.model)["road"] >= 0.9 - 1e-9
    with pytest.raises(BudgetError, match=r"pruning_ratio 0\.\d+ can be had"):
        secateur.prune(model, IMAGE, pruning_ratio=0.6, guard=Guard(classes, {"road": 0.1}))
    with pytest.raises(BudgetError, match="nothing near it"):
        secateur.prune(model, IMAGE, budget={"params": 200}, guard=Guard(classes, {"road": 0.0}))


def test_steps_fall_from_the_first_network() -> None:
    model = chain(20, 20, 20)
    guard = Guard(classes, {"pole": 0.1})
    pruner = secateur.Pruner(model, IMAGE, method="l1")
    for ratio in (0.2, 0.4, 0.5):
        result = pruner.step(pruning_ratio=ratio, scope="group", guard=guard)
    assert classes(result.model)["pole"] >= 0.9 - 1e-9 and sum(shares(result.model)) == pytest.approx(1.5, abs=0.05)
    assert guard.base == {"pole": 1.0, "sign": 1.0, "road": 1.0}


def test_methods_that_choose_while_training_are_held_to_it() -> None:
    x = zoo.example()

    def finish(limit: float) -> secateur.Result:
        model = zoo.build("unet").train()
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).out_channels

        def evaluate(network: nn.Module) -> dict[str, float]:
            return {"pole": next(m for m in network.modules() if isinstance(m, nn.Conv2d)).out_channels / first}

        pruner = methods.attach("sfp", model, x)
        pruner.aim(pruning_ratio=0.5)
        pruner.after_epoch(0)
        return pruner.finish(guard=Guard(evaluate, {"pole": limit}))

    assert finish(0.6).report.ok
    with pytest.raises(BudgetError, match="sfp has chosen while training breaks the guard"):
        finish(0.1)


def test_mistakes_are_named() -> None:
    for limits, said in (({}, "without limits"), ({"pole": -0.1}, "how much the score may fall, 0 or more")):
        with pytest.raises(MethodError, match=said):
            Guard(classes, limits)
    with pytest.raises(MethodError, match=r"no such score; .*did you mean 'pole'"):
        secateur.prune(chain(8, 8, 8), IMAGE, pruning_ratio=0.5, guard=Guard(classes, {"pol": 0.1}))
    with pytest.raises(MethodError, match="does it occur in the data"):
        guard = Guard(lambda model: {"pole": float("nan")}, {"pole": 0.1})
        secateur.prune(chain(8, 8, 8), IMAGE, pruning_ratio=0.5, guard=guard)


def test_a_score_that_vanishes_breaks_the_guard() -> None:
    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"pole": 1.0 if model[0].out_channels == 20 else float("nan")}

    result = secateur.prune(chain(20, 20, 20), IMAGE, pruning_ratio=0.4, guard=Guard(evaluate, {"pole": 0.5}))
    assert result.model[0].out_channels == 20


# sensitivity


def test_curves_are_what_single_groups_do() -> None:
    model = chain(20, 20, 20)
    graph = secateur.trace(model, IMAGE)
    scores = secateur.score(graph, "l1")
    seen: list[str] = []
    curves = secateur.sensitivity(graph, scores, classes, ratios=(0.5, 0.1, 1.0), say=lambda c: seen.append(c.group))
    assert [curve.group for curve in curves] == seen == ["0", "2", "4"]
    first = curves[0]
    assert [share for share, _ in first.points] == [0.0, 0.1, 0.5, 0.95]  # at least one channel stays
    for share, found in first.points:
        assert found == pytest.approx({"pole": (1 - share) ** 2, "sign": 1.0, "road": 1 - share / 3})
    assert first.drop("pole") == pytest.approx(1 - 0.05**2) and curves[2].drop("pole") == 0
    assert first.to_dict()["points"][1] == {"removed": 0.1, **first.points[1][1]}
    # the weakest channels by the given scores are those that go
    seen_norms = []
    secateur.sensitivity(graph, scores, lambda m: {"x": seen_norms.append(m[0].weight.abs().mean()) or 0.0},
                         ratios=(0.5, 0.51), groups=("0",))  # fmt: skip
    assert len(seen_norms) == 2 and seen_norms[1] > seen_norms[0]  # the same cut is judged once


def test_groups_by_pattern_and_mistakes() -> None:
    graph = secateur.trace(chain(8, 8, 8), IMAGE)
    scores = secateur.score(graph, "l1")
    assert [c.group for c in secateur.sensitivity(graph, scores, classes, ratios=(0.5,), groups=("2",))] == ["2"]
    with pytest.raises(MethodError, match=r"ratio 1\.5"):
        secateur.sensitivity(graph, scores, classes, ratios=(1.5,))
    with pytest.raises(MethodError, match="'7'"):
        secateur.sensitivity(graph, scores, classes, groups=("7",))
    with pytest.raises(NothingPrunableError):
        secateur.sensitivity(graph, scores, classes, groups=("6",))  # the output
