"""What removed channels did is carried over into the weights that stay: from calibration batches, and exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

import secateur
from secateur.errors import DataError, MethodError, ModelError, PlanError, VerificationError
from secateur.plan import plan_of
from secateur.surgery.constant_rules import RULES

X = torch.randn(4, 3, 12, 14, generator=torch.Generator().manual_seed(0)).double()


def ready(model: nn.Module, seed: int = 0) -> nn.Module:
    return zoo.randomise(model, seed).double().eval()


def random_plan(graph: secateur.Graph, ratio: float = 0.4, seed: int = 0) -> secateur.Plan:
    scores = np.where(graph.prunable, np.random.default_rng(seed).random(graph.units), np.inf)
    return secateur.select(graph, scores, pruning_ratio=ratio)


def planned(model: nn.Module, x: Tensor = X, **options: float) -> tuple[secateur.Graph, secateur.Plan]:
    graph = secateur.trace(model, x)
    return graph, random_plan(graph, **options)


def removing(graph: secateur.Graph, tensor: str, dim: int, indices: list[int]) -> secateur.Plan:
    """The plan of the units that hold these slices."""
    number = next(i for i, t in enumerate(graph.tensors) if t.name == tensor)
    return plan_of(graph, [u for u in range(graph.units) if any((number, dim, i) in graph.slots(u) for i in indices)])


def batches(count: int = 3, shape: tuple[int, ...] = (4, 3, 12, 14), seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).double() + i for i in range(count)]


def inputs_of(model: nn.Module, module: str, data: list[Tensor]) -> Tensor:
    """What a module reads on the data, as it is, batch after batch."""
    seen: list[Tensor] = []
    hook = model.get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for batch in data:
            model(batch)
    hook.remove()
    return torch.cat(seen)


def error(model: nn.Module, small: nn.Module, data: list[Tensor]) -> float:
    """The squared error of all batches together, which is what compensation makes small, relative to the output."""
    with torch.no_grad():
        wrong = sum(float((small(x) - model(x)).square().sum()) for x in data)
        return wrong / sum(float(model(x).square().sum()) for x in data)


class Pair(nn.Module):
    """A convolution and the consumer of what it makes."""

    def __init__(self, first: nn.Module, second: nn.Module, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.between, self.second = first, between or nn.ReLU(), second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


# -- the mean ---------------------------------------------------------------------------------------------------------


def test_the_mean_response_goes_into_the_bias() -> None:
    model = ready(Pair(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3)))
    graph = secateur.trace(model, X)
    plan = removing(graph, "first.weight", 0, [1, 4])
    result = secateur.compensate(model, graph, plan, batches())
    mean = inputs_of(model, "second", batches()).mean((0, 2, 3))
    bias = model.second.bias.clone()
    for o in range(5):
        for c in (1, 4):
            bias[o] += model.second.weight[o, c].sum() * mean[c]
    torch.testing.assert_close(result.model.second.bias, bias, rtol=1e-12, atol=0)
    kept = [0, 2, 3, 5, 6, 7]
    assert torch.equal(result.model.second.weight, model.second.weight[:, kept])
    assert [(c.consumer, c.channels, c.into) for c in result.consumers] == [("second", 2, ("second.bias",))]
    assert result.plan is plan and not result.left_alone and not result.refused


def test_a_batch_norm_behind_takes_the_constant_and_nothing_is_added_to_the_network() -> None:
    second = nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6))
    model = ready(Pair(nn.Conv2d(3, 8, 3), second))
    graph = secateur.trace(model, X)
    plan = removing(graph, "first.weight", 0, [0, 7])
    result = secateur.compensate(model, graph, plan, batches())
    plain = secateur.apply(model, plan)
    assert result.consumers[0].into == ("second.1.running_mean",)
    assert plain.state_dict().keys() == result.model.state_dict().keys()
    mean = inputs_of(model, "second.0", batches()).mean((0, 2, 3))
    shift = (model.second[0].weight.sum((2, 3))[:, [0, 7]] * mean[[0, 7]]).sum(1)
    torch.testing.assert_close(
        plain.second[1].running_mean - result.model.second[1].running_mean, shift, rtol=1e-10, atol=0
    )
    # In eval mode that is a bias in front of the norm; in train mode it changes nothing, as such a bias would not.
    biased = copy.deepcopy(plain)
    biased.second[0].bias = nn.Parameter(shift)
    torch.testing.assert_close(result.model(X), biased(X), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.model.train()(X), plain.train()(X), rtol=1e-12, atol=1e-12)
    assert error(model, result.model.eval(), batches()) < error(model, plain.eval(), batches())


def test_a_bias_is_made_where_no_norm_follows_or_another_reads_along() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.second(F.relu(self.first(x)))
            return y + self.norm(y)

    for model in (ready(Pair(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1, bias=False))), ready(Both())):
        graph = secateur.trace(model, X)
        plan = removing(graph, "first.weight", 0, [2, 3])
        result = secateur.compensate(model, graph, plan, batches())
        assert result.consumers[0].into == ("second.bias",)
        mean = inputs_of(model, "second", batches()).mean((0, 2, 3))
        shift = (model.second.weight.sum((2, 3))[:, [2, 3]] * mean[[2, 3]]).sum(1)
        torch.testing.assert_close(result.model.second.bias.detach(), shift, rtol=1e-12, atol=0)
        assert isinstance(result.model.second.bias, nn.Parameter) and model.second.bias is None


@pytest.mark.parametrize("mode", ["mean", "least_squares"])
def test_where_no_bias_is_to_be_made_the_constant_is_dropped_and_said_so(mode: str) -> None:
    model = ready(Pair(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1, bias=False)))
    graph = secateur.trace(model, X)
    plan = removing(graph, "first.weight", 0, [2, 3])
    result = secateur.compensate(model, graph, plan, batches(), mode, new_biases=False)
    assert result.model.second.bias is None
    assert result.model.state_dict().keys() == secateur.apply(model, plan).state_dict().keys()
    (consumer,) = result.consumers
    assert consumer.into == (() if mode == "mean" else ("second.weight",))
    assert "it has no bias, and none is to be made" in consumer.note


def test_a_norm_behind_two_convolutions_is_left_and_a_bias_made() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
            self.a, self.b = nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(8, 6, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.first(x))
            return self.head(self.norm(self.a(y)) + self.norm(self.b(y)))

    model = ready(Behind())
    graph = secateur.trace(model, X)
    result = secateur.compensate(model, graph, removing(graph, "first.weight", 0, [0]), batches())
    assert [c.into for c in result.consumers] == [("a.bias",), ("b.bias",)]
    assert torch.equal(result.model.norm.running_mean, model.norm.running_mean)


def test_a_transposed_convolution_with_a_stride_takes_the_average_of_its_outputs() -> None:
    for options in ({"stride": 2}, {"stride": 2, "groups": 2}):
        model = ready(Pair(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2, **options)))
        graph, plan = planned(model)
        gone = list(plan.removed["second.weight"][0])
        result = secateur.compensate(model, graph, plan, batches())
        # What the removed channels' mean maps would have given, averaged over the output.
        silent = torch.zeros(1, 8, 5, 5).double()
        silent[0, gone] = inputs_of(model, "second", batches()).mean((0, 2, 3))[gone, None, None]
        answer = F.conv_transpose2d(silent, model.second.weight, None, **options).mean((0, 2, 3))
        torch.testing.assert_close(result.model.second.bias - model.second.bias, answer, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["mean", "least_squares"])
def test_linear_layers_take_part_whatever_the_leading_dimensions(mode: str) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.gelu(self.first(x)))

    model = Tokens().double()
    data = batches(shape=(2, 7, 5))
    graph = secateur.trace(model, data[0])
    plan = removing(graph, "first.weight", 0, [3])
    result = secateur.compensate(model, graph, plan, data, mode)
    mean = inputs_of(model, "second", data).mean((0, 1))
    if mode == "mean":
        expected = model.second.bias + model.second.weight[:, 3] * mean[3]
        torch.testing.assert_close(result.model.second.bias, expected, rtol=1e-12, atol=0)
    assert error(model, result.model, data) < error(model, secateur.apply(model, plan), data)


# -- least squares ----------------------------------------------------------------------------------------------------


def regression(x: Tensor, removed: list[int], ridge: float) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """x_removed ~ R x_kept + b on a map (N, C, H, W) in numpy, with the ridge as rows of data."""
    rows = x.movedim(1, 3).reshape(-1, x.shape[1]).numpy()
    kept = [c for c in range(x.shape[1]) if c not in removed]
    mean = rows.mean(0)
    a, b = rows[:, kept] - mean[kept], rows[:, removed] - mean[removed]
    weight = np.sqrt(ridge * len(rows)) * a.std(0)
    solved, *_ = np.linalg.lstsq(
        np.vstack([a, np.diag(weight)]), np.vstack([b, np.zeros((len(kept), len(removed)))]), rcond=None
    )
    return solved.T, mean[removed] - solved.T @ mean[kept], kept


@pytest.mark.parametrize("ridge", [1e-8, 1e-2])
def test_least_squares_is_ridge_regression_folded_into_the_kernel(ridge: float) -> None:
    model = ready(Pair(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3, padding=1, stride=2)))
    graph = secateur.trace(model, X)
    removed = [0, 3, 5]
    plan = removing(graph, "first.weight", 0, removed)
    result = secateur.compensate(model, graph, plan, batches(), "least_squares", ridge=ridge)
    factors, intercept, kept = regression(inputs_of(model, "second", batches()), removed, ridge)
    weight = model.second.weight.detach().numpy()
    expected = weight[:, kept] + np.einsum("orhw,rk->okhw", weight[:, removed], factors)
    np.testing.assert_allclose(result.model.second.weight.detach().numpy(), expected, rtol=1e-8)
    bias = model.second.bias.detach().numpy() + np.einsum("orhw,r->o", weight[:, removed], intercept)
    np.testing.assert_allclose(result.model.second.bias.detach().numpy(), bias, rtol=1e-8)
    assert result.consumers[0].into == ("second.weight", "second.bias")


@pytest.mark.parametrize("transposed", [False, True])
def test_in_groups_each_group_is_regressed_on_its_own_channels(transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = ready(Pair(nn.Conv2d(3, 8, 1), kind(8, 6, 3, groups=2)))
    graph = secateur.trace(model, X)
    plan = removing(graph, "first.weight", 0, [1])  # with 5, the same place in the second group
    assert plan.removed["first.weight"][0] == (1, 5)
    result = secateur.compensate(model, graph, plan, batches(), "least_squares", ridge=1e-6)
    x, weight = inputs_of(model, "second", batches()), model.second.weight.detach().numpy()
    for g in range(2):
        factors, intercept, kept = regression(x[:, 4 * g : 4 * g + 4], [1], 1e-6)
        if transposed:
            mine = weight[4 * g : 4 * g + 4]
            expected = mine[kept] + factors.T[..., None, None] * mine[[1]]
            got = result.model.second.weight.detach().numpy()[3 * g : 3 * g + 3]
            shift = mine[1].sum((1, 2)) * intercept
        else:
            mine = weight[3 * g : 3 * g + 3]
            expected = mine[:, kept] + mine[:, [1]] * factors[..., None, None]
            got = result.model.second.weight.detach().numpy()[3 * g : 3 * g + 3]
            shift = mine[:, 1].sum((1, 2)) * intercept
        np.testing.assert_allclose(got, expected, rtol=1e-8)
        bias = (result.model.second.bias - model.second.bias).detach().numpy()[3 * g : 3 * g + 3]
        np.testing.assert_allclose(bias, shift, rtol=1e-8)


class Mixed(nn.Module):
    """Eight channels that are mixtures of four: half of them can be told from the others."""

    def __init__(self, kernel: int, padding: int, rank: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 5, kernel, padding=padding)
        with torch.no_grad():
            basis = torch.randn(rank, 3, 1, 1, generator=torch.Generator().manual_seed(3))
            self.first.weight.copy_(
                torch.einsum("or,rihw->oihw", torch.randn(8, rank, generator=torch.Generator().manual_seed(4)), basis)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 0), (3, 1)])
def test_linear_combinations_of_kept_channels_are_recovered_exactly(kernel: int, padding: int) -> None:
    model = Mixed(kernel, padding).double()
    graph = secateur.trace(model, X)
    plan = removing(graph, "first.weight", 0, [0, 2, 3, 6])  # three inputs: rank 3, four channels are enough
    result = secateur.compensate(model, graph, plan, batches(), "least_squares", ridge=1e-13)
    inside = (..., slice(padding, -padding or None), slice(padding, -padding or None))
    fresh = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    expected, got, plain = model(fresh), result.model(fresh), secateur.apply(model, plan)(fresh)
    scale = expected.abs().max()
    assert (got - expected)[inside].abs().max() < 1e-9 * scale
    assert (plain - expected)[inside].abs().max() > 0.1 * scale
    if padding:  # only the intercept is wrong, and only at the border
        assert (got - expected).abs().max() > 1e-3 * scale


def test_least_squares_is_better_than_the_mean_and_the_mean_better_than_nothing() -> None:
    """On features that are correlated, as trained ones are, and on batches that were not calibrated on."""
    torch.manual_seed(0)
    model = Pair(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 3))
    with torch.no_grad():
        basis = torch.randn(6, 3 * 9)
        model.first.weight.copy_((torch.randn(32, 6) @ basis / 8 + 0.02 * torch.randn(32, 27)).view(32, 3, 3, 3))
    model = model.double()
    graph, plan = planned(model)
    fresh = batches(2, seed=77)
    errors = [error(model, secateur.apply(model, plan), fresh)]
    for mode in ("mean", "least_squares"):
        errors.append(error(model, secateur.compensate(model, graph, plan, batches(), mode).model, fresh))
    assert errors[1] < 0.95 * errors[0]
    assert errors[2] < 0.2 * errors[1]


def test_scaling_a_channel_changes_nothing_and_dead_channels_do_no_harm() -> None:
    model = ready(Pair(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Identity()))
    with torch.no_grad():
        model.first.weight[6].zero_()  # constant
        model.first.weight[7].zero_()
        model.first.bias[7] = 0
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.first.weight[2] *= 1e6
        scaled.first.bias[2] *= 1e6
        scaled.second.weight[:, 2] /= 1e6
    outputs = []
    for network in (model, scaled):
        graph = secateur.trace(network, X)
        plan = removing(graph, "first.weight", 0, [0, 3])
        small = secateur.compensate(network, graph, plan, batches(), "least_squares", ridge=0.01).model
        outputs.append(small(X))
    assert torch.isfinite(outputs[0]).all()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-8, atol=1e-10)


def test_with_fewer_positions_than_channels_least_squares_take_the_mean() -> None:
    model = ready(zoo.Flat())
    graph, plan = planned(model, zoo.example().double())
    data = [zoo.example(4).double()]
    result = secateur.compensate(model, graph, plan, data, "least_squares")
    notes = {c.consumer: (c.into, c.note) for c in result.consumers}
    assert notes["fc1"][0] == ("fc1.bias",) and "only the mean: 4 positions are too few for" in notes["fc1"][1]
    mean = secateur.compensate(model, graph, plan, data, "mean").model
    assert torch.equal(mean.fc1.bias, result.model.fc1.bias) and torch.equal(mean.fc1.weight, result.model.fc1.weight)


# -- any network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mean", "least_squares"])
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_any_network_keeps_the_plans_shapes_and_the_original_its_bits(name: str, mode: str) -> None:
    model = zoo.build(name)
    model.train()
    before, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    attributes = {n: dict(vars(m)) for n, m in model.named_modules()}
    graph, plan = planned(model, zoo.example())
    result = secateur.compensate(model, graph, plan, ((zoo.example(4) + i, None) for i in range(3)), mode)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    for n, module in model.named_modules():
        assert vars(module).keys() == attributes[n].keys() and module.training
        assert not module._forward_pre_hooks and not module._forward_hooks
    plain = secateur.apply(model, plan).state_dict()
    got = result.model.state_dict()
    made = {n for c in result.consumers for n in c.into if n not in plain}
    assert got.keys() == plain.keys() | made
    assert all(got[k].shape == plain[k].shape and got[k].dtype == plain[k].dtype for k in plain)
    changed = {n for c in result.consumers for n in c.into}
    assert all(torch.equal(got[k], plain[k]) for k in plain if k not in changed and k not in aliases(model, changed))
    assert all(torch.isfinite(t).all() for t in got.values() if t.is_floating_point())
    assert result.consumers and all(c.into or c.note for c in result.consumers)
    result.model.eval()(zoo.example())


def aliases(model: nn.Module, names: set[str]) -> set[str]:
    tensors = model.state_dict(keep_vars=True)
    return {k for k, v in tensors.items() if any(n in tensors and tensors[n] is v for n in names)}


@pytest.mark.parametrize("name", ["unet", "resnet_basic", "twice", "dense", "pyramid", "inverted"])
def test_the_output_comes_closer_to_the_originals(name: str) -> None:
    """A skip by concatenation, residual sums, a shared module, a pyramid, depthwise convolutions."""
    model = zoo.build(name).double()
    graph, plan = planned(model, zoo.example().double(), ratio=0.3)
    data = [zoo.example(6).double()]

    def output(network: nn.Module) -> Tensor:
        y = network(data[0])
        return next(iter(y.values())) if isinstance(y, dict) else y

    # A map pooled to one pixel and resized is one number per image: too few to regress on without a strong ridge.
    ridge = 1.0 if name == "pyramid" else 1e-4
    with torch.no_grad():
        expected, plain = output(model), output(secateur.apply(model, plan))
        for mode in ("mean", "least_squares"):
            got = output(secateur.compensate(model, graph, plan, data, mode, ridge=ridge).model)
            assert (got - expected).norm() < 0.8 * (plain - expected).norm()


def test_a_depthwise_convolution_has_nothing_to_carry() -> None:
    model = zoo.build("inverted")
    graph, plan = planned(model, zoo.example())
    names = {c.consumer for c in secateur.compensate(model, graph, plan, [zoo.example()]).consumers}
    depthwise = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert depthwise and names and not names & depthwise


def test_a_shared_module_is_measured_over_all_its_calls() -> None:
    model = zoo.build("twice").double()
    graph, plan = planned(model, zoo.example().double())
    data = [zoo.example(4).double()]
    result = secateur.compensate(model, graph, plan, data)
    gone = list(plan.removed["shared.0.weight"][1])
    kept = [i for i in range(8) if i not in plan.removed["shared.0.weight"].get(0, ())]
    mean = inputs_of(model, "shared.0", data).mean((0, 2, 3))  # both calls, one after the other
    shift = (model.shared[0].weight.sum((2, 3))[:, gone] * mean[gone]).sum(1)
    moved = model.shared[1].running_mean[kept] - result.model.shared[1].running_mean
    torch.testing.assert_close(moved, shift[kept], rtol=1e-10, atol=1e-12)


# -- what is left alone -----------------------------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Padding(nn.Conv2d):
    """As people write 'same' padding."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Scaling(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel)


