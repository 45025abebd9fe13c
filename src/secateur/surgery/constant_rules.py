"""What operators make of constants: one rule per family, which gives the value of an operator's first output.

A value is told as a float64 tensor of its rank, each dimension in full or, where all along it is the same, of size one:
(1, C, 1, 1) for a feature map. What is not known is NaN; where nothing is, a rule may give None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from secateur.graph import Flow
from secateur.graph.capture import Node, Ref
from secateur.graph.operators import BATCH_NORMS
from secateur.surgery.walk import PADS

# A number at every place stays a number at every place.
_POINTWISE = (
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "silu", "gelu", "mish", "hardtanh", "hardswish",
    "hardsigmoid", "sigmoid", "tanh", "softplus", "clamp", "clamp_min", "clamp_max", "_prelu_kernel", "abs", "neg",
    "square", "exp", "sqrt", "pow", "add", "sub", "div", "mul",
)  # fmt: skip
_SAME = ("clone", "alias", "detach", "contiguous", "lift_fresh")
# Over space, of a constant, these are that constant.
_OVER_SPACE = (
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_trilinear3d", *PADS,
)  # fmt: skip
_RESHAPES = ("view", "_unsafe_view", "squeeze", "unsqueeze", "permute", "transpose", "t", "expand")


class Constants(Protocol):
    """The values of a run as rules see them."""

    flow: Flow

    def get(self, ref: Ref) -> Tensor:
        """What a value is."""

    def meets_padding(self, ref: Ref, where: Tensor, place: str) -> None:
        """What a value is at the marked places, it is not at the borders of what comes next."""


def _named(node: Node) -> dict[str, Any]:
    """An operator's arguments by name, those left out with their defaults."""
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False))
    return {a.name: a.default_value for a in schema if a.has_default_value()} | given | node.kwargs


def _batch_norm(constants: Constants, node: Node) -> Tensor | None:
    """(x - mean) / sqrt(var + eps) * weight + bias."""
    arguments = _named(node)
    mean, variance = arguments.get("running_mean"), arguments.get("running_var")
    if arguments.get("training") or not isinstance(mean, Ref) or not isinstance(variance, Ref):
        return None
    x = constants.get(node.args[0])

    def along(ref: Ref) -> Tensor:
        return constants.get(ref).reshape(-1, *[1] * (x.dim() - 2))

    eps = arguments["eps"] if "eps" in arguments else arguments["epsilon"]
    x = (x - along(mean)) / (along(variance) + float(eps)).sqrt()
    weight, bias = arguments["weight"], arguments["bias"]
    x = x if weight is None else x * along(weight)
    return x if bias is None else x + along(bias)


def _pointwise(constants: Constants, node: Node) -> Tensor | None:
    """The operator itself. Nothing comes of what is not known, except that a product with zero is zero."""
    read = {ref.value: constants.get(ref) for ref in node.inputs()}
    operator = getattr(torch.ops.aten, node.op if node.op.startswith("_") else node.op.rstrip("_"))
    out = operator(*(read[a.value] if isinstance(a, Ref) else a for a in node.args), **node.kwargs)
    for value in read.values():
        out = torch.where(value.isnan(), torch.nan, out)  # some activations make a number of NaN
    if node.op in ("mul", "mul_"):
        for value in read.values():
            out = torch.where(value == 0, 0.0, out)
    return out


def _same(constants: Constants, node: Node) -> Tensor | None:
    return constants.get(node.args[0])


def _over_space(constants: Constants, node: Node) -> Tensor | None:
    """Of a map that is the same at every place: the map. Pads and averages that count zeros are rough."""
    x, arguments = constants.get(node.args[0]), _named(node)
    rank = len(node.args[1]) // 2 if node.op in PADS else next(n for n in (1, 2, 3) if f"{n}d" in node.op)
    if any(n != 1 for n in x.shape[-rank:]) or arguments.get("divisor_override") is not None:
        return None
    if node.op == "constant_pad_nd" and any(amount > 0 for amount in node.args[1]):
        constants.meets_padding(node.args[0], x != arguments["value"], str(node.place))
    if arguments.get("count_include_pad") and any(arguments["padding"]):
        constants.meets_padding(node.args[0], x != 0, str(node.place))
    return x


def _average(constants: Constants, node: Node) -> Tensor | None:
    """A mean over dimensions along which the value is the same."""
    x, arguments = constants.get(node.args[0]), _named(node)
    dims = arguments.get("dim")
    if not dims or any(x.shape[d] != 1 for d in dims):
        return None
    return x if arguments["keepdim"] else x.squeeze(tuple(dims))


def _unpool(constants: Constants, node: Node) -> Tensor | None:
    """Zeros stay zeros; any other constant comes to stand alone among zeros."""
    x = constants.get(node.args[0])
    return torch.where(x == 0, x, torch.nan)


def _concatenated(constants: Constants, node: Node) -> Tensor | None:
    refs: list[Ref] = node.args[0]
    dim = _named(node)["dim"] % len(constants.flow.shape(refs[0]))
    parts = []
    for ref in refs:
        value = constants.get(ref)
        parts.append(value.expand([constants.flow.shape(ref)[dim] if d == dim else -1 for d in range(value.dim())]))
    sizes = [max(part.shape[d] for part in parts) for d in range(parts[0].dim())]
    return torch.cat([part.expand([-1 if d == dim else n for d, n in enumerate(sizes)]) for part in parts], dim)


def _reshaped(constants: Constants, node: Node) -> Tensor | None:
    """The operator itself, on the value in full."""
    x = constants.get(node.args[0])
    if x.isnan().all():
        return None
    full = x.expand(constants.flow.shape(node.args[0])).contiguous()
    out = node.target(full, *node.args[1:], **node.kwargs)
    for dim in range(out.dim()):
        first = out.narrow(dim, 0, 1)
        if ((out == first) | (out.isnan() & first.isnan())).all():
            out = first
    return out


RULES: dict[str, Callable[[Constants, Node], Tensor | None]] = {
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_OVER_SPACE, _over_space),
    **dict.fromkeys(_RESHAPES, _reshaped),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _unpool),
    "mean": _average,
    "cat": _concatenated,
}
