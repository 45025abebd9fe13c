"""Operators that work element by element, with broadcasting, in place or not."""

from __future__ import annotations

from secateur.graph.capture import Node, Ref
from secateur.graph.flow import Flow, argument
from secateur.graph.labels import Layout, copied
from secateur.graph.rules.table import rule

# f(0) = 0, so a silenced channel stays silent.
_KEEP_ZERO = (
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "tanh", "hardswish", "abs", "neg",
    "sqrt", "sin", "asin", "atan", "sinh", "tan", "erf", "sign", "sgn", "square", "floor", "ceil", "round", "trunc",
    "frac", "clone", "alias", "detach", "_to_copy", "contiguous", "lift_fresh", "lift_fresh_copy", "lift", "expm1",
    "log1p", "softshrink", "hardshrink", "nan_to_num", "rrelu_with_noise", "rrelu_with_noise_functional", "bitwise_and",
    "deg2rad", "rad2deg", "asinh", "atanh", "erfinv", "isnan", "isinf", "real", "imag", "conj", "_conj",
    "_conj_physical", "resolve_conj", "resolve_neg", "angle",
)  # fmt: skip
_CHANGE_ZERO = (
    "sigmoid", "hardsigmoid", "exp", "exp2", "log", "log2", "log10", "softplus", "cos", "cosh", "reciprocal", "rsqrt",
    "log_sigmoid_forward", "logical_not", "bitwise_not", "isfinite", "erfc", "acos",
    "pow", "threshold", "hardtanh", "clamp", "clamp_min", "clamp_max", "remainder", "fmod",
    "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "atan2", "rsub",
)  # fmt: skip
_SUMS = (
    "add",
    "sub",
    "complex",
    "maximum",
    "minimum",
    "lerp",
    "fmax",
    "fmin",
    "bitwise_or",
    "where",
    "addcmul",
    "addcdiv",
)
_PRODUCTS = ("mul", "polar", "div", "floor_divide", "masked_fill", "native_dropout", "true_divide")

# A view of the whole tensor: labels are shared, so that writing into it shows in the original.
_SAME_MEMORY = ("alias", "detach", "lift_fresh", "lift")


def _both(names: tuple[str, ...]) -> tuple[str, ...]:
    return (*names, *(f"{name}_" for name in names))


def _finish(flow: Flow, node: Node, layout: Layout) -> None:
    """Set the outputs; an in-place operator writes into its first argument."""
    first = node.args[0] if node.args and isinstance(node.args[0], Ref) else None
    for out in node.outputs:
        if out is None:
            continue
        if first is not None and out == first:
            flow.write(first, layout)
        elif flow.shape(out) == tuple(_shape(flow, node)):
            flow.set(out, layout)
        else:
            flow.set(out, [()] * len(flow.shape(out)))


def _shape(flow: Flow, node: Node) -> tuple[int, ...]:
    out = node.outputs[0]
    return flow.shape(out) if out is not None else ()


def _elementwise(flow: Flow, node: Node, zero: str, reason: str | None = None) -> None:
    refs = node.refs
    if len(refs) == 1 and flow.shape(refs[0]) == _shape(flow, node):
        layout = flow.get(refs[0])
        if node.op not in _SAME_MEMORY:
            layout = copied(layout, zero=False if zero == "never" else None)
    else:
        reason = reason or f"element by element ({node.op.rstrip('_')})"
        layout = flow.broadcast(refs, _shape(flow, node), reason, zero)
    _finish(flow, node, layout)


@rule(*_both(_KEEP_ZERO))
def keeps_zero(flow: Flow, node: Node) -> None:
    _elementwise(flow, node, "all")


@rule(*_both(_CHANGE_ZERO))
def changes_zero(flow: Flow, node: Node) -> None:
    bounds = [argument(node, 1, "min"), argument(node, 2, "max")]
    clamps = node.op.rstrip("_") in ("hardtanh", "clamp", "clamp_min", "clamp_max")
    low, high = (bounds[0], None) if "clamp_min" in node.op else (None, bounds[0]) if "clamp_max" in node.op else bounds
    keeps = clamps and not isinstance(low, Ref) and not isinstance(high, Ref)
    keeps = keeps and (low is None or low <= 0) and (high is None or high >= 0)
    if node.op.rstrip("_") == "hardtanh":
        low, high = argument(node, 1, "min_val", -1), argument(node, 2, "max_val", 1)
        keeps = low <= 0 <= high
    if node.op.rstrip("_") == "pow" and isinstance(node.args[1], (int, float)):
        keeps = node.args[1] > 0
    _elementwise(flow, node, "all" if keeps else "never")


