"""ACoSP: the soft choice of k against autograd, the schedule, exactly k, cut against masked networks, resuming."""

from __future__ import annotations

import copy
import math
from typing import Any

import methods
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from own_networks import Residual, Squeezed
from torch import Tensor, nn

import secateur
from secateur.errors import MethodError
from secateur.methods.acosp import ACoSP
from secateur.methods.multiplier import covered, multipliers
from secateur.methods.soft_top_k import normalised, normalised_backward, soft_masks, temperature, thresholds
from secateur.surgery import unfoldable
from secateur.training.checkpoint import read_state, write_state

MASKS = ("before_norm", "after_norm")


class Plain(nn.Module):
    """Padded 3x3 convolutions, without a bias in front of the norms, and a head that reads with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = zoo.conv_bn(3, 12), zoo.conv_bn(12, 16), nn.Conv2d(16, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)))


class NormBranch(nn.Module):
    """Like RepVGG while it trains: the sum of a convolution's norm and of a norm of the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.bn = zoo.conv_bn(3, 12), nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.same, self.head = nn.BatchNorm2d(12), nn.Conv2d(12, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.bn(self.conv(x)) + self.same(x)).relu())


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    own = {"plain": Plain, "residual": Residual, "squeezed": Squeezed, "norm_branch": NormBranch}
    return zoo.randomise(own[name]() if name in own else zoo.NETWORKS[name]())


def acosp(pruner: secateur.Pruner) -> ACoSP:
    assert isinstance(pruner.method, ACoSP)
    return pruner.method


# the soft choice of k


@pytest.mark.parametrize("kept", [(1, 1, 2), (3, 5, 1), (5, 9, 2), (4, 8, 1)])
def test_masks_of_groups_are_those_of_the_formula_one_by_one(kept: tuple[int, ...]) -> None:
    sizes = (5, 9, 2)
    there = torch.arange(9)[None, :] < torch.tensor(sizes)[:, None]
    weights = torch.where(there, torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0)
    masks = soft_masks(weights, there, torch.tensor(kept)[:, None], 0.3)
    normed, _ = normalised(weights, there)
    cuts = thresholds(normed, there, torch.tensor(kept)[:, None])
    for row, (size, k) in enumerate(zip(sizes, kept, strict=True)):
        w = weights[row, :size]
        std, mean = torch.std_mean(w)
        x = (w - mean) / std.clamp_min(1e-3)
        x0 = torch.quantile(x, 1 - k / size)
        torch.testing.assert_close(normed[row, :size], x)
        torch.testing.assert_close(cuts[row, 0], x0)
        if k == size:
            assert masks[row, :size].tolist() == [1.0] * size
        else:
            assert int((x > x0).sum()) == k
            torch.testing.assert_close(masks[row, :size], torch.sigmoid((x - x0) / 0.3))