@pytest.mark.parametrize("mode", ["mean", "least_squares"])
@pytest.mark.parametrize(
    ("second", "note"),
    [
        (lambda: Functional(), "convolution is called as a function"),
        (lambda: Standardised(8, 5, 3), "its weight is computed from other tensors"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 5, 3)), "its weight is computed"),
        (lambda: Scaling(8, 5, 3), "Scaling has a forward of its own"),
    ],
)
def test_what_is_left_alone_is_listed_with_the_reason(second: Callable[[], nn.Module], note: str, mode: str) -> None:
    model = ready(Pair(nn.Conv2d(3, 8, 1), second()))
    graph, plan = planned(model)
    result = secateur.compensate(model, graph, plan, batches(), mode)
    (alone,) = result.left_alone
    assert note in alone.note and "left alone" in str(result)
    plain = secateur.apply(model, plan)
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), plain.parameters(), strict=True))


def test_a_convolution_that_only_pads_in_its_own_forward_takes_part() -> None:
    model = ready(Pair(nn.Conv2d(3, 8, 1), Padding(8, 5, 3)))
    graph, plan = planned(model)
    assert secateur.compensate(model, graph, plan, batches()).consumers[0].into == ("second.bias",)
    model = ready(Pair(nn.Conv2d(3, 8, 1), Padding(8, 5, 3, bias=False)))
    graph, plan = planned(model)
    (alone,) = secateur.compensate(model, graph, plan, batches()).left_alone
    assert alone.note == "it has no bias, and Padding, with a forward of its own, may not use one"


