"""Remove a plan's slices from a network: the only place that changes one."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim import Optimizer

from secateur.errors import PlanError, nearest
from secateur.graph import no_collection, state_of, unwrapped
from secateur.graph.inside import distinct_modules, modules_of, set_number, walked_once
from secateur.plan import Plan


def apply(model: nn.Module, plan: Plan, *, inplace: bool = False, optimizer: Optimizer | None = None) -> nn.Module:
    """Cut a network to a plan.

    Args:
        model: the network that the plan was made for, or one of the same shape: a fresh one, a moving average of its
            weights. Of a wrapped one (see `trace`) the network inside is cut.
        plan: what goes.
        inplace: change the network itself rather than a copy.
        optimizer: an optimizer of `model`; its state (momentum, Adam's moments) is cut along, and it goes on with the
            returned network.

    Returns:
        A network of the same class with smaller tensors; attributes such as `out_channels` tell the truth.

    Raises:
        PlanError: the plan names a tensor that the network lacks, or one of another shape.

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> net(torch.randn(1, 3, 8, 8)).mean().backward()
        >>> optimizer.step()
        >>> graph = secateur.trace(net, torch.zeros(1, 3, 8, 8))
        >>> plan = secateur.select(graph, secateur.score(graph, "l1"), pruning_ratio=0.5)
        >>> small = secateur.apply(net, plan, optimizer=optimizer)
        >>> small[0], small[2].in_channels
        (Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1)), 4)
        >>> optimizer.state[small[0].weight]["exp_avg"].shape  # it goes on with the small network
        torch.Size([4, 3, 3, 3])
        >>> net[0].out_channels
        8
    """
    model = unwrapped(model)
    with no_collection(), walked_once():
        return _applied(model, plan, inplace, optimizer)


def _applied(model: nn.Module, plan: Plan, inplace: bool, optimizer: Optimizer | None) -> nn.Module:
    check(model, plan)
    old, smaller = state_of(model), dict[int, Tensor]()
    known: dict[tuple[int, int, torch.device], Tensor] = {}  # what is kept: many tensors lose the same indices
    for name, dims in plan.slices.items():
        tensor = old[name]
        if id(tensor) not in smaller:
            kept = {}
            for d, gone in dims.items():
                key = (id(gone), tensor.shape[d], tensor.device)
                if key not in known:
                    known[key] = torch.as_tensor(plan.kept(name, d), device=tensor.device)
                kept[d] = known[key]
            gradient = None if tensor.grad is None else select(tensor.grad, kept)
            if optimizer is not None:
                _cut_state(optimizer, tensor, kept)
            smaller[id(tensor)] = _replace(tensor, select(tensor.detach(), kept), gradient, inplace)
    # The copy takes the cut tensors as they are: what goes is never copied.
    target = model if inplace else copy_of(model, smaller)
    modules = dict(modules_of(target))
    for module, values in plan.numbers.items():
        for attribute, value in values.items():
            set_number(modules[module], attribute, value)
    _recompute(target)
    if optimizer is not None and not inplace:
        new = state_of(target)
        _follow(optimizer, {id(old[name]): new[name] for name in old})
    return target


def _recompute(model: nn.Module) -> None:
    """Old-style weight and spectral norm, and torch's own masks, keep the computed weight, which tells its size, until
    the next forward."""
    for module in distinct_modules(model):
        for hook in module._forward_pre_hooks.values():
            with torch.no_grad():
                if isinstance(hook, WeightNorm):
                    setattr(module, hook.name, hook.compute_weight(module))
                elif isinstance(hook, SpectralNorm):
                    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
                elif isinstance(hook, BasePruningMethod):
                    setattr(module, hook._tensor_name, hook.apply_mask(module))


def _replace(tensor: Tensor, data: Tensor, gradient: Tensor | None, inplace: bool) -> Tensor:
    """The cut tensor: in place the same object, so that whoever holds it (a list, an optimizer) sees it shrink."""
    if inplace:
        tensor.grad = None
        tensor.data = data
        new = tensor
    elif isinstance(tensor, nn.Parameter):
        new = nn.Parameter(data, tensor.requires_grad)
        new.__dict__.update(vars(tensor))  # marks that people leave on their parameters
    else:
        new = data
    new.grad = gradient
    return new


def check(model: nn.Module, plan: Plan) -> None:
    """Raise PlanError, naming every tensor that does not fit, unless the plan fits the network."""
    state = state_of(model)
    wrong = []
    for name in plan.slices:
        if name not in state:
            wrong.append(f"{name}: no such tensor; {nearest(name, state, shown=5)}")
        elif name not in plan.shapes:
            wrong.append(f"{name}: the plan does not tell its shape")
        elif tuple(state[name].shape) != plan.shapes[name]:
            wrong.append(f"{name}: shape {tuple(state[name].shape)}, the plan was made for {plan.shapes[name]}")
    modules = dict(modules_of(model))
    for module, values in plan.numbers.items():
        for attribute in values:
            if module not in modules or not isinstance(getattr(modules[module], attribute, None), int):
                wrong.append(f"{module}.{attribute}: the network has no such number")
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise PlanError(f"the plan does not fit this {type(model).__name__}: " + "; ".join(wrong[:5]) + more)


def select(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """The kept indices of each dimension, in the tensor's own memory format."""
    new = tensor
    for dim, indices in kept.items():
        new = new.index_select(dim, indices)
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        return new.contiguous(memory_format=torch.channels_last)
    return new


