"""Numbers that modules keep about their tensors (`out_channels`, `num_features` ...), to tell the truth after a cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from secateur.graph.flow import Flow
from secateur.graph.inside import named_modules_of
from secateur.graph.labels import Atoms
from secateur.graph.units import AtomTable, TensorInfo


@dataclass(frozen=True, slots=True)
class Number:
    """`module.attribute` = (how many of `atoms` are kept) * times // each."""

    module: str
    attribute: str
    atoms: Atoms
    times: int = 1
    each: int = 1


def values_after(numbers: Sequence[Number], gone: NDArray[np.bool_]) -> dict[str, dict[str, int]]:
    """Module -> attribute -> value, for the numbers that change when atoms go (bool per atom)."""
    out: dict[str, dict[str, int]] = {}
    known = [number for number in numbers if len(number.atoms)]
    if not known:
        return out
    marks = np.append(gone, [False, False])  # what is no atom is below zero: the last
    starts = np.cumsum([0, *(len(number.atoms) for number in known)])[:-1]
    lost = np.add.reduceat(marks[np.concatenate([number.atoms for number in known])], starts, dtype=np.int64)
    for i in np.flatnonzero(lost).tolist():
        number = known[i]
        value = (len(number.atoms) - int(lost[i])) * number.times // number.each
        out.setdefault(number.module, {})[number.attribute] = value
    return out


def output_dim(modules: Mapping[str, nn.Module], tensor: str) -> int:
    """The dimension of a tensor that counts what its module makes."""
    module, _, name = tensor.rpartition(".")
    return 1 if name == "weight" and isinstance(modules.get(module), _ConvTransposeNd) else 0


def _spellings(role: str) -> list[str]:
    """What a layer's tensor may be called: itself, the originals under a parametrisation, those of the old norms."""
    return [role, *(f"parametrizations.{role}.original{i}" for i in ("", "0", "1")), f"{role}_v", f"{role}_orig"]


def _own(module: nn.Module, name: str, role: str, table: dict[str, int], shapes: AtomTable) -> int | None:
    """The tensor behind `module.role`: itself, or the original under a parametrisation, of the same shape."""
    if is_parametrized(module, role):  # what is computed counts, not what from: see numbers_of_calls
        return None
    tensor = getattr(module, role, None)
    if tensor is None:
        return None
    prefix = f"{name}." if name else ""
    for candidate in _spellings(role):
        number = table.get(f"{prefix}{candidate}")
        if number is not None and shapes.tensors[number].shape == tuple(tensor.shape):
            return number
    return None


def numbers_of(model: nn.Module, table: AtomTable) -> Iterator[Number]:
    """The numbers of torch's own layers and of classes derived from them."""
    by_name = {alias: i for i, t in enumerate(table.tensors) for alias in (t.name, *t.aliases)}

    def atoms(tensor: int, dim: int) -> Atoms | None:
        info = table.tensors[tensor]
        return np.arange(info.first[dim], info.first[dim] + info.shape[dim]) if info.first[dim] >= 0 else None

    for name, module in named_modules_of(model):
        for attribute, role, dim, times, each in _roles(module):
            tensor = _own(module, name, role, by_name, table)
            if tensor is None or dim >= len(table.tensors[tensor].shape):
                continue
            mine = atoms(tensor, dim)
            if mine is not None and isinstance(getattr(module, attribute, None), int):
                yield Number(name, attribute, mine, times, each)


def numbers_of_calls(flows: Sequence[Flow], modules: Mapping[str, nn.Module]) -> Iterator[Number]:
    """The numbers of layers that keep no tensor of their shape: normalisations without any, from the channels that
    passed through them; layers with a parametrised weight, from the weight that was computed."""
    for flow in flows:
        for name, values in flow.capture.calls:
            module = modules[name]
            if values and isinstance(module, ParametrizationList):
                yield from _numbers_of_weight(flow, name, values[0], modules)
            if not values or not isinstance(module, (_NormBase, nn.GroupNorm)):
                continue
            attribute = "num_features" if isinstance(module, _NormBase) else "num_channels"
            for track in (track for dim in flow.layouts.get(values[0], []) for track in dim):
                if track.live and len(track.atoms) == getattr(module, attribute):
                    yield Number(name, attribute, track.atoms)


def _numbers_of_weight(flow: Flow, name: str, value: int, modules: Mapping[str, nn.Module]) -> Iterator[Number]:
    owner, _, role = name.rpartition("parametrizations.")
    layer = owner.rstrip(".")
    for attribute, tensor, dim, times, each in _roles(modules[layer]):
        layout = flow.layouts.get(value, [])
        if tensor == role and dim < len(layout) and len(layout[dim]) == 1 and layout[dim][0].live:
            yield Number(layer, attribute, layout[dim][0].atoms, times, each)


def kernels_of(model: nn.Module) -> set[str]:
    """The weights of torch's convolutions, under every name that a parametrisation gives them."""
    found: set[str] = set()
    for name, module in named_modules_of(model):
        if isinstance(module, _ConvNd):
            prefix = f"{name}." if name else ""
            found.update(f"{prefix}{candidate}" for candidate in _spellings("weight"))
    return found


def partner_of(tensor: TensorInfo, used: Sequence[TensorInfo], modules: Mapping[str, nn.Module]) -> Atoms | None:
    """The channels that a layer's unused vector (bias, running mean ...) belongs to: those of a tensor that is used."""
    owner = tensor.name.rpartition(".")[0]
    if len(tensor.shape) != 1 or not isinstance(modules.get(owner), (_ConvNd, nn.Linear, _NormBase, nn.GroupNorm)):
        return None
    for other in used:
        if other.name.rpartition(".")[0] == owner and other.shape:
            dim = output_dim(modules, other.name)
            if other.shape[dim] == tensor.shape[0] and other.first[dim] >= 0:
                return np.arange(other.first[dim], other.first[dim] + tensor.shape[0])
    return None


def _roles(module: nn.Module) -> Iterator[tuple[str, str, int, int, int]]:
    """(attribute, tensor, dimension, times, each) of the classes whose numbers are known."""
    if isinstance(module, _ConvNd):
        into, out = module.in_channels // module.groups, module.out_channels // module.groups
        transposed = isinstance(module, _ConvTransposeNd)
        if module.groups > 1 and into == 1:  # depthwise: `groups` goes down
            yield "in_channels", "weight", 0, 1, 1 if transposed else out
            yield "out_channels", "weight", 0, out if transposed else 1, 1
        elif transposed:
            yield "in_channels", "weight", 0, 1, 1
            yield "out_channels", "weight", 1, module.groups, 1
        else:
            yield "in_channels", "weight", 1, module.groups, 1
            yield "out_channels", "weight", 0, 1, 1
    elif isinstance(module, nn.Linear):
        yield "in_features", "weight", 1, 1, 1
        yield "out_features", "weight", 0, 1, 1
    elif isinstance(module, nn.Bilinear):
        yield "in1_features", "weight", 1, 1, 1
        yield "in2_features", "weight", 2, 1, 1
        yield "out_features", "weight", 0, 1, 1
    elif isinstance(module, _NormBase):
        yield "num_features", "weight" if module.affine else "running_mean", 0, 1, 1
    elif isinstance(module, nn.GroupNorm):
        yield "num_channels", "weight", 0, 1, 1
    elif isinstance(module, nn.PReLU):
        yield "num_parameters", "weight", 0, 1, 1
    elif isinstance(module, nn.Embedding):
        yield "embedding_dim", "weight", 1, 1, 1