def test_a_norm_without_running_statistics_needs_no_constant() -> None:
    second = nn.Sequential(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))
    model = ready(Pair(nn.Conv2d(3, 8, 1), second))
    graph, plan = planned(model)
    (alone,) = secateur.compensate(model, graph, plan, batches()).left_alone
    assert "second.1 subtracts the batch's own mean" in alone.note
    (folded,) = secateur.compensate(model, graph, plan, batches(), "least_squares").consumers
    assert folded.into == ("second.0.weight",) and "no constant: second.1 subtracts" in folded.note


def test_a_tied_weight_is_not_changed_but_its_owners_biases_are() -> None:
    model = zoo.build("tied")
    graph, plan = planned(model, zoo.example())
    result = secateur.compensate(model, graph, plan, [zoo.example(4)], "least_squares")
    notes = {c.consumer: c for c in result.consumers}
    assert notes["a"].into == ("a.bias",) and "only the mean: its weight is used by b as well" in notes["a"].note
    assert notes["b"].into == ("b.bias",)
    assert result.model.b.weight is result.model.a.weight


def test_heads_that_run_in_train_mode_only_are_listed() -> None:
    model = zoo.build("pyramid")
    graph, plan = planned(model, zoo.example(), ratio=0.6)
    alone = {c.consumer: c.note for c in secateur.compensate(model, graph, plan, [zoo.example()]).left_alone}
    assert alone and all(name.startswith("aux") and "eval mode" in note for name, note in alone.items())


