"""Pseudo scales: gradients against autograd, trained and pulled like a gamma, folded away, without any norms."""

from __future__ import annotations

import copy
from typing import Any

import methods
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

import secateur
from secateur.errors import BudgetError, MethodError
from secateur.methods.cap import CAP, batch_beta, guiding_factors
from secateur.methods.network_slimming import NetworkSlimming
from secateur.methods.pseudo_scales import PseudoScales
from secateur.methods.sparsify import soft_threshold
from secateur.training.checkpoint import read_state, write_state

Slimming = CAP | NetworkSlimming


class VGG(nn.Module):
    """Like VGG with a decoder: pairs of convolutions and poolings, a transposed convolution, no norms at all."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c3, self.c4 = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.c5 = nn.Conv2d(12, 16, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(16, 10, 4, 4), nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.c2(self.c1(x).relu()).relu(), 2)
        x = F.max_pool2d(self.c4(F.leaky_relu(self.c3(x), 0.1)).relu(), 2)
        return self.head(self.up(self.c5(x).relu()).relu())


class Sum(nn.Module):
    """A residual sum and a shared module, without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.shared, self.fc, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.a(x).tanh())
        x = self.shared(self.shared(x).tanh())
        return self.head(self.fc(x.mean((2, 3))).tanh())[:, :, None, None].expand(-1, -1, 16, 20)