def _cut_state(optimizer: Optimizer, parameter: Tensor, kept: Mapping[int, Tensor]) -> None:
    state: dict[str, Any] = optimizer.state.get(parameter) or {}
    for key, value in list(state.items()):
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            state[key] = select(value, kept)


def _follow(optimizer: Optimizer, new: Mapping[int, Tensor]) -> None:
    """Point an optimizer at the copy's parameters."""
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            other = new.get(id(parameter), parameter)
            if other is not parameter:
                if parameter in optimizer.state:
                    optimizer.state[other] = optimizer.state.pop(parameter)
                group["params"][i] = other


def silenced(state: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """A network's tensors, copied, every slice that the plan removes set to zero: what the pruned must equal."""
    made = {id(tensor): tensor.detach().clone() for tensor in state.values()}
    out = {name: made[id(tensor)] for name, tensor in state.items()}
    silence(out, plan)
    return out


def silence(state: Mapping[str, Tensor], plan: Plan) -> None:
    """Set every slice that the plan removes to zero, in these tensors themselves."""
    for name in state.keys() & plan.removed.keys():
        for dim, indices in plan.removed[name].items():
            state[name].index_fill_(dim, torch.as_tensor(np.asarray(indices), device=state[name].device), 0)


def copy_of(model: nn.Module, made: Mapping[int, Tensor]) -> nn.Module:
    """A copy of a network, also of one that `copy.deepcopy` refuses: open files and the like are shared.

    Args:
        made: by id, tensors that the copy holds instead of copies of the network's own.
    """
    try:
        return _deep_copy(model, dict(made))
    except Exception:  # anything that the attributes of somebody's module raise
        return _structural_copy(model, dict(made))


_ATOMS = frozenset(
    (type(None), bool, int, float, complex, str, bytes, type, FunctionType, BuiltinFunctionType, torch.dtype,
     torch.device)
)  # fmt: skip


def _deep_copy(item: Any, made: dict[Any, Any]) -> Any:
    """What `copy.deepcopy` gives, with a shorter way for modules that are copied in no way of their own."""
    kind: Any = type(item)
    if kind in _ATOMS:
        return item
    new = made.get(id(item), made)
    if new is not made:
        return new
    if kind is dict or (kind is OrderedDict and not vars(item)):
        new = made[id(item)] = kind()
        for key, value in item.items():
            new[_deep_copy(key, made)] = _deep_copy(value, made)
        return new
    if kind is list:
        new = made[id(item)] = []
        new.extend([_deep_copy(value, made) for value in item])
        return new
    if kind is set:
        new = made[id(item)] = {_deep_copy(value, made) for value in item}
        return new
    if kind is tuple and _ATOMS.issuperset(map(type, item)):
        return item
    if kind is nn.Parameter:
        return item.__deepcopy__(made)
    if kind is Tensor and _owns_its_memory(item, made):
        with torch.no_grad():
            new = made[id(item)] = item.clone()
        made["torch"][item.untyped_storage()._cdata] = new.untyped_storage()  # as torch does, for views of it
        return new
    if _plain(kind) and "__deepcopy__" not in vars(item):
        new = made[id(item)] = kind.__new__(kind)
        attributes = {key: _deep_copy(value, made) for key, value in vars(item).items()}
        if kind.__setstate__ is nn.Module.__setstate__:
            vars(new).update(attributes)
        else:
            new.__setstate__(attributes)
        return new
    return copy.deepcopy(item, made)


def _owns_its_memory(tensor: Tensor, made: dict[Any, Any]) -> bool:
    """An ordinary tensor by itself: not a part of another, asking for no gradient, with no marks on it."""
    if not (tensor.layout is torch.strided and tensor.device.type in ("cpu", "cuda") and tensor.is_contiguous()):
        return False
    if tensor.requires_grad or tensor.grad is not None or tensor.is_quantized or tensor.is_complex() or vars(tensor):
        return False
    storage = tensor.untyped_storage()
    alone = storage.nbytes() == tensor.numel() * tensor.element_size() > 0 and not tensor.is_neg()
    return alone and storage._cdata not in made.setdefault("torch", {})


@cache
def _plain(kind: type) -> bool:
    """A class of modules whose objects hold all they have in their attributes."""
    return (
        issubclass(kind, nn.Module)
        and kind.__basicsize__ == nn.Module.__basicsize__  # no slots, and no list or dict underneath
        and kind not in copyreg.dispatch_table
        and not any(hasattr(kind, name) for name in ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__"))
        and all(
            getattr(kind, name, None) is getattr(nn.Module, name, None)
            for name in ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")
        )
    )


def _structural_copy(item: Any, made: dict[int, Any]) -> Any:
    """Modules, tensors and the containers that hold them are copied; everything else is shared."""
    if id(item) in made:
        return made[id(item)]
    if isinstance(item, nn.Parameter):
        new: Any = nn.Parameter(item.detach().clone(), item.requires_grad)
        new.grad = None if item.grad is None else item.grad.clone()
    elif isinstance(item, Tensor):
        new = item.detach().clone()
    elif isinstance(item, nn.Module):
        new = made[id(item)] = item.__class__.__new__(item.__class__)
        new.__dict__.update({key: _structural_copy(value, made) for key, value in vars(item).items()})
        return new
    elif type(item) is list or type(item) is tuple:
        return type(item)(_structural_copy(value, made) for value in item)
    elif isinstance(item, dict):
        new = copy.copy(item)
        for key, value in item.items():
            new[key] = _structural_copy(value, made)
        return new
    else:
        return item
    made[id(item)] = new
    return new