@rule("fake_quantize_per_tensor_affine_cachemask")
def pointwise(flow: Flow, node: Node) -> None:
    """Element by element, by whatever function: what it makes of zero isn't known."""
    _elementwise(flow, node, "never")


@rule(*_both(_SUMS))
def sums(flow: Flow, node: Node) -> None:
    refs, maps = node.refs, _maps_summed(flow, node)
    _elementwise(flow, node, "all", "residual sum" if maps else None)
    for ref in maps:
        for dim in flow.get(ref):
            flow.summed.extend(track.live_atoms() for track in dim if track.live)
    # A number added to a silent channel makes it speak.
    if len(refs) < 2 or any(isinstance(a, (int, float)) and a != 0 for a in node.args[1:2]):
        out = node.outputs[0]
        if out is not None:
            for dim in flow.get(out):
                for track in dim:
                    track.lose_zero()


def _maps_summed(flow: Flow, node: Node) -> list[Ref]:
    """The feature maps of a residual, which some methods protect; none for the addition of a bias or a number."""
    if node.op.rstrip("_") not in ("add", "sub", "maximum", "minimum", "lerp"):
        return []
    maps = [ref for ref in node.refs if ref.value not in flow.parameters and len(flow.shape(ref)) >= 3]
    return maps if len(maps) >= 2 and flow.shape(maps[0]) == flow.shape(maps[1]) else []


@rule(*_both(_PRODUCTS))
def products(flow: Flow, node: Node) -> None:
    refs = node.refs
    division = node.op.rstrip("_") in ("div", "floor_divide", "true_divide") and len(refs) > 1
    if division:
        for dim in flow.get(refs[1]):
            for track in dim:
                if track.zero:
                    flow.pin(track, "divided by, though zero when silenced")
    _elementwise(flow, node, "never" if division or "masked" in node.op else "any")
    out = node.outputs[0]
    if division and out is not None and out != refs[0] and flow.shape(out) == flow.shape(refs[0]):
        for new, old in zip(flow.get(out), flow.get(refs[0]), strict=True):
            for track in new:  # a quotient is zero where its numerator is
                track.own_zero = bool(old) and all(t.zero for t in old)


@rule("_prelu_kernel", "prelu")
def prelu(flow: Flow, node: Node) -> None:
    """max(x, 0) + weight * min(x, 0): zero where x is."""
    _elementwise(flow, node, "never")
    x, out = flow.get(node.args[0]), flow.get(node.outputs[0])  # type: ignore[arg-type]
    for new, old in zip(out, x, strict=True):
        for track in new:
            track.own_zero = bool(old) and all(t.zero for t in old)


@rule("copy_", "copy")
def copy(flow: Flow, node: Node) -> None:
    """self.copy_(source): what was FREE in self takes the source's labels."""
    target, source = node.args[:2]
    layout = flow.broadcast([target, source], flow.shape(target), "copied into", "never")
    rank = len(flow.shape(target)) - len(flow.shape(source))
    spoken = [()] * rank + flow.get(source)
    for new, old in zip(layout, spoken, strict=True):
        for track, origin in zip(new, old, strict=False):
            track.own_zero = origin.zero
    _finish(flow, node, layout)


@rule("bernoulli_", "uniform_", "normal_", "fill_", "zero_", "random_", "exponential_")
def refill(flow: Flow, node: Node) -> None:
    """Overwritten with numbers that know no channel: the labels stay."""
    if node.op != "zero_":
        for dim in flow.get(node.args[0]):
            for track in dim:
                track.lose_zero()
    flow.wrote_constants(node.args[0])


@rule("_assert_async", "_assert_tensor_metadata", "set_", "record_stream", "sym_size", "sym_numel", "is_same_size",
      "equal")  # fmt: skip
def nothing(flow: Flow, node: Node) -> None:
    """Looks at tensors without passing anything on."""