class OneWeight(nn.Module):
    """Two convolutions with one weight and biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.b.weight = self.a.weight
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.stem(x)).tanh()).tanh())


NETWORKS = {"vgg": VGG, "sum": Sum, "one_weight": OneWeight}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return zoo.randomise(NETWORKS[name]() if name in NETWORKS else zoo.NETWORKS[name]())


def scales_in(pruner: secateur.Pruner) -> dict[str, nn.Parameter]:
    assert isinstance(pruner.method, Slimming)
    return {scale.name: scale.gamma for scale in pruner.method._pseudo.scales}


def set_scales(pruner: secateur.Pruner, low: float = 0.3) -> None:
    """Random ones, some of them negative, one of them zero."""
    assert isinstance(pruner.method, Slimming)
    for number, scale in enumerate(scales_in(pruner).values()):
        draws = low + torch.rand(len(scale), dtype=scale.dtype, generator=torch.Generator().manual_seed(number))
        draws[::3] *= -1
        draws[1] = 0
        scale.data.copy_(draws)
    pruner.method._pseudo.show()


class Scaled(nn.Module):
    """The network with scales that are parameters, multiplied out of place."""

    def __init__(self, network: nn.Module, scales: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.scales = nn.ParameterDict({name.replace(".", "/"): p.detach().clone() for name, p in scales.items()})
        for name, scale in self.scales.items():
            layer = self.network.get_submodule(name.rpartition("/")[0].replace("/", "."))
            shape = (-1, 1, 1) if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) else (-1,)
            layer.register_forward_hook(lambda m, a, out, s=scale, shape=shape: out * s.view(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def scale(self, name: str) -> nn.Parameter:
        return self.scales[name.replace(".", "/")]


def pair(name: str, method: str, **options: Any) -> tuple[nn.Module, secateur.Pruner, Scaled, Tensor, Tensor]:
    """A network with pseudo scales, its twin with real ones, images and labels; all in float64."""
    model, x = build(name).double().train(), zoo.example().double()
    target = methods.labels_for(model, x)[0]
    plain = copy.deepcopy(model)
    pruner = secateur.Pruner(model, x, method=method, **options)
    return model, pruner, Scaled(plain, scales_in(pruner)), x, target


# gradients


def applied(scale: Tensor) -> Tensor:
    """A scale of zero has the gradient of the smallest positive one: where a ReLU is all zero, it has none."""
    return torch.where(scale == 0, 1e-20, scale.detach())


@pytest.mark.parametrize("name", ["vgg", "sum", "shuffle"])
def test_the_gradient_is_autograds(name: str) -> None:
    model, pruner, twin, x, target = pair(name, "network_slimming", lam=0.0, pseudo_scales=True)
    set_scales(pruner)
    for scale_name, scale in scales_in(pruner).items():
        twin.scale(scale_name).data.copy_(applied(scale))
    methods.loss_of(model(x), target).backward()
    pruner.after_backward()
    methods.loss_of(twin(x), target).backward()
    assert any((scale == 0).any() for scale in scales_in(pruner).values())
    for scale_name, scale in scales_in(pruner).items():
        torch.testing.assert_close(scale.grad, twin.scale(scale_name).grad, rtol=1e-7, atol=1e-10)


def test_layers_that_share_a_weight_share_their_scale() -> None:
    model, pruner, twin, x, target = pair("one_weight", "network_slimming", lam=0.0)
    set_scales(pruner)
    assert set(scales_in(pruner)) == {"stem.pseudo_scale", "a.pseudo_scale"}
    for name, scale in scales_in(pruner).items():
        twin.scale(name).data.copy_(applied(scale))
    twin.network.b.register_forward_hook(lambda m, a, out: out * twin.scale("a.pseudo_scale").view(-1, 1, 1))
    methods.loss_of(model(x), target).backward()
    pruner.after_backward()
    methods.loss_of(twin(x), target).backward()
    for name, scale in scales_in(pruner).items():
        torch.testing.assert_close(scale.grad, twin.scale(name).grad, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("update", ["subgradient", "proximal"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_they_train_and_are_pulled_like_a_gamma(update: str, adaptive: bool) -> None:
    """Network Slimming, eq. 1, on scales that are parameters of the network and in its optimizer."""
    model, pruner, twin, x, target = pair("vgg", "network_slimming", pull=0.9, update=update)
    kind = torch.optim.Adam if adaptive else torch.optim.SGD
    more: dict[str, Any] = {} if adaptive else {"momentum": 0.9}
    optimizers = [kind(network.parameters(), 0.02, **more) for network in (model, twin)]
    lrs = [0.02, 0.03, 0.01, 0.01]
    momentum = more.get("momentum", 0.0)
    pruner.begin(steps=4, lr_sum=sum(lrs), momentum=momentum, adaptive=adaptive)
    strength = 0.9 * (1 - momentum) / sum(lrs)
    for lr in lrs:
        for network, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            methods.loss_of(network(x), target).backward()
        pruner.after_backward()
        for scale in twin.scales.values():
            if update == "subgradient":
                scale.grad += strength * scale.detach().sign()
        for optimizer in optimizers:
            optimizer.step()
        pruner.after_step(lr)
        with torch.no_grad():
            for scale in twin.scales.values() if update == "proximal" else ():
                scale.copy_(soft_threshold(scale, 0.9 * lr / sum(lrs)))
    for name, scale in scales_in(pruner).items():
        torch.testing.assert_close(scale, twin.scale(name), rtol=1e-6, atol=1e-9)
        assert float((scale.detach() - 1).abs().min()) > 0.05
    for a, b in zip(model.parameters(), twin.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_a_scale_of_zero_recovers_if_the_loss_wants_it() -> None:
    model, pruner, _, x, target = pair("vgg", "network_slimming", lam=0.0)
    set_scales(pruner)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        methods.loss_of(model(x), target).backward()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step(0.1)
    moved = {name: float(scale[1].detach().abs()) for name, scale in scales_in(pruner).items()}
    assert min(moved[f"c{i}.pseudo_scale"] for i in (1, 2, 3, 4)) > 1e-8  # the others are below the ReLU everywhere


# where there are any


@pytest.mark.parametrize("method", ["cap", "network_slimming"])
@pytest.mark.parametrize("name", ["unet", "segnet", "pyramid"])
def test_a_network_with_batch_norms_has_none_unless_asked_for(method: str, name: str) -> None:
    plans = []
    for options in ({}, {"pseudo_scales": False}, {"pseudo_scales": "auto"}):
        model = build(name).train()
        pruner = secateur.Pruner(model, zoo.example(), method=method, **options)
        assert not scales_in(pruner)
        pruner.begin(steps=4, lr_sum=0.4)
        methods.train(model, pruner, zoo.example(), torch.optim.SGD(model.parameters(), 0.1), range(2))
        plans.append(pruner.finish(pruning_ratio=0.4).plan)
    assert plans[0] == plans[1] == plans[2]


def test_asked_for_the_layers_have_them_whose_channels_no_batch_norm_scales() -> None:
    pruner = secateur.Pruner(build("unet"), zoo.example(), method="network_slimming", pseudo_scales=True)
    assert set(scales_in(pruner)) == {"up2.pseudo_scale"}
    scores = pruner.method.scores(pruner.graph)
    assert np.isfinite(scores[list(pruner.graph.find("up2")[0].units)]).all()
    pruner.close()
    plain = secateur.Pruner(build("unet"), zoo.example(), method="network_slimming")
    assert np.isinf(plain.method.scores(plain.graph)[list(plain.graph.find("up2")[0].units)]).all()


def test_a_network_without_batch_norms_has_them_but_for_its_head() -> None:
    for method in ("cap", "network_slimming"):
        pruner = secateur.Pruner(build("vgg"), zoo.example(), method=method)
        assert set(scales_in(pruner)) == {f"{name}.pseudo_scale" for name in ("c1", "c2", "c3", "c4", "c5", "up")}
    pruner = secateur.Pruner(build("sum"), zoo.example(), method="network_slimming")
    assert set(scales_in(pruner)) == {f"{name}.pseudo_scale" for name in ("stem", "a", "b", "shared", "fc")}


def test_in_front_of_a_norm_that_would_undo_them_there_are_none() -> None:
    norms = (nn.GroupNorm(4, 8), nn.InstanceNorm2d(8), nn.BatchNorm2d(8, affine=False))
    for norm in norms:
        model = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
        pruner = secateur.Pruner(model, zoo.example(), method="network_slimming")
        assert set(scales_in(pruner)) == {"3.pseudo_scale"}


def test_without_them_the_error_is_as_before() -> None:
    with pytest.raises(MethodError, match=r"no batch norm.*l1"):
        secateur.Pruner(build("vgg"), zoo.example(), method="network_slimming", pseudo_scales=False)
    with pytest.raises(MethodError, match=r"no batch norm.*l1"):  # it has no training to learn scales in
        secateur.prune(build("vgg"), zoo.example(), method="bn_scale", pruning_ratio=0.5)
    with pytest.raises(MethodError, match="pseudo_scales 'yes': true, false or auto"):
        secateur.Pruner(build("vgg"), zoo.example(), method="cap", pseudo_scales="yes")


def test_a_refused_start_leaves_no_hooks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with pytest.raises(MethodError, match="no batch norm or pseudo scale of Sequential follows a pooling"):
        secateur.Pruner(model, zoo.example(), method="cap")
    assert not any(m._forward_hooks for m in model.modules())


# CAP's guiding


def test_cap_guides_the_convolutions_behind_poolings() -> None:
    def guided(**options: Any) -> tuple[str, ...]:
        pruner = secateur.Pruner(build("vgg"), zoo.example(), method="cap", **options)
        assert isinstance(pruner.method, CAP)
        return pruner.method.guided

    assert guided() == ("c3.pseudo_scale", "c5.pseudo_scale")
    assert guided(side="both") == tuple(f"c{i}.pseudo_scale" for i in (2, 3, 4, 5))
    assert guided(position=["c4"]) == ("c4.pseudo_scale",)
    assert len(guided(position="all")) == 6
    with pytest.raises(MethodError, match=r"names no batch norm or pseudo scale; .*c4"):
        guided(position=["c44"])


def test_cap_reads_the_scaled_map_behind_the_activation_and_pulls_by_equation_6() -> None:
    model, pruner, twin, x, target = pair("vgg", "cap", lambda1=0.03, lambda2=0.3)
    set_scales(pruner)
    for name, scale in scales_in(pruner).items():
        twin.scale(name).data.copy_(applied(scale))
    maps: dict[str, Tensor] = {}
    for name, slope in (("c3", 0.1), ("c5", 0.0)):
        twin.network.get_submodule(name).register_forward_hook(
            lambda m, a, out, n=name, slope=slope: maps.__setitem__(n, F.leaky_relu(out.detach(), slope))
        )
    methods.loss_of(model(x), target).backward()
    pruner.after_backward()
    loss = methods.loss_of(twin(x), target)
    assert isinstance(pruner.method, CAP)
    for name in scales_in(pruner):
        layer, scale = name.partition(".")[0], twin.scale(name)
        there = scales_in(pruner)[name] != 0  # at zero the subgradient is zero
        if layer in maps:
            beta = batch_beta(guiding_factors(maps[layer]))
            torch.testing.assert_close(pruner.method.beta[name], beta, rtol=1e-7, atol=1e-10)
            loss = loss + 0.3 * ((1 - beta) * scale.abs() * there).sum()
        else:
            loss = loss + 0.03 * (scale.abs() * there).sum()
    loss.backward()
    for name, scale in scales_in(pruner).items():
        torch.testing.assert_close(scale.grad, twin.scale(name).grad, rtol=1e-7, atol=1e-9)


# cutting


@pytest.mark.parametrize("method", ["cap", "network_slimming"])
@pytest.mark.parametrize("name", ["vgg", "sum"])
def test_the_smallest_go_and_the_network_is_the_scaled_one_without_them(method: str, name: str) -> None:
    options = {"position": "all"} if method == "cap" else {}
    model, pruner, twin, x, _ = pair(name, method, **options)
    set_scales(pruner)
    scales = {n: s.detach().clone() for n, s in scales_in(pruner).items()}
    multiplied = model.eval()(x)
    for scale_name, scale in scales.items():
        twin.scale(scale_name).data.copy_(scale)
    torch.testing.assert_close(multiplied, twin.eval()(x), rtol=1e-10, atol=1e-10)
    result = pruner.finish(pruning_ratio=0.4, min_keep=0.0)
    torch.testing.assert_close(model(x), multiplied, rtol=1e-10, atol=1e-10)  # the scales are in the weights
    assert not any(m._forward_hooks for network in (model, result.model) for m in network.modules())
    gone, graph = secateur.plan.plan.units_of(result.graph, result.plan), result.graph
    values = np.full(graph.units, np.inf)
    for scale_name, scale in scales.items():
        units = next(iter(graph.find(scale_name.partition(".")[0]))).units
        values[list(units)] = np.minimum(values[list(units)], scale.abs().numpy())
    free = graph.prunable & ~graph.residual
    assert gone.sum() == pytest.approx(0.4 * free.sum(), abs=1)
    assert values[gone].max() <= values[free & ~gone].min()
    with torch.no_grad():  # without them: their scales are zero, and the biases behind these
        for unit in np.flatnonzero(gone):
            for tensor, dim, index in graph.slots(int(unit)):
                model.state_dict()[graph.tensors[tensor].name].select(dim, index).zero_()
    torch.testing.assert_close(result.model.eval()(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["cap", "network_slimming"])
def test_trained_they_are_pruned_to_a_budget(method: str) -> None:
    model, x = build("vgg").train(), zoo.example()
    result = methods.pruned_to(method, model, x, {"params": 0.6}, pull=(0.2, 0.4) if method == "cap" else 0.3)
    assert result.report.ok and result.after.params <= 0.6 * result.before.params
    assert result.model.train()(x) is not None


def test_pulled_to_zero_their_removal_costs_nothing() -> None:
    model, x = build("vgg").train(), zoo.example()
    for layer in (model.c1, model.c2, model.c3, model.c5, model.up):
        layer.bias.data.zero_()
    pruner = secateur.Pruner(model, x, method="network_slimming")
    for scale in scales_in(pruner).values():
        scale.data[::2] = 0.0
    pruner.method._pseudo.show()
    before = model.eval()(x)
    result = pruner.finish(pruning_ratio=0.5)
    torch.testing.assert_close(result.model.eval()(x), before, rtol=1e-5, atol=1e-5)
    assert not [text for text in result.warnings if "hardly acted" in text]


# going on


@pytest.mark.parametrize("told", [True, False], ids=["after_step", "without after_step"])
@pytest.mark.parametrize(("method", "pull"), [("cap", (0.5, 2.0)), ("network_slimming", 0.9)])
def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Any, method: str, pull: Any, told: bool) -> None:
    x = zoo.example()
    target = methods.labels_for(build("vgg"), x)[0]

    def fresh() -> tuple[nn.Module, secateur.Pruner, torch.optim.Optimizer]:
        model = build("vgg").train()
        pruner = secateur.Pruner(model, x, method=method, pull=pull, update="proximal")
        pruner.begin(steps=6, lr_sum=0.3, momentum=0.9)
        return model, pruner, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)

    def steps(model: nn.Module, pruner: secateur.Pruner, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            methods.loss_of(model(x), target).backward()
            pruner.after_backward()
            optimizer.step()
            if told:
                pruner.after_step(0.05)

    model, pruner, optimizer = fresh()
    steps(model, pruner, optimizer, 6)
    whole = pruner.finish(pruning_ratio=0.4)
    model, pruner, optimizer = fresh()
    steps(model, pruner, optimizer, 3)
    state = {"model": dict(model.state_dict()), "pruner": pruner.state_dict(), "optimizer": optimizer.state_dict()}
    write_state(tmp_path / "state.safetensors", state)
    state = read_state(tmp_path / "state.safetensors")
    model, pruner, optimizer = fresh()
    model.load_state_dict(state["model"])
    pruner.load_state_dict(state["pruner"])
    optimizer.load_state_dict(state["optimizer"])
    steps(model, pruner, optimizer, 3)
    again = pruner.finish(pruning_ratio=0.4)
    assert whole.plan == again.plan
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_several_cuts_start_at_one_again_and_the_network_computes_what_it_did() -> None:
    model, x = build("vgg").double().eval(), zoo.example().double()
    pruner = secateur.Pruner(model, x, method="network_slimming")
    set_scales(pruner)
    first = pruner.step(pruning_ratio=0.3)
    assert all((scale == 1).all() for scale in scales_in(pruner).values())
    torch.testing.assert_close(first.model(x), pruner.graph.model(x))
    second = pruner.step(pruning_ratio=0.5, inplace=True)
    assert second.after.params < first.after.params and second.report.ok
    pruner.close()


def test_after_a_cut_that_is_refused_training_goes_on() -> None:
    """The scales were put into the weights, so the factors are 1; pulled and ranked are the scales as they were."""
    model, pruner, twin, x, target = pair("vgg", "network_slimming", lam=0.0)
    set_scales(pruner)
    for scale in scales_in(pruner).values():
        scale.data[1] = 0.7
    pruner.method._pseudo.show()
    for name, scale in scales_in(pruner).items():
        twin.scale(name).data.copy_(scale)
    before, scores = model(x).detach(), pruner.method.scores(pruner.graph)
    with pytest.raises(BudgetError):
        pruner.step(budget={"params": 1e-6})
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
    assert (pruner.method.scores(pruner.graph) == scores).all()
    assert all(len(m._forward_hooks) <= 1 for m in model.modules())
    for network in (model, twin):
        network.zero_grad()
        methods.loss_of(network(x), target).backward()
    pruner.after_backward()
    for name, scale in scales_in(pruner).items():
        torch.testing.assert_close(scale.grad, twin.scale(name).grad, rtol=1e-7, atol=1e-10)
        scale.data.mul_(0.5)
    pruner.method._pseudo.show()
    scaled = model(x).detach()
    pruner.close()
    torch.testing.assert_close(model(x), scaled, rtol=1e-10, atol=1e-10)


def test_none_cost_nothing() -> None:
    scales = PseudoScales("auto")
    graph = secateur.trace(build("unet"), zoo.example())
    scales.start(graph)
    scales.attach(graph.model)
    scales.after_backward()
    scales.after_step(0.1)
    scales.stop()
    assert not scales.scales and not any(m._forward_hooks for m in graph.model.modules())