@pytest.mark.parametrize("spread", [1.0, 1e-4])  # the second is under the least standard deviation
def test_the_gradient_through_the_normalisation_is_autograds(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    there = torch.arange(6)[None, :] < torch.tensor([[6], [3]])
    weights = (spread * torch.randn(2, 6, dtype=torch.float64, generator=generator) * there).requires_grad_()
    gradient = torch.randn(2, 6, dtype=torch.float64, generator=generator) * there
    normed, std = normalised(weights, there)
    normed.backward(gradient)
    got = normalised_backward(gradient, normed.detach(), std.detach(), there)
    torch.testing.assert_close(got, weights.grad, rtol=1e-10, atol=1e-10)
    equal = torch.zeros(1, 4)
    assert normalised_backward(gradient[:1, :4].float(), *normalised(equal, equal == 0), equal == 0).isfinite().all()


def test_the_temperature_is_log_linear_in_the_epoch() -> None:
    assert [temperature(e, 2, 5) for e in (0, 2)] == [1.0, 1.0]
    assert [temperature(e, 2, 5) for e in (3, 4, 5, 9)] == pytest.approx([0.1, 0.01, 0.001, 0.001])


# training against a literal version, where masks are parameters and autograd does it all


def literal_masks(method: ACoSP, weights: dict[int, Tensor], tau: float) -> Tensor:
    """The factor of every unit, and 1 behind the last for channels without one."""
    out = torch.ones(method._graph.units + 1, dtype=torch.float64)
    for g, w in weights.items():
        k, units = int(method._kept[g]), list(method._graph.groups[g].units)
        if k < len(w):
            std, mean = torch.std_mean(w)
            logits = (w - mean) / torch.maximum(std, torch.tensor(1e-3))
            x0 = torch.quantile(logits, 1 - k / len(w)).detach()
            out = out.index_put((torch.tensor(units),), torch.sigmoid((logits - x0) / tau))
    return out


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["plain", "residual", "dense", "segnet", "unet", "inverted", "tied", "norm_branch"])
def test_training_is_that_of_masks_that_are_parameters(name: str, mask: str) -> None:
    model, x = build(name).double().train(), zoo.example().double()
    twin = copy.deepcopy(model)
    pruner = secateur.Pruner(model, x, ACoSP(mask=mask, sparsity=0.6, min_remaining=3))
    pruner.begin(steps=6, lr_sum=0.6, momentum=0.9, epochs=3)
    method, target = acosp(pruner), methods.labels_for(twin, x)[0]
    weights = {
        int(g): nn.Parameter(method._weights[row, : len(method._graph.groups[g])].detach().clone())
        for row, g in enumerate(method._groups)
    }
    placed: list[Tensor] = []  # the factors of this step
    for layer in method._layers:
        units = torch.from_numpy(layer.units)
        for module in layer.modules:
            twin.get_submodule(module).register_forward_hook(
                lambda m, a, out, u=units: out * placed[0][u].view(-1, *[1] * (out.dim() - 2))
            )
    optimizers = [
        torch.optim.SGD(parameters, 0.1, momentum=0.9)
        for parameters in (model.parameters(), [*twin.parameters(), *weights.values()])
    ]
    moved = 0.0
    for epoch in range(2):  # in the third the masks are hard
        for _ in range(2):
            placed[:] = [literal_masks(method, weights, temperature(epoch, 0, 2))]
            for network, optimizer in zip((model, twin), optimizers, strict=True):
                optimizer.zero_grad()
                methods.loss_of(network(x), target).backward()
            pruner.after_backward()
            for row, g in enumerate(method._groups):
                expected = weights[int(g)].grad
                got = method._weights.grad[row, : len(weights[int(g)])]
                expected = torch.zeros_like(got) if expected is None else expected  # all of this group stay
                torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
                moved = max(moved, float(got.abs().max()))
            for optimizer in optimizers:
                optimizer.step()
            pruner.after_step(0.1)
        pruner.after_epoch(epoch)
    assert moved > 1e-9
    for row, g in enumerate(method._groups):
        torch.testing.assert_close(method._weights[row, : len(weights[int(g)])], weights[int(g)], rtol=1e-6, atol=1e-8)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_in_front_of_a_batch_norm_the_masks_hardly_learn() -> None:
    """In train mode the norm undoes a factor, but for its eps, and with it the gradient."""
    sizes = []
    for mask in MASKS:
        model, x = build("plain").double().train(), zoo.example().double()
        pruner = secateur.Pruner(model, x, ACoSP(mask=mask, min_remaining=1))
        pruner.begin(steps=2, lr_sum=0.2, epochs=3)
        methods.loss_of(model(x), methods.labels_for(model, x)[0]).backward()
        pruner.after_backward()
        sizes.append(acosp(pruner)._weights.grad.abs().amax(1))
    assert (sizes[0] < sizes[1] / 100).all()


# exactly k, and what is cut equals what was masked


def trained(name: str, mask: str, x: Tensor, epochs: int = 3, **options: Any) -> tuple[nn.Module, secateur.Pruner]:
    model = build(name).train()
    pruner = secateur.Pruner(model, x, ACoSP(**{"mask": mask, "min_remaining": 3, **options}))
    pruner.begin(steps=2 * epochs, lr_sum=0.2 * epochs, epochs=epochs)
    methods.train(model, pruner, x, torch.optim.SGD(model.parameters(), 0.02), range(epochs))
    return model, pruner


def kept_channels(result: secateur.Result, pruner: secateur.Pruner) -> dict[str, int]:
    """How many units of every masked group are left, counted in the tensors of the pruned network."""
    state, counts = result.model.state_dict(), {}
    for group in result.graph.groups:
        if group.name in acosp(pruner).layers():
            whole, dim = group.members[0]
            share = sum(result.graph.tensors[t].name == whole and d == dim for t, d, _ in
                        result.graph.slots(group.units[0]))  # fmt: skip
            counts[group.name] = state[whole].shape[dim] // share
    return counts


