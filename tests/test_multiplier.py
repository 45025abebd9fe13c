"""Factors on channels: gradients against autograd in float64, folding, what autograd keeps, where there are none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import secateur
from secateur.graph import Graph
from secateur.methods.beside import Beside
from secateur.methods.multiplier import Gathered, Multiplier, covered, multipliers
from secateur.methods.protocol import Training
from secateur.methods.sites import sites_of


class Kinds(nn.Module):
    """Plain, grouped, depthwise and transposed (grouped, too) convolutions, and linear layers of two ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.transposed = nn.ConvTranspose2d(12, 6, 2, 2)
        self.both = nn.ConvTranspose2d(6, 8, 3, groups=2)
        self.rows, self.flat, self.head = nn.Linear(8, 10), nn.Linear(10, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(torch.tanh(self.plain(x)))
        y = torch.tanh(self.transposed(torch.tanh(self.depthwise(y))))
        y = torch.tanh(self.both(y)).permute(0, 2, 3, 1)
        return self.head(torch.tanh(self.flat(torch.tanh(self.rows(y)).mean((1, 2)))))


class SharedModule(nn.Module):
    """One convolution and one batch norm, each called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.bn, self.head = (
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(self.bn(self.conv(torch.tanh(self.bn(self.conv(y))))))


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    own = {"kinds": Kinds, "shared": SharedModule}
    model = zoo.randomise(own[name]()) if name in own else zoo.build(name)
    return model.double().train(), torch.randn(3, 3, 16, 20, dtype=torch.float64)


NETWORKS = ("kinds", "shared", "twice", "resnet_basic", "dense", "segnet", "unet", "pyramid", "inverted", "tied")


def loss_of(output: object) -> Tensor:
    parts = [output] if isinstance(output, Tensor) else list(output.values())  # type: ignore[attr-defined]
    return sum((F.softplus(part) * torch.linspace(0, 1, part.numel()).view_as(part)).sum() for part in parts)


def attached(graph: Graph, behind: bool) -> list[Multiplier]:
    """With a random factor on every channel."""
    layers = multipliers(graph, {site.module for site in sites_of(graph)} if behind else ())
    for number, layer in enumerate(layers):
        layer.factor = 0.2 + torch.rand(
            len(layer.units), dtype=layer.dtype, generator=torch.Generator().manual_seed(number)
        )
        layer.attach(graph.model)
    return layers


def shape_for(module: nn.Module) -> tuple[int, ...]:
    """Of a factor for what a module puts out."""
    return (-1,) if isinstance(module, nn.Linear) else (-1, 1, 1)


def by_autograd(model: nn.Module, x: Tensor, layers: list[Multiplier]) -> tuple[Tensor, list[Tensor]]:
    """The loss and f * dL/df where every factor is a leaf that multiplies out of place."""
    leaves, handles = [layer.factor.clone().requires_grad_() for layer in layers], []
    for layer, leaf in zip(layers, leaves, strict=True):
        layer.detach()
        handles += [
            model.get_submodule(name).register_forward_hook(lambda m, a, out, f=leaf: out * f.view(shape_for(m)))
            for name in layer.modules
        ]
    loss = loss_of(model(x))
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    for handle in handles:
        handle.remove()
    return loss, [f.detach() * (0 if g is None else g) for f, g in zip(leaves, gradients, strict=True)]


@pytest.mark.parametrize("behind", [False, True], ids=["convolution", "norm"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_is_autograds(name: str, behind: bool) -> None:
    model, x = network(name)
    reference = copy.deepcopy(model)
    layers = attached(secateur.trace(model, x), behind)
    assert layers
    if behind and name not in ("kinds", "dense", "tied"):
        assert any(isinstance(model.get_submodule(layer.modules[0]), nn.BatchNorm2d) for layer in layers)
    torch.manual_seed(1)  # dropout in the auxiliary head
    loss = loss_of(model(x))
    loss.backward()
    torch.manual_seed(1)
    expected_loss, expected = by_autograd(reference, x, layers)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    for layer, sums in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.sums(), sums, rtol=1e-8, atol=1e-8 * max(1.0, float(sums.abs().max())))


@pytest.mark.parametrize("behind", [False, True], ids=["convolution", "norm"])
@pytest.mark.parametrize("name", NETWORKS)
def test_folded_the_network_computes_the_same_without_hooks(name: str, behind: bool) -> None:
    model, x = network(name)
    layers = attached(secateur.trace(model, x), behind)
    model.eval()
    multiplied = model(x)
    for layer in layers:
        factor = layer.factor
        layer.detach()
        layer.fold(factor)
    assert not any(m._forward_hooks for m in model.modules())
    for a, b in zip(values(model(x)), values(multiplied), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def values(output: object) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["kinds", "resnet_basic", "segnet", "inverted", "shuffle", "tied"])
def test_sums_of_a_unit_are_those_of_all_its_layers(name: str) -> None:
    model, x = network(name)
    graph = secateur.trace(model, x)
    layers = attached(graph, behind=False)
    loss_of(model(x)).backward()
    seats = np.append(np.arange(graph.units), graph.units)
    total = torch.zeros(graph.units + 1, dtype=torch.float64)
    for layer in layers:
        Gathered.of(layer, seats, total.device).add_sums(total)
    expected = np.zeros(graph.units + 1)
    for layer in layers:
        for unit, value in zip(layer.units, layer.sums().tolist(), strict=True):
            expected[unit] += value
    np.testing.assert_allclose(total[:-1].numpy(), expected[:-1], rtol=1e-12, atol=1e-12)


def test_gradients_add_up_over_backward_passes() -> None:
    model, x = network("kinds")
    layers = attached(secateur.trace(model, x), behind=False)
    once = []
    for part in (x[:1], x[1:]):
        model.zero_grad()
        loss_of(model(part)).backward()
        once.append([layer.sums() for layer in layers])
    model.zero_grad()
    for part in (x[:1], x[1:]):
        loss_of(model(part)).backward()
    for layer, a, b in zip(layers, *once, strict=True):
        torch.testing.assert_close(layer.sums(), a + b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("behind", [False, True], ids=["convolution", "norm"])
@pytest.mark.parametrize("name", ["unet", "segnet", "kinds"])
def test_nothing_is_kept_for_the_backward_pass_but_factors_and_weights(name: str, behind: bool) -> None:
    model, x = network(name)
    graph = secateur.trace(model, x)

    def saved() -> int:
        storages = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(x)  # alive until the storages are counted
        assert output is not None
        return sum(storages.values())

    before = saved()
    layers = attached(graph, behind)
    multiplied = sum(p.nbytes for layer in layers for p in layer.parameters)
    assert before < saved() <= before + sum(layer.factor.nbytes for layer in layers) + multiplied


def test_networks_are_traced_as_if_there_were_no_factors() -> None:
    model, x = network("unet")
    graph = secateur.trace(model, x)
    plain, cost = str(graph), secateur.cost(model, x)
    attached(graph, behind=False)
    assert str(secateur.trace(model, x)) == plain and secateur.cost(model, x) == cost


def test_a_copy_of_the_network_is_multiplied_by_the_factors_as_they_are() -> None:
    model, x = network("unet")
    layers = attached(secateur.trace(model, x), behind=False)
    average = copy.deepcopy(model)
    for layer in layers:
        layer.factor = torch.zeros_like(layer.factor)
    assert torch.equal(average.eval()(x), model.eval()(x))


def test_half_precision_outputs_and_images_without_a_batch() -> None:
    conv = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph = secateur.trace(model, torch.zeros(1, 3, 8, 8))
    layer = next(m for m in multipliers(graph) if m.modules == ("0",))
    layer.factor = torch.tensor([1.0, 0.5, 0.25, 0.0])
    x = torch.randn(3, 8, 8)
    plain = conv(x).detach()
    layer.attach(model)
    torch.testing.assert_close(conv(x), plain * layer.factor.view(4, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
        torch.testing.assert_close(conv(x).float(), plain * layer.factor.view(4, 1, 1), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("behind", [False, True], ids=["convolution", "norm"])
def test_a_module_has_its_own_parameters_whenever_it_does_not_run(behind: bool) -> None:
    model, x = network("unet")
    own, names = list(model.parameters()), list(model.state_dict())
    attached(secateur.trace(model, x), behind)
    model(x)
    assert all(a is b for a, b in zip(own, model.parameters(), strict=True)) and names == list(model.state_dict())
    with pytest.raises(RuntimeError):
        model(x[:, :2])  # fails in the first convolution
    assert all(a is b for a, b in zip(own, model.parameters(), strict=True))


def test_compiled_and_checkpointed_networks_are_multiplied_likewise() -> None:
    model, x = network("unet")
    attached(secateur.trace(model, x), behind=False)
    expected = model(x)
    loss_of(expected).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    for run in (torch.compile(model, backend="eager"), lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        output = run(x)
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
        loss_of(output).backward()
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-10)


def test_a_norm_with_an_activation_in_it_is_multiplied_in_front_of_that() -> None:
    class NormAct(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    model = nn.Sequential(nn.Conv2d(3, 6, 1), NormAct(6), nn.Conv2d(6, 4, 1)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain = model[:2](x).detach()
    graph = secateur.trace(model, x)
    layers = multipliers(graph, ["0"])
    assert {layer.modules for layer in layers} == {("0",), ("1",), ("2",)}
    norm = next(layer for layer in layers if layer.modules == ("1",))
    norm.factor = torch.linspace(0, 1, 6, dtype=torch.float64)
    norm.attach(model)
    torch.testing.assert_close(model[:2](x), plain * norm.factor.view(-1, 1, 1))


# where there is none


class Elsewhere(nn.Module):
    """A weight that the code uses again, one tied to a transposed convolution, one that is frozen, one that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.tied, self.frozen = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.back = nn.ConvTranspose2d(8, 8, 3, padding=1)
        self.back.weight = self.tied.weight
        self.frozen.requires_grad_(False)
        self.made = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 5, 1))
        self.free, self.head = nn.Conv2d(5, 7, 1), nn.Conv2d(7, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(x) + F.conv2d(x, self.again.weight).tanh()
        y = self.back(self.tied(y).relu())
        return self.head(self.free(self.made(self.frozen(y).relu()).relu()).relu())


def test_layers_of_which_the_gradients_tell_nothing_get_none() -> None:
    model = Elsewhere()
    graph = secateur.trace(model, torch.zeros(2, 3, 8, 8))
    found = multipliers(graph)
    assert {layer.modules for layer in found} == {("free",), ("head",)}
    assert (*np.flatnonzero(covered(graph, found)),) == graph.find("free")[0].units  # not the head's, which are pinned


def test_a_unit_is_covered_if_all_layers_that_make_it_are() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 1)
            self.b = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 1))
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.a(x) + self.b(x)).relu())

    graph = secateur.trace(Sum(), torch.zeros(2, 3, 8, 8))
    assert ("a",) in {layer.modules for layer in multipliers(graph)}
    assert not covered(graph, multipliers(graph)).any()
    residual = secateur.trace(zoo.build("resnet_basic"), zoo.example())
    assert (covered(residual, multipliers(residual)) == residual.prunable).all()