# -- data and mistakes ------------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(F.relu(self.a(x) + self.b(y)))


def test_batches_come_with_or_without_targets() -> None:
    model = ready(zoo.Plain())
    graph, plan = planned(model, zoo.example().double())
    x = zoo.example(4).double()
    for data in ([x], [(x, torch.zeros(4))], [[x, {"mask": x}]], [[x]], iter([x]), [(x,)], [((x,), 1)]):
        small = secateur.compensate(model, graph, plan, data).model
        assert torch.equal(small.head.bias, secateur.compensate(model, graph, plan, [x]).model.head.bias)

    model = ready(TwoInputs())
    graph = secateur.trace(model, (X, X))
    plan = random_plan(graph)
    for data in ([(X, 2 * X)], [((X, 2 * X), 1)]):
        small = secateur.compensate(model, graph, plan, data).model
        assert torch.equal(small.head.bias, secateur.compensate(model, graph, plan, [[X, 2 * X]]).model.head.bias)


def test_only_so_many_batches_are_read() -> None:
    model = ready(zoo.Plain())
    graph, plan = planned(model, zoo.example().double())
    read = []

    def loader():
        for i in range(5):
            read.append(i)
            yield zoo.example().double() + i

    two = secateur.compensate(model, graph, plan, loader(), batches=2).model
    assert read == [0, 1]
    same = secateur.compensate(model, graph, plan, [zoo.example().double(), zoo.example().double() + 1]).model
    assert torch.equal(two.head.bias, same.head.bias)


