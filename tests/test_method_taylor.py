"""Taylor against its formulas written out with hooks and autograd, where it can be read, and where it can't."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import methods
import numpy as np
import pytest
import torch
import zoo
from own_networks import Residual, Squeezed
from torch import Tensor, nn

import secateur
from secateur.errors import MethodError
from secateur.graph import mode_of
from secateur.methods.contributions import from_gradients, readings, tapped
from secateur.methods.sites import sites_of

Batches = list[tuple[Tensor, Tensor]]
OWN = {"residual": Residual, "squeezed": Squeezed}
NAMES = ["plain", "resnet_bottleneck", "unet", "segnet", "dense", "inverted", "residual", "squeezed"]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return zoo.randomise(OWN[name]()).double().eval() if name in OWN else zoo.build(name).double()


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """Of label maps, or of images that have one label: the zoo's residual networks are classifiers."""
    return methods.loss_of(output, target) if output.dim() == 4 else (output * target.mean()).square().mean()


def batches(model: nn.Module, count: int = 2) -> Batches:
    out = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3, 3, 16, 20, dtype=torch.float64, generator=generator)
        classes = methods.logits_of(model(x)).shape[1] if not model.training else 5
        target = torch.randint(0, classes, (3, 16, 20), generator=generator)
        out.append((x, target if methods.logits_of(model.eval()(x)).dim() == 4 else target.double()))
    return out


def kept_outputs(model: nn.Module, names: set[str], x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The literal formula: keep every such module's output and its gradient; mean over batch and space of a dL/da."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            output.retain_grad()
            kept[name] = output
            return output.clone()  # what follows may write in place

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name in names]
    loss_of(model(x), target).backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    products = {name: a.detach() * a.grad for name, a in kept.items()}
    return {name: p.movedim(-1 if p.dim() == 2 else 1, 0).flatten(1).mean(1) for name, p in products.items()}


