"""Budgets of measured latency, mostly on a machine whose every time is a known function of the shapes."""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import secateur
from secateur.costs import CostModel, LatencyModel, LatencyTable, Stopwatch, Timing, agreed, latency
from secateur.costs.latency import Grid
from secateur.costs.latency_table import ROUNDS
from secateur.costs.operator import Operator
from secateur.costs.settle import MARGIN, settle
from secateur.errors import BudgetError, CheckpointError, MethodError, ModelError
from secateur.models import create_model
from secateur.pipeline.inputs import Inputs
from secateur.plan import units_of
from secateur.recipe import Recipe

CPU = torch.device("cpu")
IMAGE = torch.zeros(1, 3, 32, 32)

Shape = Callable[[float, float, int], float]  # input and output channels, groups -> the part of the work they make


class Times(TorchDispatchMode):
    """Milliseconds of everything that runs, if convolutions and products took what a function of channels says."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.ms = shape, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == "aten::convolution":
            x, weight, transposed, groups = args[0], args[1], args[6], args[8]
            places = math.prod((x if transposed else out).shape[2:]) * math.prod(weight.shape[2:])
            self.ms += 1e-6 * places * self.shape(x.shape[1], out.shape[1], groups)
        elif name in ("aten::mm", "aten::addmm"):
            x = args[1 if name == "aten::addmm" else 0]
            self.ms += 1e-6 * x.shape[0] * self.shape(x.shape[1], out.shape[1], 1)
        return out


class FakeStopwatch(Stopwatch):
    """A machine on which time is a function of the shapes, plus a constant for every pass, with noise."""

    def __init__(self, shape: Shape, overhead: float = 0.0, noise: float = 0.0) -> None:
        self.shape, self.overhead, self.noise = shape, overhead, noise
        self.random = random.Random(0)
        self.timed: list[str] = []
        self.compared: list[bool] = []

    def true(self, model: nn.Module, example_inputs: Any) -> float:
        with Times(self.shape) as times, torch.no_grad():
            model.eval()(example_inputs)
        return times.ms + self.overhead

    def noisy(self, careful: bool = False) -> float:
        return 1 + self.random.gauss(0, self.noise / (3 if careful else 1))

    def operator(self, operator: Operator, device: torch.device, dtype: torch.dtype) -> float:
        self.timed.append(str(operator))
        call = operator.prepared(device, dtype)
        with Times(self.shape) as times, torch.no_grad():
            call()
        return times.ms * self.noisy()

    def network(self, model: nn.Module, example_inputs: Any) -> float:
        return self.true(model, example_inputs) * self.noisy()

    def compare(self, model: nn.Module, other: nn.Module, example_inputs: Any, careful: bool) -> Timing:
        self.compared.append(careful)
        ms, reference = (self.true(m, example_inputs) for m in (model, other))
        noisy = self.noisy(careful)
        return Timing(ms * noisy, ms / reference * noisy)


class SlowerBy(FakeStopwatch):
    """The same machine, busy with something else while whole networks run."""

    def true(self, model: nn.Module, example_inputs: Any) -> float:
        return 7 * super().true(model, example_inputs)


def linear(inputs: float, outputs: float, groups: int) -> float:
    return inputs * outputs / groups


def affine(inputs: float, outputs: float, groups: int) -> float:
    return inputs * outputs / groups + 3 * inputs + 5 * outputs + 40


def stepwise(inputs: float, outputs: float, groups: int) -> float:
    return 64 * math.ceil(inputs / 8) * math.ceil(outputs / 8) / groups


MACHINES: dict[str, Callable[[], FakeStopwatch]] = {
    "linear": lambda: FakeStopwatch(linear),
    "affine": lambda: FakeStopwatch(affine),
    "jumps at multiples of 8": lambda: FakeStopwatch(stepwise),
    "constant overhead": lambda: FakeStopwatch(linear, overhead=0.25),
    "noisy": lambda: FakeStopwatch(linear, noise=0.02),
    "busy with something else": lambda: SlowerBy(affine),
}


class Functional(nn.Module):
    """Convolutions and a linear layer without modules, one of them used twice, one transposed, one grouped."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.a, self.b = (nn.Parameter(torch.randn(s, generator=draw)) for s in ((16, 3, 3, 3), (16, 16, 3, 3)))
        self.up, self.g = (nn.Parameter(torch.randn(s, generator=draw)) for s in ((16, 12, 2, 2), (24, 6, 1, 1)))
        self.fc = nn.Parameter(torch.randn(5, 24, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        f = nn.functional
        x = f.relu(f.conv2d(x, self.a, stride=2, padding=1))
        x = f.relu(f.conv2d(f.relu(f.conv2d(x, self.b, padding=1)), self.b, padding=1))
        x = f.relu(f.conv2d(f.conv_transpose2d(x, self.up, stride=2), self.g, groups=2))
        return f.linear(x.mean((2, 3)), self.fc)


@pytest.fixture(scope="module")
def graph() -> secateur.Graph:
    return secateur.trace(create_model("unet", classes=5, width=8), IMAGE)


def build(name: str) -> nn.Module:
    return Functional() if name == "functional" else zoo.build(name)


# the budget


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("share", "options"), [(0.9, {}), (0.6, {}), (0.6, {"round_to": 4}), (0.5, {"scope": "cost"})])
def test_the_budget_is_met_never_exceeded_and_not_undercut_without_need(
    graph: secateur.Graph, machine: str, share: float, options: dict[str, Any]
) -> None:
    stopwatch = MACHINES[machine]()
    table = LatencyTable(stopwatch=stopwatch)
    result = secateur.prune(
        graph.model, IMAGE, method="random", budget={"latency": share}, verify=False, latency_table=table, **options
    )
    again = stopwatch.true(result.model, IMAGE) / stopwatch.true(graph.model, IMAGE)
    achieved = result.budget["achieved"]["latency"]
    assert result.budget["asked"]["latency"] == share
    assert achieved <= share and again <= 1.05 * share
    assert stopwatch.compared[-1], "a careful measurement decides"
    assert len(stopwatch.compared) <= 14
    assert again >= share - (0.05 if not options else 0.12) - 3 * stopwatch.noise


@pytest.mark.parametrize("name", ["functional", "resnext", "inverted", "twice", "unet", "flat"])
def test_grouped_shared_and_functional_operators_meet_it(name: str) -> None:
    result = secateur.prune(
        build(name), zoo.example(), budget={"latency": 0.6}, latency_table=LatencyTable(stopwatch=FakeStopwatch(affine))
    )
    assert result.report is not None and result.report.ok
    assert 0.4 < result.budget["achieved"]["latency"] <= 0.6


STEPS = 100
CURVES: dict[str, Callable[[int], float]] = {
    "linear": lambda steps: 100 - 0.9 * steps,
    "quadratic": lambda steps: 100 * (1 - 0.009 * steps) ** 2,
    "jumps": lambda steps: 100 - 90 * (steps // 13) / 8,
    "one cliff": lambda steps: 100.0 if steps < 37 else 20.0,
    "constant part": lambda steps: 30 + 0.7 * (100 - steps),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("limit", [99.0, 80.0, 55.0, 35.0])
def test_one_step_less_would_not_have_met_it_or_it_is_nearly_used_up(curve: str, limit: float) -> None:
    true = CURVES[curve]
    steps, value = settle(lambda n: 70 - 0.6 * n, lambda n, _: true(n), 0, STEPS, limit)
    assert value == true(steps) <= limit
    assert true(steps - 1) > limit or value >= (1 - 2 * MARGIN) * limit


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_noise_costs_measurements_and_not_the_limit(curve: str, noise: float) -> None:
    true = CURVES[curve]
    for seed in range(20):
        draw, made = random.Random(seed), []

        def measure(steps: int, careful: bool, draw: Any = draw, made: list[int] = made) -> float:
            made.append(steps)
            return true(steps) * (1 + draw.gauss(0, noise / (3 if careful else 1)))

        steps, value = settle(lambda n: 70 - 0.6 * n, measure, 0, STEPS, 60.0)
        assert value <= 60 and true(steps) <= 60 * (1 + 1.5 * noise) and len(made) < 40
        assert true(steps) >= 60 * (0.9 - 2 * noise) or true(steps - 1) > 60 * (1 - 2 * noise)


def test_steps_that_other_budgets_need_are_not_taken_back() -> None:
    assert settle(lambda n: 100 - n, lambda n, _: 100.0 - n, 40, 90, 70.0) == (40, 60.0)


def test_milliseconds_above_one(graph: secateur.Graph) -> None:
    stopwatch = FakeStopwatch(linear, overhead=2.0)
    whole = stopwatch.true(graph.model, IMAGE)
    asked = 2 + 0.5 * (whole - 2)
    result = secateur.prune(
        graph.model, IMAGE, budget={"latency": asked}, verify=False, latency_table=LatencyTable(stopwatch=stopwatch)
    )
    taken = stopwatch.true(result.model, IMAGE)
    assert result.budget["achieved"] == {"latency": pytest.approx(taken)}
    assert 0.9 * asked < taken <= asked
    assert f"latency {asked:.4g} ms" in str(result) and f"latency {taken:.4g} ms" in str(result)


def test_with_other_budgets_all_are_met(graph: secateur.Graph) -> None:
    table = LatencyTable(stopwatch=FakeStopwatch(linear))
    for budget in ({"latency": 0.5, "params": 0.9}, {"latency": 0.9, "params": 0.3}):
        result = secateur.prune(graph.model, IMAGE, budget=budget, verify=False, latency_table=table)
        assert list(result.budget["achieved"]) == list(budget)
        assert all(result.budget["achieved"][name] <= share for name, share in budget.items())
        assert "asked         latency 0." in str(result)


def test_the_whole_original_needs_no_cut(graph: secateur.Graph) -> None:
    stopwatch = FakeStopwatch(linear, noise=0.1)
    for budget in (1.0, 1e6):
        table = LatencyTable(stopwatch=stopwatch)
        plan = secateur.select(graph, secateur.score(graph, "l1"), budget={"latency": budget}, latency_table=table)
        assert len(plan) == 0 and not stopwatch.compared


def test_out_of_reach_says_what_was_measured_to_be_attainable(graph: secateur.Graph) -> None:
    stopwatch = FakeStopwatch(linear, overhead=50.0)
    with pytest.raises(
        BudgetError, match=r"latency .* ms \(20\.0%\) was asked, .* ms \((\d+\.\d)%\) is the least"
    ) as e:
        secateur.select(
            graph,
            secateur.score(graph, "l1"),
            budget={"latency": 0.2},
            latency_table=LatencyTable(stopwatch=stopwatch),
        )
    assert "measured on" in str(e.value) and "thread" in str(e.value)
    assert stopwatch.compared[-1]


def test_a_prediction_that_it_is_out_of_reach_is_not_believed(graph: secateur.Graph) -> None:
    class Pessimist(FakeStopwatch):
        def operator(self, operator: Operator, device: torch.device, dtype: torch.dtype) -> float:
            return 1.0  # whatever its channels

    plan = secateur.select(
        graph,
        secateur.score(graph, "l1"),
        budget={"latency": 0.5},
        latency_table=LatencyTable(stopwatch=Pessimist(linear)),
    )
    assert len(plan)


def test_scope_cost_removes_what_takes_time() -> None:
    model = nn.Sequential(zoo.conv_bn(3, 16), zoo.conv_bn(16, 16, stride=8), zoo.conv_bn(16, 16), nn.Conv2d(16, 5, 1))
    graph = secateur.trace(model, IMAGE)
    plan = secateur.select(
        graph,
        np.ones(graph.units),
        budget={"latency": 0.7},
        scope="cost",
        latency_table=LatencyTable(stopwatch=FakeStopwatch(linear)),
    )
    assert set(plan.removed) & {"0.0.weight", "1.0.weight", "2.0.weight"} == {"0.0.weight", "1.0.weight"}


def test_a_cut_that_does_not_run_leaves_the_prediction_and_a_warning(
    graph: secateur.Graph, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(FakeStopwatch):
        def compare(self, *_: Any, **__: Any) -> Timing:
            raise RuntimeError("shapes do not fit")

    with caplog.at_level(logging.WARNING):
        plan = secateur.select(
            graph,
            secateur.score(graph, "l1"),
            budget={"latency": 0.6},
            latency_table=LatencyTable(stopwatch=Fails(linear)),
        )
    assert "does not run (RuntimeError: shapes do not fit): the latency is predicted" in caplog.text
    small = secateur.apply(graph.model, plan)
    whole = FakeStopwatch(linear).true(graph.model, IMAGE)
    assert FakeStopwatch(linear).true(small, IMAGE) / whole == pytest.approx(0.6, abs=0.03)


def test_latency_of_nothing_is_refused(graph: secateur.Graph) -> None:
    with pytest.raises(MethodError, match="latency 0"):
        secateur.select(graph, secateur.score(graph, "l1"), budget={"latency": 0})


# the prediction


def test_a_grid_is_exact_at_its_points_and_for_what_is_linear_in_each_coordinate() -> None:
    axes = ((8, 32, 64), (4, 20))
    drawn = np.random.default_rng(0).uniform(1, 2, (3, 2))
    grid = Grid(axes, drawn)
    assert [[float(grid(i, j)) for j in axes[1]] for i in axes[0]] == drawn.tolist()

    def plane(i: float, j: float) -> float:
        return 3 + 2 * i + 5 * j + 0.25 * i * j

    grid = Grid(axes, [[plane(i, j) for j in axes[1]] for i in axes[0]])
    inside, beyond = [(9, 5), (40, 13), (63, 19)], [(2, 1), (80, 30), (1, 30)]
    for i, j in inside + beyond:
        assert float(grid(i, j)) == pytest.approx(plane(i, j))
    assert grid(np.array([8, 64]), np.array([4, 20])).tolist() == [plane(8, 4), plane(64, 20)]


def test_one_point_on_an_axis_means_proportion_and_nothing_is_free() -> None:
    assert float(Grid([(10,), (2, 4)], [[3.0, 5.0]])(5, 3)) == 2.0
    assert float(Grid([(8, 16)], [1.0, 9.0])(1)) == 0.1


@pytest.mark.parametrize("name", ["functional", *zoo.NETWORKS])
def test_where_time_is_linear_in_channels_the_prediction_is_the_measurement(name: str) -> None:
    model, stopwatch = build(name), FakeStopwatch(affine)
    graph = secateur.trace(model, zoo.example())
    costs = LatencyModel(graph, LatencyTable(stopwatch=stopwatch))
    assert costs.total() == pytest.approx(stopwatch.true(model, zoo.example()))
    for ratio in (0.3, 0.7):
        plan = secateur.select(graph, secateur.score(graph, "random"), pruning_ratio=ratio)
        taken = stopwatch.true(secateur.apply(model, plan), zoo.example())
        assert costs.total(removed=units_of(graph, plan)) == pytest.approx(taken, rel=0.02)


@pytest.mark.parametrize("name", ["unet", "resnext", "inverted", "functional"])
def test_what_a_unit_saves_is_what_the_predictions_differ_by(name: str) -> None:
    graph = secateur.trace(build(name), zoo.example())
    costs = LatencyModel(graph, LatencyTable(stopwatch=FakeStopwatch(affine)))
    alone = np.eye(graph.units, dtype=bool)[graph.prunable]
    differences = [costs.total() - costs.total(removed=unit) for unit in alone]
    assert costs.saved()[graph.prunable] == pytest.approx(differences, abs=1e-9)
    assert (costs.saved() >= 0).all()


def test_noise_does_not_make_fewer_channels_slower(graph: secateur.Graph) -> None:
    costs = LatencyModel(graph, LatencyTable(stopwatch=FakeStopwatch(lambda *_: 1.0, noise=0.3)))
    assert (costs.saved() >= 0).all()
    some = np.zeros(graph.units, dtype=bool)
    some[np.flatnonzero(graph.prunable)[::2]] = True
    assert costs.total(removed=some) <= costs.total()


def test_the_points_of_a_grid_respect_groups_and_what_is_pinned() -> None:
    timed = FakeStopwatch(linear)
    LatencyModel(secateur.trace(zoo.build("resnext"), zoo.example()), LatencyTable(stopwatch=timed))
    grouped = [key for key in timed.timed if "groups 4" in key]
    assert grouped  # prepared() would have failed on channels that the groups do not divide
    first = [key for key in set(timed.timed) if "x3x" in key and "kernel" in key]
    assert all("of 2x3x" in key or "of 1x3x" in key for key in first) and len(first) <= 3


def test_channels_last_is_timed_as_such() -> None:
    model, image = zoo.build("plain"), zoo.example()
    keys = {}
    for name, (net, example) in {
        "as it is": (model, image),
        "input": (model, image.contiguous(memory_format=torch.channels_last)),
        "weights": (zoo.build("plain").to(memory_format=torch.channels_last), image),
    }.items():
        timed = FakeStopwatch(linear)
        LatencyModel(secateur.trace(net, example), LatencyTable(stopwatch=timed))
        keys[name] = {key for key in timed.timed if "kernel" in key}
    assert keys["input"] == keys["weights"] == {f"{key}, channels last" for key in keys["as it is"]}
    operator = Operator("convolution", (1, 8, 4, 4), 8, (3, 3), (1, 1), (1, 1), (1, 1), (0, 0), channels_last=True)
    out = operator.prepared(CPU, torch.float32)()
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()


def test_what_takes_longer_than_its_elements_is_timed_itself() -> None:
    timed = FakeStopwatch(linear)
    LatencyModel(secateur.trace(zoo.build("segnet"), zoo.example()), LatencyTable(stopwatch=timed))
    for name in ("max_pool2d_with_indices", "max_unpool2d", "native_batch_norm", "elementwise"):
        assert any(key.startswith(f"{name} of ") for key in timed.timed), name
    assert any("indices" in key.partition(", ")[2] for key in timed.timed if key.startswith("max_unpool2d"))


# the table


def operators(count: int = 4) -> list[Operator]:
    return [Operator("product", (1, 16, 2**i), 2**i) for i in range(1, count + 1)]


def test_identical_operators_are_measured_once_in_every_round() -> None:
    model = nn.Sequential(*(zoo.conv_bn(16, 16) for _ in range(4)), nn.Conv2d(16, 5, 1))
    timed = FakeStopwatch(linear)
    table = LatencyTable(stopwatch=timed)
    graph = secateur.trace(model, torch.zeros(1, 16, 16, 16))
    LatencyModel(graph, table)
    assert len(timed.timed) == ROUNDS * len(set(timed.timed))
    before = len(timed.timed)
    LatencyModel(graph, table)
    assert len(timed.timed) == before


def test_the_shortest_of_several_rounds_counts() -> None:
    class Disturbed(FakeStopwatch):
        def operator(self, operator: Operator, device: torch.device, dtype: torch.dtype) -> float:
            time = super().operator(operator, device, dtype)
            return time if len(self.timed) > 4 else 10 * time

    quiet = LatencyTable(stopwatch=FakeStopwatch(linear)).times(operators(), CPU, torch.float32)
    assert LatencyTable(stopwatch=Disturbed(linear)).times(operators(), CPU, torch.float32) == quiet


def test_out_of_time_the_rest_is_estimated_by_the_work_it_does() -> None:
    timed = FakeStopwatch(linear)
    times = LatencyTable(stopwatch=timed, seconds=0.0).times(operators(), CPU, torch.float32)
    assert timed.timed == [str(operators()[-1])]  # the one of most work
    assert times == LatencyTable(stopwatch=FakeStopwatch(linear)).times(operators(), CPU, torch.float32)


def test_what_can_not_be_timed_alone_is_estimated_too() -> None:
    class Fails(FakeStopwatch):
        def operator(self, operator: Operator, device: torch.device, dtype: torch.dtype) -> float:
            if operator.out > 2:
                raise NotImplementedError("not for this type")
            return super().operator(operator, device, dtype)

    times = LatencyTable(stopwatch=Fails(linear)).times(operators(), CPU, torch.float32)
    assert times == LatencyTable(stopwatch=FakeStopwatch(linear)).times(operators(), CPU, torch.float32)
    none = LatencyTable(stopwatch=Fails(linear)).times(operators()[1:], CPU, torch.float32)
    assert all(time > 0 for time in none.values())


def test_inputs_of_another_type_are_named() -> None:
    graph = secateur.trace(zoo.build("plain"), zoo.example())
    graph.model.double()
    with pytest.raises(ModelError, match=r"Plain on cpu can't be run .*example inputs of its device and type"):
        secateur.select(
            graph, secateur.score(graph, "l1"), budget={"latency": 0.5}, latency_table=LatencyTable(seconds=0)
        )


def test_a_file_keeps_the_times_for_the_next_process(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    first = LatencyTable(file, stopwatch=FakeStopwatch(affine)).times(operators(), CPU, torch.float32)
    again = FakeStopwatch(affine)
    assert LatencyTable(file, stopwatch=again).times(operators(), CPU, torch.float32) == first
    assert again.timed == []
    content = json.loads(file.read_text())
    (holds_for,) = content["times"]
    assert holds_for.startswith("float32 on ") and f"torch {torch.__version__}" in holds_for and "thread" in holds_for
    # another data type is another machine, as it were; what was there stays
    LatencyTable(file, stopwatch=again).times(operators(), CPU, torch.float64)
    assert len(again.timed) and len(json.loads(file.read_text())["times"]) == 2


def test_select_takes_a_file_and_nothing_is_written_without_one(
    graph: secateur.Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake = FakeStopwatch(linear)
    monkeypatch.setattr(latency, "_SHARED", LatencyTable(stopwatch=fake))
    scores = secateur.score(graph, "l1")
    plan = secateur.select(graph, scores, budget={"latency": 0.6})
    assert fake.timed and list(tmp_path.iterdir()) == []
    monkeypatch.setattr("secateur.costs.latency_table.Stopwatch", lambda: FakeStopwatch(linear))
    assert secateur.select(graph, scores, budget={"latency": 0.6}, latency_table="times.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["times.json"]


DAMAGED = {
    "cut short": '{"secateur_latency_table": 1, "times": {"a": {"b": 1.',
    "something else": "[1, 2, 3]",
    "another JSON": '{"a": 1}',
    "a later version": '{"secateur_latency_table": 9, "times": {}}',
    "not a number": '{"secateur_latency_table": 1, "times": {"a": {"b": "fast"}}}',
    "no time at all": '{"secateur_latency_table": 1, "times": {"a": {"b": 0}}}',
    "rows missing": '{"secateur_latency_table": 1, "times": {"a": 1}}',
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_is_refused_and_left_as_it_is(what: str, tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    file.write_text(DAMAGED[what])
    with pytest.raises(CheckpointError, match=r"times\.json is no latency table, or a damaged one .*: delete it"):
        LatencyTable(file)
    assert file.read_text() == DAMAGED[what]


def test_a_folder_that_is_not_there_is_found_out_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder .*nowhere to write it to"):
        LatencyTable(tmp_path / "nowhere" / "times.json")


# the real clock, of which nothing is asserted


def test_real_times_are_times_and_leave_no_trace() -> None:
    model, image = zoo.build("pyramid").train(), zoo.example()
    small = secateur.prune(model, image, pruning_ratio=0.5, verify=False).model
    state, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    timing = Stopwatch().compare(small, model, image, careful=False)
    assert 0 < timing.ms < math.inf and 0 < timing.share < math.inf
    assert 0 < Stopwatch().network(model, image) < math.inf
    graph = secateur.trace(model, image)
    costs = LatencyModel(graph, LatencyTable(seconds=2.0))
    assert costs.whole == pytest.approx(costs.total()) and (costs.saved() >= 0).all()
    assert model.training and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_real_budget_that_everything_meets_is_measured_and_met() -> None:
    result = secateur.prune(zoo.build("plain"), zoo.example(), budget={"latency": 1e6}, verify=False)
    assert 0 < result.budget["achieved"]["latency"] < 1e6 and len(result.plan) == 0


# several cuts


@pytest.mark.parametrize("inplace", [True, False])
def test_at_every_step_latency_is_that_of_the_original(inplace: bool) -> None:
    model, fake = create_model("unet", classes=5, width=8), FakeStopwatch(affine, overhead=0.01)
    whole, table = fake.true(model, IMAGE), LatencyTable(stopwatch=fake)
    pruner = secateur.Pruner(model, IMAGE, method="l1")
    for limit in (0.8, 0.6, 0.45 * whole):
        budget = {"latency": limit if limit > 1 else min(limit, 1.0)}
        result = pruner.step(budget=budget, latency_table=table, inplace=inplace)
        taken = fake.true(result.model, IMAGE)
        most = limit if limit > 1 else limit * whole
        assert 0.9 * most <= taken <= most
        assert result.budget["achieved"]["latency"] == pytest.approx(taken if limit > 1 else taken / whole)
    assert fake.true(result.graph.model, IMAGE) == pytest.approx(whole)


# several processes, recipes, reports


def test_several_processes_take_what_the_first_one_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[Any]] = []
    rank = 0

    def broadcast(found: list[Any], src: int) -> None:
        assert src == 0
        if rank == 0:
            sent.append(list(found))
        else:
            found[:] = sent[-1]

    for name, value in {
        "is_initialized": lambda: True,
        "get_world_size": lambda: 2,
        "get_rank": lambda: rank,
        "broadcast_object_list": broadcast,
    }.items():
        monkeypatch.setattr(torch.distributed, name, value, raising=False)

    def fails() -> int:
        raise BudgetError("out of reach")

    assert agreed(lambda: 1) == 1
    rank = 1
    assert agreed(lambda: 2) == 1
    rank = 0
    with pytest.raises(BudgetError):
        agreed(fails)
    rank = 1
    with pytest.raises(BudgetError, match="out of reach"):
        agreed(lambda: 2)


def test_a_recipe_limits_latency_and_checks_it_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeStopwatch(linear)
    monkeypatch.setattr(latency, "_SHARED", LatencyTable(stopwatch=fake))
    settings: dict[str, Any] = {
        "data": {"name": "streets", "length": 2, "limit": 2, "workers": 0, "size": (32, 48)},
        "model": {"width": 8},
        "method": {"name": "l1"},
    }
    recipe = Recipe.model_validate({**settings, "budget": {"latency": 0.6}})
    assert recipe.budget.limits == {"latency": 0.6} and recipe.budget.params is None
    inputs = Inputs(recipe)
    assert fake.compared[-1] and any("channels last" in key for key in fake.timed)
    result = inputs.cut(inputs.pruner(inputs.to_be_cut(inputs.network())))
    assert 0.5 < result.budget["achieved"]["latency"] <= 0.6
    fake.overhead = 1e3
    with pytest.raises(BudgetError, match="latency"):
        Inputs(recipe)


def test_counted_budgets_measure_nothing(graph: secateur.Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_SHARED", None)
    plan = secateur.select(graph, secateur.score(graph, "l1"), budget={"macs": 0.5})
    assert CostModel(graph).total("macs", units_of(graph, plan)) <= 0.5 * CostModel(graph).total("macs")
