"""Reductions, and operators that mix the elements along a dimension."""

from __future__ import annotations

from secateur.graph.capture import Node
from secateur.graph.flow import Flow, argument
from secateur.graph.labels import Layout, copied
from secateur.graph.rules.table import rule

# Sums of zeros: removed elements contribute nothing where they are zero.
_ADDITIVE = ("sum", "nansum", "linalg_vector_norm", "norm", "any", "count_nonzero")
_REDUCTIONS = ("mean", "amax", "amin", "max", "min", "argmax", "argmin", "var", "std", "var_mean", "std_mean", "prod",
               "all", "logsumexp", "median", "nanmedian", "nanmean", "mode", "aminmax")  # fmt: skip
_DIM_AT = {"linalg_vector_norm": 2, "norm": 2}


def _dims(node: Node, rank: int) -> list[int]:
    """The dimensions reduced over; all of them if none is given."""
    dim = argument(node, _DIM_AT.get(node.op, 1), "dim")
    if isinstance(dim, bool) or dim is None or dim == []:
        return list(range(rank))
    return [d % rank for d in ([dim] if isinstance(dim, int) else dim)] if rank else []


@rule(*_ADDITIVE, *_REDUCTIONS)
def reduction(flow: Flow, node: Node) -> None:
    x = node.args[0]
    layout, rank = flow.get(x), len(flow.shape(x))
    if len(node.args) > 1 and not isinstance(node.args[1], (int, float, list, tuple, str, type(None))):
        return flow.barrier(f"{node.op} of two tensors")  # max(a, b) arrives as maximum; anything else is unknown
    over = _dims(node, rank)
    # Norms of order zero and below look at the smallest.
    least = node.op in _DIM_AT and not float(argument(node, 1, "ord", 2)) > 0
    for d in over:
        for track in layout[d]:
            if not (node.op in _ADDITIVE and track.zero and not least):
                flow.pin(track, f"{node.op} over this dimension")
    zero = False if node.op == "logsumexp" else None
    kept: Layout = copied([dim for d, dim in enumerate(layout) if d not in over], zero)
    full: Layout = copied([() if d in over else dim for d, dim in enumerate(layout)], zero)
    for out in node.outputs:
        if out is not None:
            flow.set(out, full if len(flow.shape(out)) == rank else kept)
    return None


@rule("kthvalue", "unfold")
def along(flow: Flow, node: Node) -> None:
    """The k-th smallest along a dimension, or windows that slide along it and stand in a new one at the end."""
    layout, d = list(flow.get(node.args[0])), argument(node, 2 if node.op == "kthvalue" else 1, "dim", -1)
    d %= max(1, len(layout))
    flow.pin(layout[d], f"{node.op} along this dimension")
    for out in node.outputs:
        rank = len(flow.shape(out)) if out is not None else 0
        rest = [*layout[:d], *[()] * (rank >= len(layout)), *layout[d + 1 :]]
        flow.set(out, copied([*rest, *[()] * (rank - len(rest))], zero=None if node.op == "unfold" else False))


@rule("triu", "triu_", "tril", "tril_", "diagonal", "diag_embed")
def triangle(flow: Flow, node: Node) -> None:
    """Picked by place in a plane."""
    x, out = node.args[0], node.outputs[0]
    layout, rank = list(flow.get(x)), len(flow.shape(x))
    diagonal = node.op == "diagonal"
    plane = [argument(node, 2, "dim1", 0), argument(node, 3, "dim2", 1)] if diagonal else [-2, -1]
    if node.op == "diag_embed":
        if [argument(node, 2, "dim1", -2), argument(node, 3, "dim2", -1)] != [-2, -1]:
            return flow.barrier("diagonal matrices in unusual dimensions")
        plane = [-1]
    for d in plane:
        flow.pin(layout[d], "picked by place along this dimension")
    rest = [dim for d, dim in enumerate(layout) if d not in [p % rank for p in plane]]
    if out is not None and out != x:
        flow.set(out, copied([*rest, *[()] * (len(flow.shape(out)) - len(rest))]))
    return None


@rule("rot90")
def turn(flow: Flow, node: Node) -> None:
    layout = list(flow.get(node.args[0]))
    for d in argument(node, 2, "dims", (0, 1)):
        flow.pin(layout[d], "turned in this dimension")
        layout[d] = ()
    flow.set(node.outputs[0], copied(layout))


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "flip",
      "roll", "topk", "logcumsumexp", "cummax", "cummin", "renorm")  # fmt: skip
def mixing(flow: Flow, node: Node) -> None:
    """Every element along the dimension depends on all the others or on its place."""
    x = node.args[0]
    layout, rank = flow.get(x), len(flow.shape(x))
    position = {"roll": 2, "topk": 2, "renorm": 2}.get(node.op, 1)
    name = "dims" if node.op in ("flip", "roll") else "dim"
    dim = argument(node, position, name, () if name == "dims" else -1)
    dims = list(range(rank)) if dim in ([], ()) else [d % rank for d in ([dim] if isinstance(dim, int) else dim)]
    for d in dims:
        flow.pin(layout[d], f"{node.op.lstrip('_')} along this dimension")
    zero = None if node.op in ("flip", "roll", "cumsum") else False
    out = [() if d in dims else dim for d, dim in enumerate(layout)]
    for ref in node.outputs:
        flow.set(ref, copied(out, zero=zero))


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
      "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math")  # fmt: skip
def attention(flow: Flow, node: Node) -> None:
    """Scores are divided by a root of the head's width, which would change."""
    flow.barrier("attention scores, scaled by the width of a head")