def test_mistakes_are_named() -> None:
    model = ready(zoo.Plain())
    graph, plan = planned(model, zoo.example().double())
    x = zoo.example().double()

    def fails(kind: type[Exception], text: str, data: object = (x,), **options: object) -> None:
        with pytest.raises(kind, match=text):
            secateur.compensate(model, graph, plan, data, **options)

    fails(MethodError, "mode 'means'; known: least_squares, mean; did you mean 'mean'", mode="means")
    fails(MethodError, "batches=0: at least 1", batches=0)
    fails(MethodError, "ridge=0", mode="least_squares", ridge=0)
    fails(DataError, "the calibration data is empty", data=[])
    fails(DataError, "the calibration data is a Tensor; expected is an iterable", data=x)
    fails(DataError, "the input of b.0 is not finite", data=[x * torch.nan])
    fails(ModelError, "Plain fails on calibration batch 2: .*expected are inputs as for", data=[x, x[:, :2]])
    other = secateur.trace(zoo.build("unet"), zoo.example())
    with pytest.raises(PlanError, match="of which the traced MiniUNet has none"):
        secateur.compensate(model, other, plan, [x])
    with pytest.raises(PlanError, match="does not fit this MiniUNet"):
        secateur.compensate(zoo.build("unet"), graph, plan, [x])
    half = secateur.Plan({"a.0.weight": {0: (0,)}}, {"a.0.weight": (8, 3, 3, 3)})
    with pytest.raises(PlanError, match="parts of units"):
        secateur.compensate(model, graph, half, [x])
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_an_empty_plan_needs_no_data() -> None:
    model = ready(zoo.Plain())
    graph = secateur.trace(model, zoo.example().double())
    result = secateur.compensate(model, graph, plan_of(graph, []), [])
    assert torch.equal(result.model(zoo.example().double()), model(zoo.example().double()))
    assert str(result) == "nothing to carry over"


