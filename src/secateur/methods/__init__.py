"""The methods: one paper, one file. To add one, write its file and put its class into the table below."""

from __future__ import annotations

from typing import Any

from secateur.errors import MethodError, nearest
from secateur.methods.acosp import ACoSP
from secateur.methods.bn_scale import BNScale
from secateur.methods.cap import CAP
from secateur.methods.ccgn import CCGN
from secateur.methods.dcfp import DCFP
from secateur.methods.fpgm import FPGM
from secateur.methods.gating import Gating
from secateur.methods.magnitude import L1, L2
from secateur.methods.material import Material
from secateur.methods.mcag import MCAG
from secateur.methods.network_slimming import NetworkSlimming
from secateur.methods.pagcp import PAGCP
from secateur.methods.protocol import Method, Scores, Training
from secateur.methods.random import Random
from secateur.methods.sfp import SFP
from secateur.methods.sirfp import SIRFP
from secateur.methods.taylor import Taylor

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        L1,
        L2,
        Random,
        BNScale,
        NetworkSlimming,
        FPGM,
        Taylor,
        CAP,
        CCGN,
        MCAG,
        DCFP,
        SIRFP,
        SFP,
        ACoSP,
        PAGCP,
    )
}


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


def make_method(method: str | Method, material: Material | None = None, **options: Any) -> Method:
    """A method from its name and options, or the given object as it is; `material` for its passes over data.

    Raises:
        MethodError: unknown method or option; or the method needs data, a loss or classes that were not given.
    """
    if isinstance(method, str):
        made = get_method(method).create(**options)
    elif options:
        raise MethodError(f"options {', '.join(options)} were given together with a method object, which has its own")
    else:
        made = method
    if material is not None and material != Material():
        made.material = material
    passes = made.needs_data or (made.takes_data and len(made.material.wanting("data", "loss")) < 2)
    needed = [*(("data", "loss") if passes else ()), *(("classes",) if made.needs_labels else ())]
    missing = made.material.wanting(*needed)
    if missing:
        meanings = {"data": "batches (input, target)", "loss": "(output, target) -> scalar", "classes": "their names"}
        gives = ", ".join(f"{name}= ({meanings[name]})" for name in missing)
        raise MethodError(f"method {made.name} makes a pass over data of its own: give {gives}")
    return made


def must_prune(method: Method) -> None:
    """Refuse to cut with a method that does not.

    Raises:
        MethodError: it removes no channels.
    """
    if not method.prunes:
        raise MethodError(
            f"method {method.name} {method.summary}: there is nothing to cut; evaluate the network with the method "
            "attached, or take a method that prunes"
        )


__all__ = [
    "METHODS", "Gating", "Material", "Method", "Scores", "Training", "get_method", "list_methods", "make_method",
    "must_prune",
]  # fmt: skip
