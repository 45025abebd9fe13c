"""Nasty networks: each is pruned exactly, or what can't be is pinned with the reason; the oracle is this file's own."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
from pathlib import Path
from typing import Any

import nasty
import nasty_across  # noqa: F401
import nasty_attention  # noqa: F401
import nasty_channels  # noqa: F401
import nasty_convs  # noqa: F401
import nasty_gates  # noqa: F401
import nasty_layers  # noqa: F401
import nasty_models  # noqa: F401
import nasty_modules  # noqa: F401
import nasty_norms  # noqa: F401
import nasty_odd  # noqa: F401
import nasty_python  # noqa: F401
import nasty_wholes  # noqa: F401
import numpy as np
import pytest
import torch
from nasty import CASES, Case
from torch import Tensor, nn
from torch.fx import GraphModule

import secateur
from secateur.errors import NothingPrunableError
from secateur.plan import plan_of


@functools.cache
def pruned(name: str) -> secateur.Result:
    """Pruned by half; the network itself must be left as it was."""
    model, inputs = nasty.build(name), CASES[name].inputs(1, 2)
    before, modes = state(model), [module.training for module in nn.Module.modules(model)]
    before = {key: tensor.clone() for key, tensor in before.items()}
    result = secateur.prune(model, inputs, method="random", pruning_ratio=0.5, scope="group")
    assert all(torch.equal(before[key], tensor) for key, tensor in state(model).items())
    assert modes == [module.training for module in nn.Module.modules(model)]
    return result


def state(model: nn.Module) -> dict[str, Tensor]:
    return dict([*nn.Module.named_parameters(model), *nn.Module.named_buffers(model)])


def silent(name: str, plan: secateur.Plan) -> nn.Module:
    """The network with zeros in all that the plan removes."""
    model = nasty.build(name)
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))
    }  # fmt: skip
    with torch.no_grad():
        for key, dims in plan.removed.items():
            for dim, indices in dims.items():
                tensors[key].index_fill_(dim, torch.tensor(indices), 0)
    return model


def outputs(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if dataclasses.is_dataclass(tree):
        tree = vars(tree)
    if isinstance(tree, dict):
        tree = [tree[key] for key in sorted(tree)]
    return [t for item in tree for t in outputs(item)] if isinstance(tree, (list, tuple)) else []


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    torch.manual_seed(3)
    inputs = copy.deepcopy(inputs)
    if isinstance(inputs, dict):
        return outputs(model(**inputs))
    return outputs(model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs))


def assert_close(got: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    assert got.shape == wanted.shape and got.dtype == wanted.dtype, what
    if not wanted.is_floating_point() and not wanted.is_complex():
        assert torch.equal(got, wanted), what
        return
    finite = torch.isfinite(wanted)
    assert torch.equal(torch.isfinite(got), finite), f"{what}: not finite elsewhere"
    if finite.any():
        error, scale = (got - wanted)[finite].abs().max().item(), wanted[finite].abs().max().item()
        assert error <= tolerance * max(scale, 1e-3), f"{what}: {error:.1e} of {scale:.1e}"


def compare(name: str, plan: secateur.Plan, small: nn.Module) -> None:
    """The oracle: outputs, gradients, in eval and in train mode, on inputs that tracing did not see."""
    tolerance = 1e-10 if CASES[name].float64 else 1e-4
    for training in CASES[name].modes:
        networks = copy_of(small, name).train(training), silent(name, plan).train(training)
        x = CASES[name].inputs(9, 3)
        got, wanted = (run(network, x) for network in networks)
        mode = "train" if training else "eval"
        assert len(got) == len(wanted) > 0
        for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
            assert_close(a, b, tolerance, f"output {i} in {mode} mode")
        if not differentiated(networks[1], wanted):  # written in place where autograd needs the values
            continue
        assert differentiated(networks[0], got)
        large = dict(networks[1].named_parameters())
        for key, parameter in networks[0].named_parameters():
            gradient = large[key].grad
            assert (parameter.grad is None) == (gradient is None), f"gradient of {key} in {mode} mode"
            if gradient is None or not gradient.isfinite().all():
                continue
            for dim in plan.removed.get(key, {}):
                gradient = gradient.index_select(dim, torch.as_tensor(plan.kept(key, dim)))
            assert_close(parameter.grad, gradient, 100 * tolerance, f"gradient of {key} in {mode} mode")


def differentiated(network: nn.Module, values: list[Tensor]) -> bool:
    """Gradients of the sum of all outputs' mean squares; False if autograd refuses."""
    network.zero_grad()
    loss = sum(v.abs().square().mean() for v in values if v.requires_grad and v.numel())
    try:
        if isinstance(loss, Tensor):
            loss.backward()
    except RuntimeError:
        return False
    return True


def copy_of(small: nn.Module, name: str) -> nn.Module:
    try:
        return copy.deepcopy(small)
    except Exception:
        with pytest.raises(Exception):  # noqa: B017 - only what the network itself refuses
            copy.deepcopy(nasty.build(name))
        return small


