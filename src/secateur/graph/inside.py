"""A network's modules and tensors by name: what torch's own `named_modules` and the like give, in one fast walk.

It is nn.Module's own idea of what is inside, also of classes that overwrite `modules` or `named_parameters`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ModelError

_DEEPEST = 1000  # levels of modules inside modules

Slot = tuple[str, dict[str, Any], str]  # the name of a tensor, the dict that holds it, its key there


@dataclass
class Inside:
    """What one walk through a network found.

    Attributes:
        model: the network.
        kept: what its attributes were, for who has to put them back.
        known: what operators gave on meta tensors, for who runs it again.
    """

    model: nn.Module
    kept: Any = None
    known: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def modules(self) -> list[tuple[str, nn.Module]]:
        model = self.model
        found, pending = [], [("", model, 0)]
        while pending:
            name, module, depth = pending.pop()
            if depth > _DEEPEST:
                raise ModelError(f"{type(model).__name__}: modules contain each other, without end: {name[:80]}...")
            found.append((name, module))
            prefix = f"{name}." if name else ""
            inner = [(f"{prefix}{key}", part, depth + 1) for key, part in module._modules.items() if part is not None]
            pending.extend(reversed(inner))
        return found

    @cached_property
    def distinct(self) -> list[nn.Module]:
        return [*{id(module): module for _, module in self.modules}.values()]

    @cached_property
    def named(self) -> list[tuple[str, nn.Module]]:
        first = {id(module): name for name, module in reversed(self.modules)}
        return [(name, module) for name, module in self.modules if first[id(module)] == name]

    @cached_property
    def parameters(self) -> list[Slot]:
        return self._held("_parameters")

    @cached_property
    def slots(self) -> list[Slot]:
        return [*self.parameters, *self._held("_buffers")]

    def _held(self, kind: str) -> list[Slot]:
        found = []
        for prefix, module in self.modules:
            if not isinstance(module, torch.jit.ScriptModule):
                held = vars(module)[kind]
                for key, tensor in held.items():
                    if tensor is not None:
                        found.append((f"{prefix}.{key}" if prefix else key, held, key))
        return found

    @cached_property
    def holders(self) -> dict[str, Slot]:
        return {slot[0]: slot for slot in self.slots}


_walks: ContextVar[dict[int, Inside] | None] = ContextVar("_walks", default=None)


@contextmanager
def walked_once() -> Iterator[None]:
    """Networks are walked through once and for all: what a forward pass adds to them is taken back."""
    token = _walks.set({})
    try:
        yield
    finally:
        _walks.reset(token)


def inside_of(model: nn.Module) -> Inside:
    """What is inside a network; looked up only once while it is `walked_once`."""
    walks = _walks.get()
    if walks is None:
        return Inside(model)
    if id(model) not in walks:
        walks[id(model)] = Inside(model)
    return walks[id(model)]


def modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module under every name it has, outer ones before inner ones.

    Raises:
        ModelError: modules contain each other.
    """
    return inside_of(model).modules


def named_modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module under its first name."""
    return inside_of(model).named


def distinct_modules(model: nn.Module) -> list[nn.Module]:
    """Every module once."""
    return inside_of(model).distinct


def slots_of(model: nn.Module) -> list[Slot]:
    """Where every parameter is, then every buffer; under all their names.

    Those of TorchScript parts can't be changed: they are absent.
    """
    return inside_of(model).slots


def holders_of(model: nn.Module) -> dict[str, Slot]:
    """The slots by name."""
    return inside_of(model).holders


def unsaved_of(model: nn.Module) -> set[str]:
    """The names of the buffers that a state dict doesn't hold."""
    return {
        f"{prefix}.{key}" if prefix else key
        for prefix, module in modules_of(model)
        for key in getattr(module, "_non_persistent_buffers_set", ())
    }


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under every name it has; those of TorchScript parts can't be changed: absent."""
    return {name: held[key] for name, held, key in slots_of(model)}


def set_number(module: nn.Module, key: str, value: int) -> None:
    """As `setattr`, which asks of everything whether it is a parameter."""
    own, kind = vars(module), type(module)
    if key in own and kind.__setattr__ is nn.Module.__setattr__ and not hasattr(kind, key):
        own[key] = value
    else:
        setattr(module, key, value)
