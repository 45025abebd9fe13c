"""The methods: one paper, one file. To add one, write its file and put its class into the table below."""

from __future__ import annotations

from typing import Any

from secateur.errors import MethodError, nearest
from secateur.methods.bn_scale import BNScale
from secateur.methods.cap import CAP
from secateur.methods.magnitude import L1
from secateur.methods.network_slimming import NetworkSlimming
from secateur.methods.protocol import Method, Scores, Training
from secateur.methods.random import Random

METHODS: dict[str, type[Method]] = {method.name: method for method in (L1, Random, BNScale, NetworkSlimming, CAP)}


def list_methods() -> tuple[str, ...]:
    """The names of all methods.

    Examples:
        >>> import secateur
        >>> "l1" in secateur.list_methods() and "cap" in secateur.list_methods()
        True
    """
    return tuple(METHODS)


def get_method(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        MethodError: there is none of this name.
    """
    if name not in METHODS:
        raise MethodError(f"unknown method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]


def make_method(method: str | Method, **options: Any) -> Method:
    """A method from its name and options, or the given object as it is."""
    if isinstance(method, str):
        return get_method(method).create(**options)
    if options:
        raise MethodError(f"options {', '.join(options)} were given together with a method object, which has its own")
    return method


__all__ = ["METHODS", "Method", "Scores", "Training", "get_method", "list_methods", "make_method"]
