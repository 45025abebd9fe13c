"""What a network's tensors are like, now and after a cut that was not made yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from safetensors import SafetensorError, TensorSpec
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secateur.errors import PlanError, nearest
from secateur.graph import state_of
from secateur.plan import Plan
from secateur.plan.plan import shown


class Form(NamedTuple):
    """What a tensor is like: its type as safetensors calls it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def form_of(tensor: Tensor) -> Form:
    """A type that safetensors files can't hold has the name that torch gives it."""
    with suppress(SafetensorError):
        name = str(tensor.dtype).removeprefix("torch.")
        spec = TensorSpec(dtype=name, shape=tensor.shape, data_ptr=0, data_len=0)  # a description, without data
        return Form(spec.dtype, tuple(spec.shape))
    return Form(str(tensor.dtype), tuple(tensor.shape))


def persistent(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tied tensor once, under its first name."""
    once: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if isinstance(t, Tensor) and once.setdefault(id(t), name) == name}


def misfits(expected: Mapping[str, Form], found: Mapping[str, Form]) -> str:
    """The names by which a file's tensors differ from a network's, a few of each kind; empty if they fit."""
    both = [(name, found[name], form) for name, form in expected.items() if name in found]
    kinds = {
        "missing in the file": [name for name in expected if name not in found],
        "not in the network": [name for name in found if name not in expected],
        "of another shape": [f"{name} {shown(a.shape)} instead of {b.shape}" for name, a, b in both if a[1] != b[1]],
        "of another type": [f"{name} {shown(a.dtype)} instead of {b.dtype}" for name, a, b in both if a[0] != b[0]],
    }
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)


def forms_after(model: nn.Module, plan: Plan) -> dict[str, Form]:
    """What a plan makes of a network's tensors, told without cutting anything.

    Raises:
        PlanError: it names what the network lacks, or fits it badly.
    """
    state, modules = state_of(model), dict(model.named_modules())
    unknown = [name for name in {**plan.slices, **plan.shapes} if name not in state]
    if unknown:
        raise PlanError(f"no such tensor: {_some(unknown)}; {nearest(shown(unknown[0]), state, shown=5)}")
    cut: dict[int, tuple[int, ...]] = {}
    for name, dims in plan.slices.items():
        shape = tuple(state[name].shape)
        if plan.shapes.get(name) != shape:
            raise PlanError(f"{name}: shape {shape}, the plan was made for {shown(plan.shapes.get(name))}")
        cut.setdefault(id(state[name]), tuple(size - len(dims.get(d, ())) for d, size in enumerate(shape)))
    for module, numbers in plan.numbers.items():
        for attribute, value in numbers.items():
            known = vars(modules[module]).get(attribute) if module in modules else None
            if type(known) is not int or not _follows(plan, module, known, value):
                raise PlanError(f"{shown(f'{module}.{attribute}')}: {known} in this network can't become {value}")
    for name, layer in modules.items():
        _check_layer(name, layer, state, cut, plan.numbers.get(name, {}))
    forms = {name: (form_of(tensor), id(tensor)) for name, tensor in persistent(model).items()}
    return {name: Form(form.dtype, cut.get(which, form.shape)) for name, (form, which) in forms.items()}


def _follows(plan: Plan, module: str, known: int, value: int) -> bool:
    """A file may make a module's number smaller by the share that a dimension in it loses, and change nothing else; of
    a module where nothing goes (a norm without tensors), by the share of any."""
    prefix = f"{module}." if module else ""
    inside = [tensor for tensor in plan.removed if tensor.startswith(prefix)] or [*plan.removed]
    cut = [(plan.shapes[tensor][dim], len(gone)) for tensor in inside for dim, gone in plan.removed[tensor].items()]
    return 1 <= value <= known and any(value * size == known * (size - lost) for size, lost in cut)


def _check_layer(
    name: str,
    module: nn.Module,
    state: Mapping[str, Tensor],
    cut: Mapping[int, tuple[int, ...]],
    numbers: Mapping[str, int],
) -> None:
    """Raise PlanError if a layer's tensors and numbers fit each other before the cut, but not after."""
    before = _sizes(module, lambda attribute: getattr(module, attribute))
    after = _sizes(module, lambda attribute: numbers.get(attribute, getattr(module, attribute)))
    prefix = f"{name}." if name else ""
    if f"{prefix}weight" not in state and getattr(module, "weight", None) is not None:
        return  # computed from other tensors
    for role, shape in before.items():
        tensor = state.get(f"{prefix}{role}")
        if tensor is not None and tensor.shape == shape and cut.get(id(tensor), shape) != after[role]:
            raise PlanError(
                f"{prefix}{role} would be of shape {cut.get(id(tensor), shape)}, but the other numbers of this "
                f"{type(module).__name__} ask for {after[role]}"
            )


def _sizes(module: nn.Module, number: Callable[[str], int]) -> dict[str, tuple[int, ...]]:
    """The shapes that torch's own layers claim for their tensors, by their numbers."""
    if isinstance(module, _ConvNd):
        into, out, groups = number("in_channels"), number("out_channels"), number("groups")
        first, second = (into, out) if module.transposed else (out, into)
        return {"weight": (first, second // groups, *module.kernel_size), "bias": (out,)}
    if isinstance(module, nn.Linear):
        return {"weight": (number("out_features"), number("in_features")), "bias": (number("out_features"),)}
    if isinstance(module, (_NormBase, nn.GroupNorm)):
        size = (number("num_features" if isinstance(module, _NormBase) else "num_channels"),)
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), size)
    if isinstance(module, nn.PReLU):
        return {"weight": (number("num_parameters"),)}
    if isinstance(module, nn.Embedding):
        return {"weight": (number("num_embeddings"), number("embedding_dim"))}
    return {}


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name, 200) for name in names[:most]) + more
