"""The central law: the pruned network computes what the original computes with the removed channels silenced."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import zoo
from torch import nn

import secateur
from secateur.errors import NothingPrunableError
from secateur.plan import plan_of


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", zoo.NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pruning_is_exact_and_leaves_the_original_alone(name: str, dtype: torch.dtype) -> None:
    model = zoo.build(name).to(dtype)
    before, modes = state(model), [m.training for m in model.modules()]
    result = secateur.prune(model, zoo.example().to(dtype), method="random", pruning_ratio=0.5)
    assert result.report is not None and result.report.ok
    assert result.report.relative_error <= (1e-12 if dtype == torch.float64 else 1e-5)
    assert {check.mode for check in result.report.checks} == {"eval", "train"}
    assert not result.warnings
    assert result.after.params < result.before.params
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_contract_literally(name: str) -> None:
    """Not through `verify`: silenced by hand, run as plain modules, in eval and in train mode, on a fresh input."""
    model = zoo.build(name).double()
    result = secateur.prune(model, zoo.example().double(), method="random", pruning_ratio=0.6)
    x = torch.randn(3, 3, 16, 20, dtype=torch.float64)
    for training in (False, True):
        silent, small = (
            zoo.silenced_by_hand(model, result.plan).train(training),
            copy.deepcopy(result.model).train(training),
        )
        for module in [*silent.modules(), *small.modules()]:
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        if name == "flat":
            torch.manual_seed(0)  # its dropout is functional: only eval mode can be compared
            if training:
                continue
        a, b = small(x), silent(x)
        for key in a if isinstance(a, dict) else [slice(None)]:
            assert a[key].shape == b[key].shape
            assert (a[key] - b[key]).abs().max() <= 1e-12 * b[key].abs().max()


@pytest.mark.parametrize("name", ["resnet_bottleneck", "segnet", "dense", "inverted"])
def test_gradients_agree_too(name: str) -> None:
    model = zoo.build(name).double()
    result = secateur.prune(model, zoo.example().double(), method="random", pruning_ratio=0.5)
    silent, small = zoo.silenced_by_hand(model, result.plan).train(), copy.deepcopy(result.model).train()
    x = zoo.example().double()
    for network in (silent, small):
        network(x).square().sum().backward()
    big = dict(silent.named_parameters())
    for parameter_name, parameter in small.named_parameters():
        expected = big[parameter_name].grad
        for dim, indices in result.plan.removed.get(parameter_name, {}).items():
            kept = np.setdiff1d(np.arange(expected.shape[dim]), indices)
            expected = expected.index_select(dim, torch.as_tensor(kept))
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_every_random_plan_of_prunable_units_is_exact(name: str) -> None:
    model = zoo.build(name).double()
    x = zoo.example().double()
    graph = secateur.trace(model, x)
    generator = np.random.default_rng(3)
    for _ in range(3):
        removed = (generator.random(graph.units) < generator.uniform(0.1, 0.9)) & graph.prunable
        for group in graph.groups:  # something of every group stays
            removed[group.units[0]] = False
        plan = plan_of(graph, removed)
        report = secateur.verify(model, secateur.apply(model, plan), plan, x)
        assert report.ok, report


def test_a_wrong_cut_is_found_out() -> None:
    """The verification can fail: another channel than the plan says, in weights that are fresh from their
    initialisation.
    """
    model = zoo.NETWORKS["resnet_basic"]().double()
    nn.init.zeros_(model.blocks[1].bn2.weight)  # as networks initialised for training hide their branches
    x = zoo.example().double()
    result = secateur.prune(model, x, method="random", pruning_ratio=0.4)
    name = next(n for n, dims in result.plan.removed.items() if n.endswith("conv1.weight") and len(dims) == 2)
    gone = result.plan.removed[name][1]
    other = tuple(sorted({(i + 1) % result.plan.shapes[name][1] for i in gone}))
    wrong = secateur.Plan(
        {**result.plan.removed, name: {**result.plan.removed[name], 1: other}}, result.plan.shapes, result.plan.numbers
    )
    assert not secateur.verify(model, secateur.apply(model, wrong), result.plan, x).ok


class Scaled(nn.Module):
    """Multiplies by a number that Python computes from a channel count."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = zoo.conv_bn(3, 8), zoo.conv_bn(8, 8), nn.Conv2d(8, 5, 1)
        self.hidden = hidden

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        number = y.shape[1] ** -0.5
        return self.c(self.b(y * (torch.tensor(number) if self.hidden else number)))


