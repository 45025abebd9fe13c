"""Every method against its formula written out naively in float64, and the rules that all methods obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur
from secateur.errors import MethodError
from secateur.methods.cap import CAP, batch_beta, guiding_factors, min_max, row_sums
from secateur.methods.guided import places
from secateur.methods.sparsify import soft_threshold
from secateur.models import create_model

# CAGM (CAP, eqs. 1 and 2)


def affinity_by_the_paper(features: Tensor) -> Tensor:
    """a_jk = P_j . P_k, the C x C matrix itself, one sample at a time."""
    c = features.shape[0]
    p = features.reshape(c, -1)
    a = torch.zeros(c, c, dtype=features.dtype)
    for j in range(c):
        for k in range(c):
            a[j, k] = torch.dot(p[j], p[k])
    return a


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 9),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    relu=st.booleans(),
    seed=st.integers(0, 99),
)
def test_linear_form_equals_the_matrix_form(n: int, c: int, h: int, w: int, relu: bool, seed: int) -> None:
    x = torch.randn(n, c, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = F.relu(x) if relu else x
    expected = torch.stack([affinity_by_the_paper(sample).sum(1) for sample in x])
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(row_sums(x.contiguous(memory_format=layout)), expected, rtol=1e-10, atol=1e-10)
    for sample, beta in zip(x, guiding_factors(x), strict=True):
        s = affinity_by_the_paper(sample).sum(1)
        if s.max() > s.min():
            torch.testing.assert_close(beta, (s - s.min()) / (s.max() - s.min()), rtol=1e-10, atol=1e-10)


def test_guiding_factors_by_hand() -> None:
    # three channels of two pixels; sum over channels = (3, 3)
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]], dtype=torch.float64)
    assert row_sums(x).tolist() == [[3.0, 3.0, 12.0]]
    assert guiding_factors(x).tolist() == [[0.0, 0.0, 1.0]]
    # batch: the mean over samples, min-max over channels again
    assert batch_beta(torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])).tolist() == pytest.approx(
        [0.0, 0.5, 1.0]
    )


def test_degenerate_maps_give_zero_never_nan() -> None:
    assert guiding_factors(torch.zeros(2, 4, 3, 3)).tolist() == [[0.0] * 4] * 2
    assert guiding_factors(torch.ones(1, 4, 2, 2)).tolist() == [[0.0] * 4]
    assert min_max(torch.full((3,), 7.0)).tolist() == [0.0] * 3
    assert guiding_factors(torch.randn(1, 1, 3, 3)).tolist() == [[0.0]]


def test_beta_stays_between_zero_and_one_and_has_no_gradient() -> None:
    x = torch.randn(3, 6, 5, 5, requires_grad=True)
    beta = guiding_factors(x)
    assert not beta.requires_grad and beta.min() == 0 and beta.max() == 1


def test_no_square_matrix_of_channels_is_ever_allocated() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Shapes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, ...]] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.seen.extend(
                tuple(t.shape) for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor)
            )
            return out

    for layout in (torch.contiguous_format, torch.channels_last):
        with Shapes() as shapes:
            guiding_factors(torch.randn(2, 97, 5, 7).contiguous(memory_format=layout))
        assert shapes.seen and not any(shape.count(97) > 1 for shape in shapes.seen)


# CAGS (eq. 6)


def train_step(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(x), torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.long)).backward()


def test_the_gradient_is_that_of_equation_6() -> None:
    """loss + lambda1 sum |gamma| + lambda2 sum (1 - beta) |gamma|, differentiated by autograd, in float64."""
    model, x = zoo.build("segnet").double().train(), zoo.example().double()
    pruner = secateur.Pruner(model, x, method="cap", lambda1=0.03, lambda2=0.3)
    guided = pruner.method.guided
    assert guided == ("e2.1.weight", "mid.1.weight")  # the first block behind each of the two poolings
    train_step(model, x)
    pruner.after_backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    pruner.close()

    features = {}
    hooks = [model.get_submodule(n.rpartition(".")[0].rpartition(".")[0]).register_forward_hook(
        lambda m, a, out, n=n: features.__setitem__(n, out.detach().clone())) for n in guided]  # fmt: skip
    model.zero_grad()
    loss = F.cross_entropy(model(x), torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.long))
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            weight = f"{name}.weight"
            if weight in guided:
                s = torch.stack([affinity_by_the_paper(m).sum(1) for m in features[weight]])
                beta = torch.stack([(r - r.min()) / (r.max() - r.min()) for r in s]).mean(0)
                beta = (beta - beta.min()) / (beta.max() - beta.min())
                loss = loss + 0.3 * ((1 - beta) * module.weight.abs()).sum()
            else:
                loss = loss + 0.03 * module.weight.abs().sum()
    loss.backward()
    for hook in hooks:
        hook.remove()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["cap", "network_slimming"])
def test_forward_is_bit_identical_with_the_method_attached_and_after(name: str) -> None:
    model, x = zoo.build("unet").train(), zoo.example()
    plain = [t.clone() for t in (model(x), model.eval()(x))]
    model = zoo.build("unet").train()
    pruner = secateur.Pruner(model, x, method=name)
    attached = [t.clone() for t in (model(x), model.eval()(x))]
    assert all(torch.equal(a, b) for a, b in zip(plain, attached, strict=True))
    pruner.close()
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(model(x), plain[1])


def test_zero_lambdas_are_the_original_model() -> None:
    model, x = zoo.build("unet").train(), zoo.example()
    pruner = secateur.Pruner(model, x, method="cap", lambda1=0.0, lambda2=0.0)
    train_step(model, x)
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    pruner.after_backward()
    assert all(torch.equal(before[n], p.grad) for n, p in model.named_parameters())


def test_network_slimming_adds_lambda_sign_gamma() -> None:
    model, x = zoo.build("plain").double().train(), zoo.example().double()
    model.a[1].weight.data[0] = 0.0
    model.a[1].weight.data[1] = -0.5
    pruner = secateur.Pruner(model, x, method="network_slimming", lam=0.2)
    train_step(model, x)
    before = model.a[1].weight.grad.clone()
    pruner.after_backward()
    added = (model.a[1].weight.grad - before).tolist()
    assert added == pytest.approx([0.0, -0.2] + [0.2] * 6)


def test_total_pull_under_sgd_and_proximal() -> None:
    """With no other force, a scale moves by exactly the total pull, and stops at zero under the proximal update."""
    for update in ("subgradient", "proximal"):
        model, x = zoo.build("plain").double().train(), zoo.example().double()
        scale = model.a[1].weight
        start = scale.detach().clone()
        optimizer = torch.optim.SGD([scale], lr=0.1)
        pruner = secateur.Pruner(model, x, method="network_slimming", pull=0.4, update=update)
        pruner.begin(steps=20, lr_sum=2.0)
        for _ in range(20):
            scale.grad = torch.zeros_like(scale)
            pruner.after_backward()
            optimizer.step()
            pruner.after_step()
        torch.testing.assert_close(scale.detach(), (start - 0.4).clamp_min(0) if update == "proximal" else start - 0.4)


def test_a_loop_without_after_step_gets_the_same_proximal_pull() -> None:
    model, x = zoo.build("plain").double().train(), zoo.example().double()
    scale, start = model.a[1].weight, model.a[1].weight.detach().clone()
    pruner = secateur.Pruner(model, x, method="network_slimming", pull=0.3, update="proximal")
    pruner.begin(steps=5, lr_sum=1.0)
    for _ in range(5):
        scale.grad = torch.zeros_like(scale)
        pruner.after_backward()
    pruner.finish(pruning_ratio=0.3)
    torch.testing.assert_close(scale.detach(), (start - 0.3).clamp_min(0))


def test_soft_threshold() -> None:
    x = torch.tensor([-2.0, -0.1, 0.0, 0.1, 3.0])
    assert soft_threshold(x, 0.5).tolist() == [-1.5, 0.0, 0.0, 0.0, 2.5]


def test_pull_needs_the_schedule() -> None:
    model = zoo.build("plain").train()
    pruner = secateur.Pruner(model, zoo.example(), method="cap", position="all", pull=(0.1, 1.0))
    train_step(model, zoo.example())
    with pytest.raises(MethodError, match=r"pruner\.begin"):
        pruner.after_backward()


def test_a_sparsity_that_has_not_acted_is_warned_about() -> None:
    pruner = secateur.Pruner(zoo.build("unet"), zoo.example(), method="cap")
    result = pruner.finish(pruning_ratio=0.3)
    assert any("hold" in text and "hardly acted" in text for text in result.warnings)


@pytest.mark.parametrize("method", ["cap", "network_slimming"])
def test_a_cut_of_small_scales_is_not_warned_about(method: str) -> None:
    pruner = secateur.Pruner(zoo.build("unet"), zoo.example(), method=method)
    graph = pruner.graph
    for group in graph.groups:  # half of every group's scales are small
        for unit in group.units[::2]:
            for tensor, dim, index in graph.slots(unit):
                with torch.no_grad():
                    graph.model.state_dict()[graph.tensors[tensor].name].select(dim, index).mul_(1e-3)
    assert not [text for text in pruner.finish(pruning_ratio=0.2).warnings if "hardly acted" in text]


# where CAGM sits


def guided(model: nn.Module, position: object = "adjacent", side: str = "after", size: int = 64) -> list[str]:
    graph = secateur.trace(model, torch.zeros(1, 3, size, size))
    return [place.scale for place in places(graph, position, side)]


def test_places_in_segnet_are_in_the_encoder() -> None:
    model = create_model("segnet", classes=5, width=8)
    after = guided(model)
    assert after == [f"encoder.stage{i}.block1.bn.weight" for i in (2, 3, 4, 5)]
    both = guided(model, side="both")
    last = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}
    assert set(both) == set(after) | {f"encoder.stage{i}.block{last[i]}.bn.weight" for i in last}
    assert len(guided(model, "all")) == 26


def test_places_in_a_pyramid_are_its_branches() -> None:
    assert guided(zoo.build("pyramid")) == [f"bins.{i}.2.weight" for i in range(3)]


def test_places_by_name() -> None:
    model = create_model("unet", classes=5, width=8)
    assert guided(model, ["decoder.stage1"]) == ["decoder.stage1.bn1.weight", "decoder.stage1.bn2.weight"]
    with pytest.raises(MethodError, match=r"did you mean 'decoder\.stage1\.bn2'"):
        guided(model, ["decoder.stage1.bn3"])


def test_a_gate_is_no_place_and_no_pooling_is_an_error() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = zoo.conv_bn(3, 8)
            self.squeeze, self.excite = zoo.conv_bn(8, 4, 1), nn.Conv2d(4, 8, 1)
            self.head = nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.head(y * torch.sigmoid(self.excite(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))

    with pytest.raises(MethodError, match="no batch norm of Gated follows a pooling"):
        guided(Gated())


def test_the_feature_map_is_read_behind_the_activation() -> None:
    """Functional, in place, leaky: beta must be that of the activated map."""

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn, self.c = (
                zoo.conv_bn(3, 8),
                nn.Conv2d(8, 6, 3),
                nn.BatchNorm2d(6),
                nn.Conv2d(6, 5, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = F.leaky_relu(self.bn(self.b(F.avg_pool2d(self.a(x), 2))), 0.3, inplace=True)
            self.map = y.detach().clone()
            return self.c(y)

    model = zoo.randomise(Leaky()).train()
    pruner = secateur.Pruner(model, zoo.example(), method="cap")
    model(zoo.example()).sum().backward()
    pruner.after_backward()
    torch.testing.assert_close(pruner.method.beta["bn.weight"], batch_beta(guiding_factors(model.map)))


# scores


def test_l1_is_the_mean_absolute_weight_of_the_filter() -> None:
    model = zoo.build("plain")
    graph = secateur.trace(model, zoo.example())
    scores = secateur.score(graph, "l1")
    units = graph.find("a.0")[0].units
    expected = [float(model.a[0].weight[i].detach().abs().double().sum() / 27) for i in range(8)]
    assert scores[list(units)].tolist() == pytest.approx(expected)
    raw = secateur.score(graph, "l1", normalise=False)
    assert raw[list(units)].tolist() == pytest.approx([27 * e for e in expected])


def test_weights_that_are_computed_are_scored_as_they_are_used() -> None:
    """Masks of torch.nn.utils.prune, spectral norm, weights standardised inside forward."""

    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)

    def scored(first: nn.Conv2d) -> tuple[np.ndarray, Tensor]:
        model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 2, 1))
        graph = secateur.trace(model, torch.randn(1, 3, 8, 8))
        units = [unit for unit in range(graph.units) if graph.prunable[unit]]
        assert len(units) == 8
        return secateur.score(graph, "l1")[units], first.weight.detach().abs().mean((1, 2, 3))

    masked = torch.nn.utils.prune.ln_structured(nn.Conv2d(3, 8, 3), "weight", 0.25, 1, 0)
    scores, expected = scored(masked)
    assert scores == pytest.approx(expected.numpy()) and (scores == 0).sum() == 2
    for first in (torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), Standardised(3, 8, 3)):
        scores, expected = scored(first.eval())
        assert scores == pytest.approx(expected.numpy(), rel=1e-5)


def test_scores_of_coupled_channels() -> None:
    """SegNet's shared indices: the smaller of the two scales decides (a channel gone in either is gone in both)."""
    model = zoo.build("segnet")
    graph = secateur.trace(model, zoo.example())
    group = next(g for g in graph.groups if ("e1.0.weight", 0) in g.members)
    scores = secateur.score(graph, "bn_scale")
    expected = torch.minimum(model.e1[1].weight.abs(), model.d2[1].weight.abs()).tolist()
    assert scores[list(group.units)].tolist() == pytest.approx(expected)