# -- constants --------------------------------------------------------------------------------------------------------


def filters_silenced_by_hand(model: nn.Module, plan: secateur.Plan) -> nn.Module:
    """The filters and biases that make the plan's channels zero; norms and all that reads the channels left alone."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                depthwise = getattr(module, "groups", 1) == getattr(module, "in_channels", 0)
                dim = 1 if isinstance(module, nn.ConvTranspose2d) and not depthwise else 0
                for tensor, at in (("weight", dim), ("bias", 0)):
                    for i in plan.removed.get(f"{name}.{tensor}", {}).get(at, ()):
                        getattr(module, tensor).select(at, i).zero_()
    return model


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


class Chain(nn.Module):
    """Convolutions, batch norms and activations without padding; a sum, a concatenation, and a linear head."""

    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int, k: int, act: nn.Module) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, k), nn.BatchNorm2d(o), act)

        self.a, self.b = block(3, 8, 3, nn.ReLU(inplace=True)), block(8, 8, 3, nn.SiLU())
        self.c, self.d = block(8, 8, 1, nn.PReLU(8)), block(16, 10, 3, nn.Hardswish())
        self.up = nn.ConvTranspose2d(10, 6, 1, bias=False)
        self.fc, self.norm, self.head = nn.Linear(6 * 4, 12), nn.BatchNorm1d(12), nn.Linear(12, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        z = self.c(y) + y
        z = F.max_pool2d(self.d(torch.cat([y, torch.sigmoid(z)], 1)), 2)
        z = F.adaptive_avg_pool2d(F.interpolate(torch.tanh(self.up(z)), scale_factor=2, mode="bilinear"), 2)
        return self.head(F.gelu(self.norm(self.fc(z.flatten(1)))))


def test_constants_behind_batch_norms_are_folded_exactly() -> None:
    model = ready(Chain())
    graph, plan = planned(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = secateur.fold_constants(model, graph, plan)
    assert result.plan.removed == plan.removed and not result.refused
    silent = filters_silenced_by_hand(model, plan)
    fresh = torch.randn(3, 3, 12, 14, dtype=torch.float64)
    assert relative(result.model(fresh), silent(fresh)) < 1e-12
    assert relative(secateur.apply(model, plan)(fresh), silent(fresh)) > 1e-3  # which is why it is folded
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    # `up` has a bias made for it; everything else stays as the plan says.
    assert result.model.state_dict().keys() - before.keys() == {"up.bias", "head.bias"}


def test_a_filter_that_is_zero_already_is_removed_without_a_trace() -> None:
    """What a method leaves behind that silences filters while the batch norms train on: the network itself."""
    model = ready(Chain())
    graph, plan = planned(model)
    model = filters_silenced_by_hand(model, plan)
    assert relative(secateur.fold_constants(model, graph, plan).model(X), model(X)) < 1e-12


def test_the_constant_is_the_activation_of_the_norm_of_zero() -> None:
    model = ready(Pair(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), nn.Conv2d(8, 5, 3), nn.SiLU()))
    graph = secateur.trace(model, X)
    result = secateur.fold_constants(model, graph, removing(graph, "first.0.weight", 0, [2]))
    norm = model.first[1]
    constant = F.silu(norm.bias - norm.running_mean / (norm.running_var + norm.eps).sqrt() * norm.weight)[2]
    expected = model.second.bias + model.second.weight[:, 2].sum((1, 2)) * constant
    torch.testing.assert_close(result.model.second.bias, expected, rtol=1e-12, atol=0)


def test_at_padded_borders_units_are_refused_or_exact_inside() -> None:
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
    model = ready(Pair(first, nn.Conv2d(8, 5, 3, padding=1), nn.Sigmoid()))
    graph = secateur.trace(model, X)
    plan = removing(graph, "first.0.weight", 0, [1, 6])
    refusing = secateur.fold_constants(model, graph, plan)
    assert not len(refusing.plan) and torch.equal(refusing.model(X), model(X))
    ((group, (count, why)),) = refusing.refused.items()
    assert group == "first.0" and count == 2 and "its constant meets the padding of second" in why
    assert "2 units) not removed" in str(refusing)
    accepting = secateur.fold_constants(model, graph, plan, borders="accept")
    assert accepting.plan.removed == plan.removed
    assert accepting.consumers[0].note == "not exact where a kernel reaches into zero padding"
    a, b = accepting.model(X), filters_silenced_by_hand(model, plan)(X)
    assert relative(a[..., 1:-1, 1:-1], b[..., 1:-1, 1:-1]) < 1e-12
    assert relative(a, b) > 1e-3


def test_paddings_that_do_not_show_zeros_are_no_border() -> None:
    for pad in (nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.MaxPool2d(3, padding=1), nn.ConstantPad2d(-1, 0.0)):
        between = nn.Sequential(nn.Sigmoid(), pad)
        first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        model = ready(Pair(first, nn.Conv2d(8, 5, 3), between))
        graph, plan = planned(model)
        result = secateur.fold_constants(model, graph, plan)
        assert result.plan.removed == plan.removed
        assert relative(result.model(X), filters_silenced_by_hand(model, plan)(X)) < 1e-12
    for pad in (nn.ConstantPad2d(1, 0.0), nn.ZeroPad2d(1), nn.AvgPool2d(3, 1, padding=1), nn.ConstantPad2d(1, 5.0)):
        model = ready(Pair(first, nn.Conv2d(8, 5, 3), nn.Sequential(nn.Sigmoid(), pad)))
        graph, plan = planned(model)
        assert "meets the padding of" in str(secateur.fold_constants(model, graph, plan))
        result = secateur.fold_constants(model, graph, plan, borders="accept")
        assert "not exact" in result.consumers[0].note
        a, b = result.model(X), filters_silenced_by_hand(model, plan)(X)
        assert relative(a[..., 3:-3, 3:-3], b[..., 3:-3, 3:-3]) < 1e-12


def test_a_transposed_convolution_spreads_a_constant_evenly_only_without_a_stride() -> None:
    first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    full = nn.ConvTranspose2d(8, 5, 3, padding=2)  # crops all that sees less than the whole kernel
    model = ready(Pair(first, full, nn.Sigmoid()))
    graph, plan = planned(model)
    result = secateur.fold_constants(model, graph, plan)
    assert result.plan.removed == plan.removed
    assert relative(result.model(X), filters_silenced_by_hand(model, plan)(X)) < 1e-12
    for options, why in (({"padding": 0}, "padding"), ({"stride": 2}, "spreads a constant unevenly")):
        model = ready(Pair(first, nn.ConvTranspose2d(8, 5, 3, **options), nn.Sigmoid()))
        assert why in str(secateur.fold_constants(model, *planned(model)))


def test_grouped_and_depthwise_convolutions_fold_too() -> None:
    class Groups(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.deep = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
            self.n1, self.n2, self.n3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(12)
            self.grouped, self.head = nn.Conv2d(8, 12, 3, groups=2, bias=False), nn.Conv2d(12, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.sigmoid(self.n2(self.deep(F.silu(self.n1(self.a(x))))))
            return self.head(F.elu(self.n3(self.grouped(y))))

    model = ready(Groups())
    graph, plan = planned(model)
    result = secateur.fold_constants(model, graph, plan)
    assert result.plan.removed == plan.removed
    assert {c.consumer: c.into for c in result.consumers} == {
        "grouped": ("n3.running_mean",),
        "head": ("head.bias",),
    }
    assert relative(result.model(X), filters_silenced_by_hand(model, plan)(X)) < 1e-12


@pytest.mark.parametrize("borders", ["refuse", "accept"])
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_in_any_network_what_is_folded_is_exact_and_the_rest_is_refused(name: str, borders: str) -> None:
    model = zoo.build(name).double()
    graph, plan = planned(model, zoo.example().double(), ratio=0.3)
    result = secateur.fold_constants(model, graph, plan, borders=borders)
    assert bool(result.refused) == (result.plan.removed != plan.removed)
    if borders == "refuse":
        silent = filters_silenced_by_hand(model, result.plan)
        x = zoo.example(3).double() * 2
        a, b = result.model(x), silent(x)
        for key in a if isinstance(a, dict) else [slice(None)]:
            assert relative(a[key], b[key]) < 1e-12


class Aliased(nn.Module):
    """A view that is written into: what is read through the original is something else then."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.n(self.a(x)))
        with torch.no_grad():
            y.flatten(2).neg_()
        return self.head(y)


