"""Leave no trace: what a forward pass writes into its modules' attributes is taken back afterwards.

Networks cache grids, count calls, keep features of the last batch, and old-style weight and spectral norm store the
computed weight as a plain attribute. A run on meta tensors would leave tensors without data in their place.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import _lru_cache_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from secateur.graph.inside import inside_of

_SWAPPED = ("_parameters", "_buffers", "_modules")  # what they hold is swapped for the run anyway


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put back every module's attributes, containers and all, and the values of tensors among them."""
    inside = inside_of(model)
    if inside.kept is None:  # while the network is walked once, so are its attributes: every run leaves them the same
        inside.kept = _noted(inside.distinct)
    try:
        yield
    finally:
        inside.kept.restore()


def _noted(modules: Iterable[nn.Module]) -> _Kept:
    kept = _Kept()
    kept.note_classes({type(module) for module in modules})
    for module in modules:
        kept.note(vars(module))
        if isinstance(module, torch.jit.ScriptModule):  # its tensors can't be swapped: a run changes the real ones
            for tensor in (*module.parameters(), *module.buffers()):
                kept.note_tensor(tensor)
    return kept


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector waits: it would look again and again at the many small objects that a trace makes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Kept:
    def __init__(self) -> None:
        self.containers: list[tuple[Any, Any]] = []
        self.tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self.seen: set[int] = set()
        self.shared: list[tuple[Any, Any]] = []
        self.caches: list[tuple[Any, int]] = []

    def note_classes(self, classes: Iterable[type]) -> None:
        """Containers and caches that the networks' classes, or the files these are in, keep for all their objects."""
        homes = {home for cls in classes for home in cls.__mro__ if not home.__module__.startswith(_OTHERS)}
        spaces = [
            *map(vars, homes),
            *(vars(sys.modules[name]) for name in {h.__module__ for h in homes} & sys.modules.keys()),
        ]
        for name, value in (item for space in spaces for item in [*space.items()]):
            if type(value) in (list, dict, set) and not name.startswith("__"):
                self.shared.append((value, value.copy()))
            elif isinstance(value, _lru_cache_wrapper):
                self.caches.append((value, value.cache_info().misses))

    def note(self, attributes: dict[str, Any]) -> None:
        """The content of a module's attributes and of all lists, dicts and sets inside them."""
        self.containers.append((attributes, attributes.copy()))
        for name in _SWAPPED:
            held = attributes.get(name)
            if isinstance(held, dict):
                self.containers.append((held, held.copy()))
        pending = [value for name, value in attributes.items() if type(value) in _HELD and name not in _SWAPPED]
        while pending:
            item = pending.pop()
            if type(item) is Tensor:
                self.note_tensor(item)
            elif id(item) not in self.seen:
                self.seen.add(id(item))
                if type(item) is not tuple:
                    self.containers.append((item, item.copy()))
                inner = item.values() if type(item) is dict else item
                pending.extend(value for value in inner if type(value) in _HELD)

    def note_tensor(self, tensor: Tensor) -> None:
        if id(tensor) not in self.tensors and not tensor.is_inference():
            with _disable_current_modes():  # no part of what is recorded
                self.tensors[id(tensor)] = (tensor, tensor.detach().clone())

    def restore(self) -> None:
        for container, content in self.containers:
            if container or content:
                _refill(container, content)
        for container, content in self.shared:
            if (
                len(container) != len(content)
                or any(a is not b for a, b in zip(container, content, strict=True))
                or (isinstance(container, dict) and any(container[key] is not value for key, value in content.items()))
            ):
                _refill(container, content)
        for i, (cache, misses) in enumerate(self.caches):
            if cache.cache_info().misses != misses:  # what was computed in this run may be of meta tensors
                cache.cache_clear()
                self.caches[i] = (cache, 0)
        with torch.no_grad(), _disable_current_modes():
            for tensor, value in self.tensors.values():
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


_OTHERS = ("torch.", "builtins", "secateur.")  # classes whose homes keep nothing of a network
_HELD = frozenset((Tensor, list, dict, set, tuple))  # types exactly: classes derived from them may do as they like