# what trains beside


def steps(beside: Beside, targets: Tensor, count: int, lr: float | None = None) -> None:
    for _ in range(count):
        beside.parameters[0].grad = 2 * (beside.parameters[0].detach() - targets)
        beside.step(lr)


@pytest.mark.parametrize("adaptive", [False, True])
def test_it_is_sgd_with_the_trainings_momentum_or_adam(adaptive: bool) -> None:
    targets, start = torch.arange(4.0), torch.zeros(4)
    beside = Beside([nn.Parameter(start.clone())])
    beside.begin(Training(10, 1.0, 0.9, adaptive))
    steps(beside, targets, 3, lr=0.05)
    twin = nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([twin], 0.05) if adaptive else torch.optim.SGD([twin], 0.05, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        (twin - targets).square().sum().backward()
        optimizer.step()
    assert torch.equal(twin, beside.parameters[0])


def test_the_learning_rate_is_the_steps_else_the_schedules_else_its_own() -> None:
    for lr, schedule, expected in ((0.3, (10, 2.0), 0.3), (None, (10, 2.0), 0.2), (None, None, 0.07)):
        beside = Beside([nn.Parameter(torch.zeros(1))], lr=0.07)
        if schedule is not None:
            beside.begin(Training(*schedule))
        beside.parameters[0].grad = -torch.ones(1)
        beside.step(lr)
        assert beside.parameters[0].tolist() == pytest.approx([expected])


def test_gradients_that_are_not_finite_move_nothing() -> None:
    beside = Beside([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))])
    beside.parameters[0].grad, beside.parameters[1].grad = torch.tensor([1.0, torch.nan]), torch.ones(2)
    beside.step(0.1)
    assert all(p.tolist() == [0.0, 0.0] for p in beside.parameters)


@pytest.mark.parametrize("adaptive", [False, True])
def test_it_goes_on_from_its_state_bit_for_bit(adaptive: bool) -> None:
    targets = torch.randn(5)

    def fresh() -> Beside:
        beside = Beside([nn.Parameter(torch.zeros(5))])
        beside.begin(Training(10, 1.0, 0.9, adaptive))
        return beside

    whole, part, again = fresh(), fresh(), Beside([nn.Parameter(torch.zeros(5))])  # which was told nothing
    steps(whole, targets, 6)
    steps(part, targets, 2)
    part.parameters[0].grad = 2 * (part.parameters[0].detach() - targets)  # waits for its step
    state = part.state_dict()
    steps(part, targets, 3)  # what goes on does not change the state
    again.load_state_dict(state)
    again.step(None)
    steps(again, targets, 3)
    assert torch.equal(whole.parameters[0], again.parameters[0])