class Gated(nn.Module):
    """A constant times what is none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.n(self.a(x))) * x.mean((1, 2, 3), keepdim=True))


class Called(nn.Module):
    """One convolution that reads two different constants."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n(self.a(x))
        return self.head(torch.sigmoid(y)) + self.head(torch.tanh(y))


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Aliased, "no constant behind neg_"),
        (Gated, "no constant behind mul"),
        (Called, "head is called again and reads another constant"),
        (lambda: Pair(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), Functional(), nn.Sigmoid()),
         "called as a function"),
        (lambda: Pair(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(8, track_running_stats=False)),
         "no constant behind native_batch_norm"),
        (lambda: Pair(nn.Sequential(Standardised(3, 8, 1), nn.BatchNorm2d(8)), nn.Conv2d(8, 4, 1)),
         "no constant behind convolution"),
    ],
)  # fmt: skip
def test_units_whose_constant_cannot_be_followed_stay_with_the_reason(
    network: Callable[[], nn.Module], why: str
) -> None:
    model = ready(network())
    graph, plan = planned(model)
    result = secateur.fold_constants(model, graph, plan)
    assert not len(result.plan) and why in str(result)
    assert torch.equal(result.model(X), model(X))


def test_single_precision_networks_are_folded_and_verified_too() -> None:
    model = ready(Chain()).float()
    graph, plan = planned(model, X.float())
    result = secateur.fold_constants(model, graph, plan)
    assert result.plan.removed == plan.removed
    assert relative(result.model(X.float()), filters_silenced_by_hand(model, plan)(X.float())) < 1e-5


def test_a_wrong_fold_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "silu", RULES["clone"])
    model = ready(Chain())
    graph, plan = planned(model)
    with pytest.raises(VerificationError, match="Chain with folded constants is not exact"):
        secateur.fold_constants(model, graph, plan)


def test_mistakes_in_folding_are_named() -> None:
    model = ready(Chain())
    graph, plan = planned(model)
    with pytest.raises(MethodError, match="borders 'accepted'; known: accept, refuse; did you mean 'accept'"):
        secateur.fold_constants(model, graph, plan, borders="accepted")
    with pytest.raises(PlanError, match="does not fit this MiniUNet"):
        secateur.fold_constants(zoo.build("unet"), graph, plan)