def test_residual_sums_are_protected_unless_told_otherwise() -> None:
    graph = secateur.trace(zoo.build("resnet_bottleneck"), zoo.example())
    scores = secateur.score(graph, "cap")
    assert np.isinf(scores[graph.residual]).all() and np.isfinite(scores[graph.prunable & ~graph.residual]).all()
    free = secateur.score(graph, "cap", protect_residual=False)
    assert np.isfinite(free[graph.prunable]).all()
    inner = {
        name
        for g in graph.groups
        if np.isfinite(scores[g.units[0]])
        for name, _ in g.members
        if name.endswith("weight")
    }
    assert "blocks.0.conv1.weight" in inner and "blocks.0.bn3.weight" not in inner


def test_random_is_the_same_for_the_same_seed() -> None:
    graph = secateur.trace(zoo.build("unet"), zoo.example())
    a, b, c = (secateur.score(graph, "random", seed=s) for s in (1, 1, 2))
    assert (a == b).all() and (a[graph.prunable] != c[graph.prunable]).any()


def test_networks_without_batch_norm_are_told_what_to_use() -> None:
    with pytest.raises(MethodError, match=r"no batch norm.*l1"):
        secateur.prune(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)),
            zoo.example(),
            method="bn_scale",
            pruning_ratio=0.5,
        )