def test_a_number_computed_from_the_width_is_seen_in_the_trial() -> None:
    model = zoo.randomise(Scaled(hidden=False))
    group = next(g for g in secateur.trace(model, zoo.example()).groups if g.name == "a.0")
    assert "a size is written in the code: mul with" in group.pinned
    result = secateur.prune(model, zoo.example(), method="random", pruning_ratio=0.4)
    assert result.report.ok and not any("failed verification" in text for text in result.warnings)
    assert any(name.startswith("b.") for name in result.plan.removed)


def test_one_hidden_in_a_tensor_is_found_by_the_verification() -> None:
    model = zoo.randomise(Scaled(hidden=True))
    result = secateur.prune(model, zoo.example(), method="random", pruning_ratio=0.4)
    assert result.report.ok
    assert any("a.0 was kept: failed verification" in text for text in result.warnings)
    assert not any(name.startswith("a.") for name in result.plan.removed)
    assert any(name.startswith("b.") for name in result.plan.removed)


def test_attributes_tell_the_truth_and_nothing_is_wrapped() -> None:
    for name in ("inverted", "resnext", "unet", "norms", "flat"):
        model = zoo.build(name)
        small = secateur.prune(model, zoo.example(), method="random", pruning_ratio=0.5).model
        assert type(small) is type(model)
        for before, module in zip(model.modules(), small.modules(), strict=True):
            assert type(before) is type(module)
            assert not module._forward_hooks and not module._forward_pre_hooks
            if isinstance(module, nn.ConvTranspose2d):
                assert module.weight.shape[:2] == (module.in_channels, module.out_channels // module.groups)
            elif isinstance(module, nn.Conv2d):
                assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.num_features == len(module.weight) == len(module.running_var)
            elif isinstance(module, nn.GroupNorm):
                assert module.num_channels == len(module.weight) and module.num_channels % module.num_groups == 0
            elif isinstance(module, nn.Linear):
                assert module.weight.shape == (module.out_features, module.in_features)
            elif isinstance(module, nn.PReLU):
                assert module.num_parameters == len(module.weight)


def test_a_network_that_deepcopy_refuses_is_pruned() -> None:
    class Awkward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [zoo.conv_bn(3, 8), nn.Conv2d(8, 5, 1)]  # a plain list beside the registered modules
            self.first, self.second = self.layers
            self.generator = (i for i in range(3))  # can't be copied

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers[1](self.layers[0](x))

    model = Awkward()
    with pytest.raises(TypeError):
        copy.deepcopy(model)
    before = state(model)
    result = secateur.prune(model, zoo.example(), method="l1", pruning_ratio=0.5)
    assert result.model.layers[0][0].out_channels == 4
    assert result.model.layers[0] is result.model.first and result.model.first is not model.first
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_tuple_and_dict_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = zoo.conv_bn(3, 8), zoo.conv_bn(3, 8), nn.Conv2d(8, 5, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
            z = self.a(x) + self.b(y) * scale
            return self.c(z), z.mean((2, 3)).sum(1)

    x, y = zoo.example(), zoo.example() * 2
    for inputs in ((x, y), {"y": y, "x": x, "scale": 2.0}):
        model = zoo.randomise(Two())
        graph = secateur.trace(model, inputs)
        assert all(
            graph.groups[graph.solution.group_of[u]].pinned is None
            for u in np.flatnonzero(graph.residual & graph.prunable)
        )
        result = secateur.prune(model, inputs, method="random", pruning_ratio=0.0)
        assert result.report.ok if result.report else True
        assert len(result.plan) == 0


def test_the_empty_plan_is_the_identity_bit_for_bit() -> None:
    model = zoo.build("unet")
    small = secateur.apply(model, secateur.Plan({}))
    x = zoo.example()
    assert torch.equal(model(x), small(x))


def test_random_state_of_the_user_is_not_disturbed() -> None:
    model = zoo.build("flat")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    secateur.prune(model, zoo.example(), method="random", pruning_ratio=0.3)
    assert torch.equal(torch.rand(3), expected)


def test_when_verification_refuses_everything_the_reasons_say_so() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = zoo.conv_bn(3, 8), nn.Conv2d(8, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.c(y / torch.tensor(float(y.shape[1])))

    with pytest.raises(NothingPrunableError, match=r"a\.0 \(8 units\): failed verification: relative error"):
        secateur.prune(zoo.randomise(Scaled()), zoo.example(), method="l1", pruning_ratio=0.5)


def test_marks_on_parameters_are_kept() -> None:
    model = zoo.build("plain")
    model.a[0].weight.no_decay = True
    small = secateur.prune(model, zoo.example(), pruning_ratio=0.5, scope="group").model
    assert small.a[0].weight.no_decay and len(small.a[0].weight) == 4