EVERYWHERE = [
    "plain", "residual", "segnet", "unet", "dense", "squeezed", "inverted", "norms", "chunk_shuffle", "tied",
    "norm_branch",
]  # fmt: skip


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", EVERYWHERE)
def test_exactly_k_channels_of_every_masked_layer_survive(name: str, mask: str, ties: bool) -> None:
    model, x = build(name).train(), zoo.example()
    pruner = secateur.Pruner(model, x, ACoSP(mask=mask, sparsity=0.55, min_remaining=3))
    pruner.begin(steps=1, lr_sum=0.1, epochs=1)
    if ties:
        acosp(pruner)._weights.data.copy_(acosp(pruner)._there * 0.3)
    pruner.after_epoch(0)
    expected = {}
    for group in pruner.graph.groups:
        if group.name in acosp(pruner).layers():
            expected[group.name] = min(len(group), max(math.ceil(0.45 * len(group)), 3))
            gone = acosp(pruner)._gone[list(group.units)]
            if ties:  # by position
                assert gone.tolist() == [i >= expected[group.name] for i in range(len(group))]
    result = pruner.finish()
    assert kept_channels(result, pruner) == expected and result.report.ok
    assert not any("stay" in text for text in result.warnings)


def masked_and_pruned(name: str, mask: str, size: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    model, pruner = trained(name, mask, zoo.example())
    with torch.no_grad():
        masked = model.eval()(x)
        result = pruner.finish()
        assert len(result.plan)
        return masked, result.model.eval()(x)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_after_the_norm_the_pruned_network_is_the_masked_one_everywhere(name: str) -> None:
    masked, pruned = masked_and_pruned(name, "after_norm", 32)
    assert float((pruned - masked).abs().max()) <= 1e-5 * float(masked.abs().max())


@pytest.mark.parametrize("name", ["plain", "residual", "segnet", "unet", "dense", "inverted", "norm_branch"])
def test_before_the_norm_the_pruned_network_is_the_masked_one_in_the_interior(name: str) -> None:
    masked, pruned = masked_and_pruned(name, "before_norm", 128)
    error = (pruned - masked).abs() / masked.abs().max()
    assert float(error[..., 48:80, 48:80].max()) <= 1e-5
    if name in ("plain", "residual", "unet"):  # the constants were there, and zero padding is none of them
        assert float(error.max()) > 1e-4


def test_constants_are_dropped_where_they_are_not_folded() -> None:
    """The test above would pass with nothing folded, were the constants zero."""
    x = torch.randn(2, 3, 64, 64)
    model, pruner = trained("plain", "before_norm", zoo.example())
    with torch.no_grad():
        masked = model.eval()(x)
        pruner.close()
        cut = secateur.apply(model, pruner.finish().plan)(x)
    assert float((cut - masked).abs()[..., 24:40, 24:40].max()) > 1e-3 * float(masked.abs().max())


# where the masks sit


def modules_of(name: str, mask: str) -> set[str]:
    method = ACoSP(mask=mask)
    method.start(secateur.trace(build(name), zoo.example()))
    return {module for layer in method._layers for module in layer.modules}


def test_masks_sit_where_they_were_asked_to() -> None:
    assert modules_of("plain", "before_norm") == {"a.0", "b.0"}
    assert modules_of("plain", "after_norm") == {"a.1", "b.1"}
    assert modules_of("norm_branch", "before_norm") == {"stem.0", "conv"}
    assert modules_of("norm_branch", "after_norm") == {"stem.1", "bn", "same"}


def test_masks_sit_behind_the_norm_where_a_constant_could_not_be_carried_over() -> None:
    # in front of unpoolings: d2 and mid, and e1 and e2, which share their masks
    assert modules_of("segnet", "before_norm") == {"e1.1", "d2.1", "e2.1", "mid.1", "d1.0"}
    # in front of a transposed convolution with a stride
    assert modules_of("unet", "before_norm") == {"d1.0", "d2.0", "d3.1", "up2", "u2.0", "u1.0"}
    # in front of a product with a map that is no constant
    assert modules_of("attention", "before_norm") == {"a.0", "b.1"}
    # in front of convolutions without a bias and without a norm: behind all norms that channels come to
    convolutions = {"stem", *(f"convs.{i}" for i in range(4))}
    assert modules_of("dense", "before_norm") == {*convolutions, *(f"norms.{i}" for i in range(4)), "last"}


def test_what_can_not_be_folded_is_told_with_the_reason() -> None:
    graph = secateur.trace(build("unet"), zoo.example())
    units = np.zeros(graph.units, bool)
    for name in ("d2.0", "d3.0"):
        units[list(graph.find(name)[0].units[1:])] = True
    told = unfoldable(graph, units)
    assert set(told) == set(graph.find("d3.0")[0].units[1:])
    assert all("transposed with a stride" in why for why in told.values())
    assert not unfoldable(graph, units, zero={"d3.1.weight", "d3.1.bias"})


def test_heads_are_never_masked() -> None:
    """Neither the main nor the auxiliary one, which runs in train mode only."""
    for mask in MASKS:
        model = build("pyramid").train()
        pruner = secateur.Pruner(model, zoo.example(), ACoSP(mask=mask, min_remaining=2))
        assert {"final.0", "aux.0"} <= set(acosp(pruner).layers())
        for head in ("head", "aux.4"):
            assert not model.get_submodule(head)._forward_hooks and head not in acosp(pruner).layers()
        pruner.begin(steps=1, lr_sum=0.1, epochs=1)
        pruner.after_epoch(0)
        result = pruner.finish()
        assert result.model.head.out_channels == result.model.aux[-1].out_channels == 5
        assert (result.model.head.in_channels, result.model.aux[-1].in_channels) == (5, 3)


def test_every_masked_layer_is_covered_and_nothing_else_is_chosen() -> None:
    for name in zoo.NETWORKS:
        graph = secateur.trace(build(name), zoo.example())
        method = ACoSP(min_remaining=2)
        try:
            method.start(graph)
        except MethodError:
            assert not covered(graph, multipliers(graph)).any()
            continue
        finite = np.isfinite(method.scores(graph))
        assert (finite <= graph.prunable).all() and finite.any()
        method.stop()


def test_a_network_without_anything_to_mask_is_refused() -> None:
    with pytest.raises(MethodError, match="can be masked"):
        secateur.Pruner(nn.Sequential(nn.Conv2d(3, 5, 1)), zoo.example(), method="acosp")


# how much


def test_a_budget_wins_over_the_least_number_of_channels() -> None:
    model, x = build("plain").train(), zoo.example()
    pruner = secateur.Pruner(model, x, method="acosp")
    assert [layer["kept"] for layer in acosp(pruner).layers().values()] == [8, 8]
    pruner.aim(pruning_ratio=0.75)
    assert [layer["kept"] for layer in acosp(pruner).layers().values()] == [3, 4]
    pruner.begin(steps=1, lr_sum=0.1, epochs=1)
    pruner.after_epoch(0)
    result = pruner.finish()
    assert (result.model.a[0].out_channels, result.model.b[0].out_channels) == (3, 4)


def test_groups_that_keep_all_have_no_mask() -> None:
    model, x = build("plain").train(), zoo.example()
    plain = model(x)
    pruner = secateur.Pruner(model, x, ACoSP(min_remaining=16))
    assert torch.equal(model(x), plain)
    assert acosp(pruner).log() == {"temperature": 1.0, "chosen": 1.0, "pruned": 0.0, "undecided": 0.0}
    pruner.begin(steps=1, lr_sum=0.1, epochs=1)
    methods.train(model, pruner, x, torch.optim.SGD(model.parameters(), 0.1), range(1))
    assert not acosp(pruner).decided(pruner.graph).any()


def test_while_the_masks_are_soft_an_amount_can_be_given_to_finish() -> None:
    model, x = build("unet").train(), zoo.example()
    pruner = secateur.Pruner(model, x, ACoSP(min_remaining=2))
    pruner.begin(steps=4, lr_sum=0.4, epochs=6)
    methods.train(model, pruner, x, torch.optim.SGD(model.parameters(), 0.1), range(2))
    with pytest.raises(MethodError, match="still soft, 2 epochs"):
        pruner.finish()
    lowest = {g.name: g.units[int(np.argmin(acosp(pruner).scores(pruner.graph)[list(g.units)]))]
              for g in pruner.graph.groups if g.name in acosp(pruner).layers()}  # fmt: skip
    result = pruner.finish(pruning_ratio=0.5, scope="group")
    assert result.report.ok and result.budget["achieved"]["pruning_ratio"] == pytest.approx(0.5, abs=0.05)
    gone = secateur.plan.plan.units_of(result.graph, result.plan)
    assert all(gone[unit] for unit in lowest.values())


@pytest.mark.parametrize("mask", MASKS)
def test_closed_while_soft_the_network_computes_the_same_without_masks(mask: str) -> None:
    model, x = build("unet").double().eval(), zoo.example().double()
    pruner = secateur.Pruner(model, x, ACoSP(mask=mask, min_remaining=2))
    soft = model(x)
    pruner.close()
    assert not any(m._forward_hooks for m in model.modules())
    torch.testing.assert_close(model(x), soft, rtol=1e-10, atol=1e-10)


# the schedule


@pytest.mark.parametrize(
    ("epochs", "options", "hard"),
    [
        (1, {}, 1),
        (2, {}, 1),
        (3, {}, 2),
        (6, {}, 4),
        (450, {}, 300),  # the paper's
        (4, {"end_epoch": 3}, 3),
        (3, {"end_epoch": 100}, 3),  # at the latest at the end of the last
        (4, {"start_epoch": 2, "end_epoch": 4}, 4),
    ],
)
def test_masks_harden_in_time(epochs: int, options: dict[str, int], hard: int) -> None:
    pruner = secateur.Pruner(build("plain"), zoo.example(), ACoSP(min_remaining=2, **options))
    pruner.begin(steps=epochs, lr_sum=1.0, epochs=epochs)
    taus = []
    for epoch in range(epochs):
        taus.append(pruner.log()["temperature"])
        decided = {layer["undecided"] == 0 for layer in acosp(pruner).layers().values()}
        assert acosp(pruner)._hard == (epoch >= hard) and (epoch < hard or decided == {True})
        pruner.after_epoch(epoch)
    start = options.get("start_epoch", 0)
    assert taus[: start + 1] == [1.0] * (start + 1) and taus == sorted(taus, reverse=True)
    assert acosp(pruner)._hard and pruner.log()["temperature"] == pytest.approx(0.001)
    if epochs == 450:
        assert taus[150] == pytest.approx(0.001**0.5)
    pruner.finish()


def test_the_number_of_epochs_has_to_be_known() -> None:
    model, x = build("plain").train(), zoo.example()
    pruner = secateur.Pruner(model, x, method="acosp")
    methods.loss_of(model(x), methods.labels_for(model, x)[0]).backward()
    with pytest.raises(MethodError, match=r"epochs=\.\.\..*end_epoch"):
        pruner.after_backward()
    pruner = secateur.Pruner(build("plain"), x, method="acosp", end_epoch=2)
    for epoch in range(2):
        assert not acosp(pruner)._hard
        pruner.after_epoch(epoch)
    assert acosp(pruner)._hard


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": "after"}, "mask 'after'.*after_norm"),
        ({"sparsity": 1.5}, "sparsity 1.5"),
        ({"min_remaining": 0}, "min_remaining 0"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"start_epoch": 3, "end_epoch": 3}, "start_epoch 3 is not before"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(MethodError, match=words):
        ACoSP(**options)


def test_a_start_behind_the_end_of_the_training_is_refused_at_once() -> None:
    pruner = secateur.Pruner(build("plain"), zoo.example(), method="acosp", start_epoch=4)
    with pytest.raises(MethodError, match="start_epoch 4 is not before the end of the pruning, epoch 2"):
        pruner.begin(steps=3, lr_sum=1.0, epochs=3)


def test_masks_that_were_undecided_when_they_hardened_are_warned_about() -> None:
    pruner = trained("plain", "after_norm", zoo.example(), epochs=1)[1]
    assert any("of the masks were between" in text for text in pruner.finish().warnings)


def test_the_log_tells_of_all_and_layers_of_each() -> None:
    pruner = trained("unet", "after_norm", zoo.example(), epochs=2)[1]
    log, layers = pruner.log(), acosp(pruner).layers()
    assert set(log) == {"temperature", "chosen", "pruned", "undecided"}
    assert log["chosen"] + log["pruned"] + log["undecided"] == pytest.approx(1.0)
    for name, layer in layers.items():
        assert layer["channels"] == len(pruner.graph.find(name)[0])
        assert layer["chosen"] == pytest.approx(layer["kept"] / layer["channels"]) and layer["undecided"] == 0
    channels = sum(layer["channels"] for layer in layers.values())
    assert log["chosen"] == pytest.approx(sum(layer["kept"] for layer in layers.values()) / channels)


def test_the_first_values_hang_on_the_seed() -> None:
    graph = secateur.trace(build("plain"), zoo.example())
    scores = []
    for seed in (0, 0, 1):
        method = ACoSP(seed=seed)
        method.start(graph)
        scores.append(method.scores(graph))
        method.stop()
    assert (scores[0] == scores[1]).all() and (scores[0] != scores[2]).any()


# an interruption


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("told", [True, False], ids=["after_step", "without after_step"])
@pytest.mark.parametrize("stop", [1, 3, 5, 7])  # steps of two an epoch; the masks are hard from the fourth on
def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Any, stop: int, told: bool, adaptive: bool) -> None:
    x = zoo.example()
    target = methods.labels_for(build("segnet"), x)[0]

    def fresh() -> tuple[nn.Module, secateur.Pruner, torch.optim.Optimizer]:
        model = build("segnet").train()
        pruner = secateur.Pruner(model, x, ACoSP(mask="after_norm", sparsity=0.6, min_remaining=2))
        pruner.begin(steps=8, lr_sum=0.4, momentum=0.0 if adaptive else 0.9, adaptive=adaptive, epochs=4)
        kind = torch.optim.Adam if adaptive else torch.optim.SGD
        return model, pruner, kind(model.parameters(), 0.05)

    def steps(model: nn.Module, pruner: secateur.Pruner, optimizer: torch.optim.Optimizer, which: range) -> None:
        for step in which:
            optimizer.zero_grad()
            methods.loss_of(model(x), target).backward()
            pruner.after_backward()
            optimizer.step()
            if told:
                pruner.after_step(0.05)
            if step % 2:
                pruner.after_epoch(step // 2)

    model, pruner, optimizer = fresh()
    steps(model, pruner, optimizer, range(8))
    whole = pruner.finish()

    model, pruner, optimizer = fresh()
    steps(model, pruner, optimizer, range(stop))
    state = {"model": dict(model.state_dict()), "pruner": pruner.state_dict(), "optimizer": optimizer.state_dict()}
    write_state(tmp_path / "state.safetensors", state)
    assert acosp(pruner)._hard == (stop > 6)
    state = read_state(tmp_path / "state.safetensors")
    model, pruner, optimizer = fresh()
    model.load_state_dict(state["model"])
    pruner.load_state_dict(state["pruner"])
    optimizer.load_state_dict(state["optimizer"])
    steps(model, pruner, optimizer, range(stop, 8))
    again = pruner.finish()
    assert whole.plan == again.plan and len(whole.plan)
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_hard_masks_is_enough_to_cut() -> None:
    """As the pipeline does: another process, which was told of no schedule, cuts what was trained."""
    x = zoo.example()
    model, pruner = trained("unet", "before_norm", x)
    state, weights = pruner.state_dict(), copy.deepcopy(model.state_dict())
    whole = pruner.finish()
    model = build("unet")
    model.load_state_dict(weights)
    pruner = secateur.Pruner(model, x, ACoSP(min_remaining=3))
    pruner.load_state_dict(state)
    again = pruner.finish()
    assert whole.plan == again.plan
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_training_with_masks_keeps_no_activation_more() -> None:
    model, x = build("unet").train(), zoo.example(8)

    def saved() -> int:
        storages = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = F.softplus(model(x)).sum()
        assert output.requires_grad
        return sum(storages.values())

    before = saved()
    pruner = secateur.Pruner(model, x, ACoSP(min_remaining=2))
    layers = acosp(pruner)._layers
    small = sum(layer.factor.nbytes + sum(p.nbytes for p in layer.parameters) for layer in layers)
    assert before < saved() <= before + small < 1.2 * before  # of a network as narrow as this


def test_tracing_a_cost_with_masks_attached_is_that_of_the_network() -> None:
    model, x = build("unet"), zoo.example()
    cost = secateur.cost(model, x)
    pruner = secateur.Pruner(model, x, method="acosp")
    assert secateur.cost(model, x) == cost
    pruner.close()