def test_unknown_methods_and_options_are_named() -> None:
    model = zoo.build("plain")
    with pytest.raises(MethodError, match="did you mean 'network_slimming'"):
        secateur.prune(model, zoo.example(), method="network_sliming", pruning_ratio=0.5)
    with pytest.raises(MethodError, match="did you mean 'lambda1'"):
        secateur.Pruner(model, zoo.example(), method="cap", lambda_1=3)
    with pytest.raises(MethodError, match="update 'adam'"):
        secateur.Pruner(model, zoo.example(), method="network_slimming", update="adam")


def test_a_users_own_method_needs_no_registration() -> None:
    class Last(secateur.Method):
        name, summary = "last", "the last channels go"

        def scores(self, graph: secateur.Graph) -> np.ndarray:
            return -np.arange(graph.units, dtype=float)

    result = secateur.prune(zoo.build("plain"), zoo.example(), method=Last(), pruning_ratio=0.25)
    assert result.plan.removed["b.0.weight"][0] == (7, 8, 9, 10, 11)
    result = secateur.prune(
        zoo.build("plain"), zoo.example(), method=lambda graph: np.arange(graph.units), pruning_ratio=0.25
    )
    assert result.plan.removed["a.0.weight"][0] == (0, 1, 2, 3, 4)


def test_gradient_accumulation_averages_the_samples() -> None:
    model, x = zoo.build("segnet").double().train(), torch.randn(4, 3, 16, 20, dtype=torch.float64)
    pruner = secateur.Pruner(model, x, method="cap")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()  # so that a batch in halves computes what the whole batch computes
    model(x).sum().backward()
    pruner.after_backward()
    whole = {k: v.clone() for k, v in pruner.method.beta.items()}
    for half in x.chunk(2):
        model(half).sum().backward()
    pruner.after_backward()
    for name, beta in pruner.method.beta.items():
        if name == "e2.1.weight":
            torch.testing.assert_close(beta, whole[name])


def test_eval_mode_collects_nothing() -> None:
    model = zoo.build("segnet").eval()
    pruner = secateur.Pruner(model, zoo.example(), method="cap")
    model(zoo.example())
    assert isinstance(pruner.method, CAP) and not pruner.method.state_dict()["sums"]
