"""A network's modules and tensors by name: what torch's own `named_modules` and the like give, in one fast walk.

It is nn.Module's own idea of what is inside, also of classes that overwrite `modules` or `named_parameters`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from secateur.errors import ModelError

_DEEPEST = 1000  # levels of modules inside modules

_walks: ContextVar[dict[int, list[tuple[str, nn.Module]]] | None] = ContextVar("_walks", default=None)


@contextmanager
def walked_once() -> Iterator[None]:
    """Networks are walked through once and for all: what a forward pass adds to them is taken back."""
    token = _walks.set({})
    try:
        yield
    finally:
        _walks.reset(token)


def modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module under every name it has, outer ones before inner ones.

    Raises:
        ModelError: modules contain each other.
    """
    walks = _walks.get()
    if walks is not None and id(model) in walks:
        return walks[id(model)]
    found, pending = [], [("", model, 0)]
    while pending:
        name, module, depth = pending.pop()
        if depth > _DEEPEST:
            raise ModelError(f"{type(model).__name__}: modules contain each other, without end: {name[:80]}...")
        found.append((name, module))
        prefix = f"{name}." if name else ""
        inner = [(f"{prefix}{key}", part, depth + 1) for key, part in module._modules.items() if part is not None]
        pending.extend(reversed(inner))
    if walks is not None:
        walks[id(model)] = found
    return found


def distinct_modules(model: nn.Module) -> list[nn.Module]:
    """Every module once."""
    return [*{id(module): module for _, module in modules_of(model)}.values()]


def slots_of(model: nn.Module) -> Iterator[tuple[str, dict[str, Tensor], str]]:
    """(name, the dict that holds it, its key there) of every parameter, then of every buffer; under all their names.

    Those of TorchScript parts can't be changed: they are absent.
    """
    modules = modules_of(model)
    for kind in ("_parameters", "_buffers"):
        for prefix, module in modules:
            if not isinstance(module, torch.jit.ScriptModule):
                held = module.__dict__[kind]
                for key, tensor in held.items():
                    if tensor is not None:
                        yield f"{prefix}.{key}" if prefix else key, held, key


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