names = pytest.mark.parametrize("name", [n for n, case in CASES.items() if not case.refused and not case.small])


@names
def test_outputs_and_gradients_are_those_of_the_silenced_network(name: str) -> None:
    result = pruned(name)
    compare(name, result.plan, result.model)
    assert CASES[name].later or not [text for text in result.warnings if "failed verification" in text]


@names
def test_what_can_go_exactly_goes_and_the_rest_has_its_reason(name: str) -> None:
    result, case = pruned(name), CASES[name]
    reasons = {}
    for group in result.graph.groups:
        reasons.update({member: group.pinned for member in group.members if member not in reasons})
    for tensor in case.free:
        key, _, dim = tensor.partition(":")
        assert result.plan.removed.get(key, {}).get(int(dim or 0)), f"{tensor}: {reasons.get((key, int(dim or 0)))}"
    for tensor, word in case.pinned.items():
        key, _, dim = tensor.partition(":")
        assert word in (reasons[key, int(dim or 0)] or "prunable"), reasons[key, int(dim or 0)]
    assert result.graph.prunable.mean() >= case.share


@names
def test_any_other_plan_is_exact_too(name: str) -> None:
    """Another share of every group, without the verification's help."""
    if not CASES[name].later:
        check_another_plan(name, pruned(name).graph)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.small and not case.later])
def test_operators_between_two_convolutions(name: str) -> None:
    graph = secateur.trace(nasty.build(name), CASES[name].inputs(1, 2))
    reasons = {member: group.pinned for group in graph.groups for member in group.members}
    assert [reasons[tensor, 0] for tensor in CASES[name].free] == [None] * len(CASES[name].free)
    check_another_plan(name, graph)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.small and case.later])
def test_what_only_the_verification_finds(name: str) -> None:
    result = pruned(name)
    assert any("failed verification" in text for text in result.warnings)
    compare(name, result.plan, result.model)


def check_another_plan(name: str, graph: secateur.Graph) -> None:
    generator, removed = np.random.default_rng(7), np.zeros(graph.units, dtype=bool)
    for group in graph.groups:
        if group.pinned is None and len(group) > 1:
            removed[generator.choice(group.units, generator.integers(0, len(group)), replace=False)] = True
    plan = plan_of(graph, removed)
    compare(name, plan, secateur.apply(graph.model, plan))


@names
def test_the_result_is_a_network_like_any_other(name: str, tmp_path: Path) -> None:
    result, x = pruned(name), CASES[name].inputs(4, 2)
    wanted = run(copy_of(result.model, name).eval(), x)
    copies = [copy_of(result.model, name).eval()]
    if picklable(nasty.build(name)):
        copies.append(pickle.loads(pickle.dumps(result.model)).eval())
    secateur.save(tmp_path / "small.safetensors", result.model, result.plan)
    copies.append(secateur.load(tmp_path / "small.safetensors", nasty.build(name, shift=0.5)).eval())
    for other in copies:
        for a, b in zip(run(other, x), wanted, strict=True):
            assert torch.equal(a, b) or torch.equal(a.isnan(), b.isnan())
    for before, module in zip(nn.Module.modules(result.graph.model), nn.Module.modules(result.model), strict=True):
        assert type(before).__name__ == type(module).__name__ or isinstance(before, GraphModule)  # has its own class
        truth(module)


def picklable(model: nn.Module) -> bool:
    try:
        return bool(pickle.dumps(model))
    except Exception:
        return False


def truth(module: nn.Module) -> None:
    """What torch's own layers say of themselves is so."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        assert module.weight.shape[:2] == (module.in_channels, module.out_channels // module.groups)
    elif isinstance(module, nn.modules.conv._ConvNd):
        assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        tensor = module.weight if module.affine else module.running_mean
        assert tensor is None or module.num_features == len(tensor)
    elif isinstance(module, nn.GroupNorm) and module.affine:
        assert module.num_channels == len(module.weight) and module.num_channels % module.num_groups == 0
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None:
        assert tuple(module.normalized_shape) == tuple(module.weight.shape)
    elif isinstance(module, nn.Linear):
        assert module.weight.shape == (module.out_features, module.in_features)
    elif isinstance(module, nn.Bilinear):
        assert module.weight.shape == (module.out_features, module.in1_features, module.in2_features)
    elif isinstance(module, nn.PReLU):
        assert module.num_parameters == len(module.weight)
    elif isinstance(module, nn.Embedding):
        assert module.weight.shape == (module.num_embeddings, module.embedding_dim)
    elif isinstance(module, nn.RNNBase):
        assert module.weight_ih_l0.shape[1] == module.input_size and module.weight_hh_l0.shape[1] == module.hidden_size


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_where_nothing_can_go_the_reasons_are_told(name: str) -> None:
    case: Case = CASES[name]
    with pytest.raises(NothingPrunableError, match=case.refused):
        secateur.prune(nasty.build(name), case.inputs(1, 2), method="random", pruning_ratio=0.5)