def activation_times_gradient(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Of every convolution and linear layer."""
    return kept_outputs(model, {name.removesuffix(".weight") for name in filter_dims(model)}, x, target)


def gathered(graph: secateur.Graph, terms: dict[str, Tensor], dims: dict[str, int]) -> list[float]:
    """The sum over all slots of a unit in the tensors named; +inf for what must stay."""
    out = []
    for unit in range(graph.units):
        slots = [(graph.tensors[t].name, dim, index) for t, dim, index in graph.slots(unit)]
        mine = [float(terms[name][index]) for name, dim, index in slots if dims.get(name) == dim]
        out.append(sum(mine) if mine and graph.prunable[unit] else np.inf)
    return out


def filter_dims(model: nn.Module) -> dict[str, int]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    modules = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    return {f"{name}.weight": int(isinstance(m, nn.ConvTranspose2d)) for name, m in modules.items()}


# a pass of its own


@pytest.mark.parametrize("name", NAMES)
def test_the_score_is_the_mean_of_activation_times_gradient(name: str) -> None:
    model = network(name)
    data = batches(model)
    graph = secateur.trace(model, data[0][0][:1])
    got = secateur.score(graph, "taylor", data=data, loss=loss_of, normalise=False)
    sums: dict[str, Tensor] = {}
    for x, target in data:
        for module, mean in activation_times_gradient(model, x, target).items():
            sums[f"{module}.weight"] = sums.get(f"{module}.weight", 0) + mean.abs()
    assert got.tolist() == pytest.approx(gathered(graph, sums, filter_dims(model)), rel=1e-9, abs=1e-15)


def test_one_batch_of_two_when_one_is_asked_for() -> None:
    model = network("unet")
    data = batches(model)
    graph = secateur.trace(model, data[0][0][:1])
    one = secateur.score(graph, "taylor", data=data[:1], loss=loss_of)
    assert (secateur.score(graph, "taylor", data=data, loss=loss_of, batches=1) == one).all()
    assert (secateur.score(graph, "taylor", data=data, loss=loss_of) != one)[graph.prunable].any()


def test_the_scores_of_a_group_have_length_one() -> None:
    model = network("segnet")
    data = batches(model)
    graph = secateur.trace(model, data[0][0][:1])
    raw = secateur.score(graph, "taylor", data=data, loss=loss_of, normalise=False)
    scores = secateur.score(graph, "taylor", data=data, loss=loss_of)
    for group in graph.groups:
        units = list(group.units)
        if graph.prunable[units[0]]:
            assert np.linalg.norm(scores[units]) == pytest.approx(1)
            assert (np.argsort(scores[units]) == np.argsort(raw[units])).all()


@pytest.mark.parametrize("name", ["plain", "segnet", "dense", "residual"])
def test_the_form_at_scales_is_that_of_2019(name: str) -> None:
    model = network(name)
    data = batches(model)
    graph = secateur.trace(model, data[0][0][:1])
    got = secateur.score(graph, "taylor", data=data, loss=loss_of, form="scales")
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    sums: dict[str, Tensor] = {}
    for x, target in data:
        loss_of(model(x), target).backward()
        for module, norm in norms.items():
            term = (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).detach() ** 2
            sums[f"{module}.weight"] = sums.get(f"{module}.weight", 0) + term
        model.zero_grad()
    expected = gathered(graph, sums, dict.fromkeys(sums, 0))
    assert got.tolist() == pytest.approx(expected, rel=1e-9)


def test_the_losses_of_several_tasks_count_as_their_sum() -> None:
    model = network("plain")
    data = batches(model)
    graph = secateur.trace(model, data[0][0][:1])

    def tasks(output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"labels": loss_of(output, target), "size": output.square().mean().reshape(1)}

    def together(output: Tensor, target: Tensor) -> Tensor:
        return loss_of(output, target) + output.square().mean()

    a = secateur.score(graph, "taylor", data=data, loss=tasks)
    assert a.tolist() == pytest.approx(secateur.score(graph, "taylor", data=data, loss=together).tolist())


@pytest.mark.parametrize("form", ["activation", "scales"])
def test_a_pass_leaves_no_trace(form: str) -> None:
    """Not even in a network with frozen layers, gradients of its own and modules in different modes."""
    model = network("segnet").train()
    model.e1.eval()
    for parameter in model.mid.parameters():
        parameter.requires_grad_(False)
    data = batches(model)
    model.train()
    model.e1.eval()
    loss_of(model(data[0][0]), data[0][1]).backward()

    def everything() -> tuple[object, ...]:
        return (
            [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
            [t.clone() for t in model.state_dict().values()],
            [m.training for m in model.modules()],
            [len(m._forward_hooks) for m in model.modules()],
            torch.get_rng_state(),
        )

    def same(a: object, b: object) -> bool:
        if isinstance(a, (list, tuple)):
            return all(same(x, y) for x, y in zip(a, b, strict=True))
        return torch.equal(a, b) if isinstance(a, Tensor) else a == b

    graph = secateur.trace(model, data[0][0][:1])
    before = everything()
    scores = secateur.score(graph, "taylor", data=data, loss=loss_of, form=form)
    assert same(before, everything())
    frozen = graph.find("mid.1")[0].units
    assert (scores[list(frozen)] > 0).all()  # scored like any other


# the gradients of a training


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradients_of_weights_tell_the_sum_of_activation_times_gradient(name: str, training: bool) -> None:
    """A convolution is linear in weight and bias: sum a da = sum over the filter w dw + b db, in float64 exactly."""
    model = network(name)
    (x, target), *_ = batches(model)
    graph = secateur.trace(model, x[:1])
    with mode_of(model, training):
        means = activation_times_gradient(model, x, target)
        loss_of(model(x), target).backward()
    for site in sites_of(graph):
        module = model.get_submodule(site.module)
        sums = from_gradients(module.weight, module.bias, site.filters)
        expected = means[site.module] * len(x) * site.positions
        torch.testing.assert_close(sums, expected, rtol=1e-8, atol=1e-12)


def test_in_front_of_a_batch_norm_in_train_mode_the_formula_says_nothing() -> None:
    """The norm undoes any scaling of its input, but for its eps; without that, rounding is left."""
    model = network("segnet")
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-14
    (x, target), *_ = batches(model)
    in_eval = activation_times_gradient(model, x, target)
    in_train = activation_times_gradient(model.train(), x, target)
    for name in in_eval:
        if name != "head":
            assert in_train[name].abs().max() < 1e-8 * in_eval[name].abs().max()


def train_once(model: nn.Module, data: Iterable[tuple[Tensor, Tensor]], pruner: secateur.Pruner) -> None:
    for x, target in data:
        model.zero_grad()
        loss_of(model(x), target).backward()
        pruner.after_backward()


def behind_every_layer(model: nn.Module, graph: secateur.Graph, data: Batches) -> list[float]:
    """What is accumulated while training, written out: behind every batch norm, the sum of y dy kept by hand; at every
    convolution that no batch norm follows directly, that of a da."""
    followed = {site.module for site in sites_of(graph) if site.norm}
    names = {name.removesuffix(".weight") for name in filter_dims(model)} - followed
    names |= {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    sums: dict[str, Tensor] = {}
    for x, target in data:
        for name, mean in kept_outputs(model, names, x, target).items():
            sums[f"{name}.weight"] = sums.get(f"{name}.weight", 0) + len(x) * mean.abs()
    dims = {name: filter_dims(model).get(name, 0) for name in sums}
    return gathered(graph, sums, dims)


@pytest.mark.parametrize("name", NAMES)
def test_while_training_it_is_read_behind_the_batch_norms(name: str) -> None:
    model = network(name)
    data = batches(model)
    pruner = secateur.Pruner(model, data[0][0][:1], method="taylor", normalise=False)
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    train_once(model, data, pruner)
    got = pruner.method.scores(pruner.graph)
    model.load_state_dict(state)
    expected = behind_every_layer(model, pruner.graph, data)
    # absolute: what no batch norm alone reads but several do (dense) is noise in front of them
    assert got.tolist() == pytest.approx(expected, rel=1e-8, abs=1e-12)
    pruner.close()


def test_the_form_at_scales_while_training() -> None:
    model = network("plain").train()
    data = batches(model)
    model.train()
    pruner = secateur.Pruner(model, data[0][0][:1], method="taylor", form="scales")
    norm, expected = model.a[1], torch.zeros(8, dtype=torch.float64)
    for x, target in data:
        train_once(model, [(x, target)], pruner)
        expected += (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).detach() ** 2
    units = list(pruner.graph.find("a.1")[0].units)
    assert pruner.method.scores(pruner.graph)[units].tolist() == pytest.approx(expected.tolist())


def test_the_last_epoch_counts() -> None:
    model = network("plain")
    first, second = batches(model)
    model.train()
    pruner = secateur.Pruner(model, first[0][:1], method="taylor")
    train_once(model, [first], pruner)
    pruner.after_epoch(0)
    of_first = pruner.method.scores(pruner.graph)  # until the next step
    train_once(model, [second], pruner)
    both_epochs = pruner.method.scores(pruner.graph)
    fresh = secateur.Pruner(model, first[0][:1], method="taylor")
    train_once(model, [second], fresh)
    assert both_epochs.tolist() == pytest.approx(fresh.method.scores(fresh.graph).tolist(), rel=1e-6)
    assert (of_first != both_epochs)[pruner.graph.prunable].any()


def test_a_step_that_a_gradient_scaler_skips_does_not_count() -> None:
    model = network("plain")
    data = batches(model)
    model.train()
    pruner = secateur.Pruner(model, data[0][0][:1], method="taylor")
    train_once(model, data, pruner)
    before = pruner.method.scores(pruner.graph)
    model.a[1].weight.grad[0] = torch.inf
    pruner.after_backward()
    assert (pruner.method.scores(pruner.graph) == before).all()


def test_frozen_layers_stay_where_the_training_says_nothing_of_them() -> None:
    model = network("plain")
    data = batches(model)
    for parameter in model.a.parameters():
        parameter.requires_grad_(False)
    pruner = secateur.Pruner(model.train(), data[0][0][:1], method="taylor")
    train_once(model, data, pruner)
    scores = pruner.method.scores(pruner.graph)
    assert np.isinf(scores[list(pruner.graph.find("a.0")[0].units)]).all()
    assert np.isfinite(scores[list(pruner.graph.find("b.0")[0].units)]).all()


# norms that take their statistics from the image itself


def with_norms(norm: str) -> nn.Module:
    torch.manual_seed(0)
    kinds = {
        "instance": lambda: nn.InstanceNorm2d(8, affine=True),
        "bare instance": lambda: nn.InstanceNorm2d(8),
        "batch without statistics": lambda: nn.BatchNorm2d(8, track_running_stats=False),
        "bare batch": lambda: nn.BatchNorm2d(8, affine=False),
    }
    conv, make = nn.Conv2d, kinds[norm]
    layers = [conv(3, 8, 3), make(), nn.ReLU(), conv(8, 8, 3), make(), nn.ReLU(), conv(8, 5, 1)]
    model = zoo.randomise(nn.Sequential(*layers)).double().eval()
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-14  # a norm undoes any scaling of its input but for this
    return model


@pytest.mark.parametrize("norm", ["instance", "bare instance", "batch without statistics"])
def test_a_norm_by_the_images_own_statistics_is_read_behind_it(norm: str) -> None:
    model = with_norms(norm)
    data = [(x, y[:, 2:-2, 2:-2]) for x, y in batches(model)]
    graph = secateur.trace(model, data[0][0][:1])
    with tapped(model, readings(graph)) as taps:
        means = taps.means(loss_of(model(data[0][0]), data[0][1]))
    assert means["3"].abs().max() < 1e-8 * means["4"].abs().max()  # in front of it: noise
    scores = secateur.score(graph, "taylor", data=data[:1], loss=loss_of, normalise=False)
    for layer in ("1", "4"):
        units = list(graph.find(str(int(layer) - 1))[0].units)
        assert scores[units].tolist() == pytest.approx(means[layer].abs().tolist(), rel=1e-6)


def test_while_training_too_if_it_has_scales() -> None:
    model = with_norms("instance")
    data = [(x, y[:, 2:-2, 2:-2]) for x, y in batches(model)]
    pruner = secateur.Pruner(model, data[0][0][:1], method="taylor", normalise=False)
    train_once(model.train(), data[:1], pruner)
    norm = model[4]
    expected = (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).abs() / (12 * 16)
    units = list(pruner.graph.find("3")[0].units)
    assert pruner.method.scores(pruner.graph)[units].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    for bare in ("bare instance", "bare batch"):
        with pytest.raises(MethodError, match=r"norms without scales \(1, 4\).*give method taylor data="):
            secateur.Pruner(with_norms(bare), data[0][0][:1], method="taylor")
    data = [(x, y[:, 2:-2, 2:-2]) for x, y in batches(model)]
    graph = secateur.trace(with_norms("bare batch"), data[0][0][:1])
    assert np.isfinite(secateur.score(graph, "taylor", data=data, loss=loss_of)[graph.prunable]).all()


def test_one_norm_of_several_layers_by_their_own_statistics_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 5, 1)
            self.norm = nn.InstanceNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.b(self.norm(self.a(x)).relu())).relu())

    data = [(torch.randn(2, 3, 12, 12), torch.zeros(2, 8, 8, dtype=torch.long))]
    graph = secateur.trace(Shared(), data[0][0])
    with pytest.raises(MethodError, match="norm normalises the outputs of several layers"):
        secateur.score(graph, "taylor", data=data, loss=loss_of)


# what it is told


def test_without_data_or_training_both_ways_out_are_named() -> None:
    model, x = network("plain"), zoo.example().double()
    with pytest.raises(MethodError, match=r"give data= .* and loss= .*after_backward\(\)"):
        secateur.prune(model, x, method="taylor", pruning_ratio=0.5)
    with pytest.raises(MethodError, match="give loss="):
        secateur.prune(model, x, method="taylor", pruning_ratio=0.5, data=batches(model))
    with pytest.raises(MethodError, match="give data="):
        secateur.prune(model, x, method="taylor", pruning_ratio=0.5, loss=loss_of)


def test_wrong_options_and_losses_are_named() -> None:
    model = network("plain")
    x, data = zoo.example().double(), batches(model)
    for options, message in (
        ({"form": "scale"}, "form 'scale'; .*did you mean 'scales'"),
        ({"reduce": "summ"}, "reduce 'summ'"),
        ({"batches": 0}, "batches 0"),
    ):
        with pytest.raises(MethodError, match=message):
            secateur.Pruner(model, x, method="taylor", **options)
    with pytest.raises(MethodError, match="hangs on nothing"):
        secateur.score(secateur.trace(model, x), "taylor", data=data, loss=lambda o, t: o.detach().mean())
    no_norm = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)).double()
    with pytest.raises(MethodError, match="no batch norm"):
        secateur.Pruner(no_norm, x, method="taylor", form="scales")


def test_prune_in_one_call_with_data() -> None:
    model = network("unet")
    data = batches(model)
    result = secateur.prune(
        model, data[0][0][:1], method="taylor", budget={"params": 0.5}, data=data, loss=loss_of, batches=1
    )
    assert result.report.ok and result.after.params <= 0.5 * result.before.params
