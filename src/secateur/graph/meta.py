"""What frequent operators give on meta tensors, told directly.

PyTorch finds the shapes of most results by running a Python decomposition of the operator on tensors without data: a
millisecond for a batch norm, many times what the rest of a trace takes. For plain operands the answer is evident, and
given here: the same shape, strides and type. Whatever is out of the ordinary (other memory formats, mixed types,
sizes that don't fit each other, which are errors) is left to PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_FLOATS = (torch.float32, torch.float64)
_META = torch.device("meta")
_PLAIN = frozenset(
    (type(None), int, float, bool, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
)  # what arguments beside tensors are


def call(func: Any, args: Sequence[Any], kwargs: dict[str, Any] | None, known: Answers | None = None) -> Any:
    """The result of an operator: told directly where it can be, computed by PyTorch otherwise.

    Args:
        func: the operator.
        args, kwargs: as it was called.
        known: what PyTorch computed before; what it computes now is added.
    """
    rule = _RULES.get(id(func))  # hashing an operator takes longer than what most rules do
    if rule is not None and not kwargs:
        out = rule(*args)
        if out is not None:
            return out
    if known is None or not _makes_tensors(func):
        return func(*args, **(kwargs or {}))
    key = _described((func.name(), torch.get_default_dtype(), args, kwargs or {}))
    forms = None if key is None else known.get(key)
    if forms is not None:
        made = [torch.empty_strided(size, strides, dtype=dtype, device=_META) for size, strides, dtype in forms]
        return made[0] if len(func._schema.returns) == 1 else tuple(made)
    out = func(*args, **(kwargs or {}))
    results = out if isinstance(out, tuple) else (out,)
    if key is not None and all(map(_is_meta, results)) and not _share(results, args):
        known[key] = [(item.shape, item.stride(), item.dtype) for item in results]
    return out


Answers = dict[
    Any, list[tuple[Any, ...]]
]  # operator with its arguments' forms -> (shape, strides, type) of its results


@cache
def _makes_tensors(func: Any) -> bool:
    """A function of PyTorch's own that makes new tensors, and nothing else, from others."""
    schema = func._schema
    if not any("Tensor" in str(item.type) for item in schema.arguments):
        return False
    plain = all(item.alias_info is None for item in (*schema.arguments, *schema.returns))
    return plain and schema.name.startswith("aten::") and all(str(item.type) == "Tensor" for item in schema.returns)


def _described(item: Any) -> Any:
    """Arguments with the forms of meta tensors in place of these; None if there is more to it than forms."""
    if type(item) is Tensor:
        return (item.shape, item.stride(), item.dtype) if _is_meta(item) else None
    if isinstance(item, (list, tuple)):
        parts = tuple([_described(part) for part in item])
        return None if None in parts else parts
    if isinstance(item, dict):
        return _described([*item.items()])
    return (type(item), item) if type(item) in _PLAIN else None


def _share(results: Sequence[Tensor], args: Sequence[Any]) -> bool:
    """A result is an argument, or shares its memory."""
    given = [item for part in args for item in (part if isinstance(part, (list, tuple)) else (part,))]
    memory = {item.untyped_storage()._cdata for item in given if isinstance(item, Tensor)}
    return any(item.untyped_storage()._cdata in memory for item in results)


def _is_meta(item: Any) -> bool:
    usual = type(item) is Tensor and item.is_meta and item.layout is torch.strided
    return usual and not item.is_complex() and not item.is_inference()


class Mode(TorchDispatchMode):
    """A mode whose own code is never compiled: without PyTorch's guard against that, which costs time at each call."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Answering(Mode):
    """While this is entered, operators on meta tensors cost little.

    Args:
        known: as for `call`.
    """

    def __init__(self, known: Answers | None = None) -> None:
        super().__init__()
        self.known = known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs, self.known)


@lru_cache(maxsize=8192)
def _strides(shape: torch.Size) -> tuple[int, ...]:
    strides, size = [], 1
    for n in reversed(shape):
        strides.append(size)
        size *= max(n, 1)
    return tuple(reversed(strides))


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """As `new_empty`, which PyTorch answers in Python."""
    return torch.empty(shape, dtype=like.dtype, device=_META)


def _plain(item: Any) -> bool:
    """A meta tensor of a usual type, laid out in the usual order; not empty."""
    return (
        type(item) is Tensor
        and item.is_meta
        and item.dtype in _FLOATS
        and item.stride() == _strides(item.shape)
        and 0 not in item.shape
    )


def _fits(item: Any, like: Tensor, shape: Sequence[int]) -> bool:
    """None, or a plain tensor of this shape and of the other's type."""
    return item is None or (_plain(item) and item.dtype == like.dtype and item.shape == tuple(shape))


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: Any, *numbers: Any) -> Any:
    if not _plain(x) or x.dim() < 2:
        return None
    size = (x.shape[1],)
    for item in (weight, bias, mean, var):
        if item is not None and not _fits(item, x, size):
            return None
    if x.numel() == x.shape[1] if training else (mean is None or var is None):
        return None
    return _empty(x.shape, x), _empty(size, x), _empty(size, x)


def _batch_norm_without_statistics(x: Any, weight: Any, bias: Any, training: Any, *numbers: Any) -> Any:
    return _batch_norm(x, weight, bias, None, None, training)


def _batch_norm_in_eval(x: Any, weight: Any, bias: Any, mean: Any, var: Any, *numbers: Any) -> Any:
    return _batch_norm(x, weight, bias, mean, var, False)


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: Any) -> Any:
    if not _plain(x) or not shape or len(shape) > x.dim() or x.shape[-len(shape) :] != tuple(shape):
        return None
    if not (_fits(weight, x, shape) and _fits(bias, x, shape)):
        return None
    each = (*x.shape[: -len(shape)], *(1 for _ in shape))
    return _empty(x.shape, x), _empty(each, x), _empty(each, x)


def _group_norm(x: Any, weight: Any, bias: Any, batch: Any, channels: Any, inner: Any, groups: Any, eps: Any) -> Any:
    if not _plain(x) or x.dim() < 2 or tuple(x.shape[:2]) != (batch, channels) or prod(x.shape[2:]) != inner:
        return None
    if groups < 1 or channels % groups or not (_fits(weight, x, (channels,)) and _fits(bias, x, (channels,))):
        return None
    return _empty(x.shape, x), _empty((batch, groups), x), _empty((batch, groups), x)


def _convolution(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: Any, extra: Any, groups: Any
) -> Any:
    if transposed or not _plain(x) or not _plain(weight) or x.dtype != weight.dtype:
        return None
    sizes, kernel = x.shape[2:], weight.shape[2:]
    # A map that is also laid out channels last may change the layout of the result.
    if x.dim() < 3 or weight.dim() != x.dim() or x.shape[1] == 1 or set(sizes) == {1}:
        return None
    if not len(sizes) == len(stride) == len(padding) == len(dilation):
        return None
    if groups < 1 or weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        return None
    if not _fits(bias, x, weight.shape[:1]) or min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        return None
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(sizes, padding, dilation, kernel, stride, strict=True)
    ]
    return _empty((x.shape[0], weight.shape[0], *out), x) if min(out) >= 1 else None


def _addmm(bias: Any, a: Any, b: Any) -> Any:
    if not _plain(a) or a.dim() != 2 or not _fits(bias, a, bias.shape):
        return None
    if not (type(b) is Tensor and b.is_meta and b.dtype == a.dtype and b.dim() == 2 and b.shape[0] == a.shape[1]):
        return None
    size = (a.shape[0], b.shape[1])
    return _empty(size, a) if bias.shape == size[1:] and size[1] else None


def _cat(tensors: Any, dim: Any = 0) -> Any:
    if not tensors:
        return None
    first = tensors[0]
    if not _plain(first) or not -first.dim() <= dim < first.dim():
        return None
    rank, dtype, shape = first.dim(), first.dtype, [*first.shape]
    dim %= rank
    shape[dim] = 0
    before, behind = tuple(shape[:dim]), tuple(shape[dim + 1 :])
    for item in tensors:
        size = item.shape
        if len(size) != rank or size[:dim] != before or size[dim + 1 :] != behind:
            return None
        if item.dtype is not dtype or not _plain(item) or (rank in (4, 5) and _channels_last(item)):
            return None
        shape[dim] += size[dim]
    return _empty(shape, first)


def _channels_last(item: Tensor) -> bool:
    """Laid out in the order of channels last as well."""
    shape = item.shape
    return shape[1] == 1 or (shape[-1] == 1 and set(shape[2:]) == {1})


def _same(x: Any, *numbers: Any) -> Any:
    """Element by element, on one tensor."""
    return _empty(x.shape, x) if _plain(x) and not any(isinstance(item, Tensor) for item in numbers) else None


def _same_along(x: Any, dim: Any, *rest: Any) -> Any:
    """Of the same shape, computed along a dimension."""
    return _empty(x.shape, x) if _plain(x) and not any(rest) and -x.dim() <= dim < x.dim() else None


def _in_place(x: Any, *numbers: Any) -> Any:
    plain = type(x) is Tensor and x.is_meta and x.dtype in _FLOATS
    return x if plain and not any(isinstance(item, Tensor) for item in numbers) else None


def _pair(x: Any, y: Any) -> Any:
    """Element by element, on two tensors, of which the first may be larger; or on one and a number."""
    if not _plain(x):
        return None
    if type(y) in (int, float):
        return _empty(x.shape, x)
    if not _plain(y) or y.dtype != x.dtype or not _spreads(y.shape, x.shape):
        return None
    return _empty(x.shape, x)


def _pair_in_place(x: Any, y: Any) -> Any:
    if type(x) is not Tensor or not x.is_meta:
        return None
    if type(y) is int:
        return x if x.dtype in (*_FLOATS, torch.int64) else None
    if type(y) is float:
        return x if x.dtype in _FLOATS else None
    return x if _plain(x) and _plain(y) and x.dtype == y.dtype and _spreads(y.shape, x.shape) else None


def _spreads(small: Sequence[int], large: Sequence[int]) -> bool:
    """By numpy's broadcasting one gives the other's shape."""
    if len(small) > len(large):
        return False
    return all(a in (1, b) for a, b in zip(reversed(small), reversed(large), strict=False))


def _mean(x: Any, dims: Any, keepdim: Any = False) -> Any:
    if not _plain(x) or not dims or not all(-x.dim() <= d < x.dim() for d in dims):
        return None
    gone = {d % x.dim() for d in dims}
    if len(gone) != len(dims):
        return None
    sizes = [1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone]
    return _empty(sizes, x)


def _max_pool(
    x: Any, kernel: Any, stride: Any = (), padding: Any = (0, 0), dilation: Any = (1, 1), ceil: Any = False
) -> Any:
    sizes = _pooled(x, kernel, stride, padding, dilation, ceil)
    if sizes is None:
        return None
    size = (*x.shape[:2], *sizes)
    return _empty(size, x), torch.empty(size, dtype=torch.int64, device=_META)


def _average_pool(
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = (0, 0),
    ceil: Any = False,
    count: Any = True,
    divisor: Any = None,
) -> Any:
    sizes = None if divisor == 0 else _pooled(x, kernel, stride, padding, (1, 1), ceil)
    return None if sizes is None else _empty((*x.shape[:2], *sizes), x)


def _pooled(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> list[int] | None:
    """Height and width of a pooled map; None if they are not evident."""
    stride = stride or kernel
    if not _plain(x) or x.dim() != 4 or not len(kernel) == len(stride) == len(padding) == len(dilation) == 2:
        return None
    if min(kernel) < 1 or min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        return None
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        return None
    sizes = []
    for n, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True):
        windows = (n + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil else 0)) // s + 1
        sizes.append(windows - 1 if ceil and (windows - 1) * s >= n + p else windows)  # the last begins in the map
    return sizes if min(sizes) >= 1 else None


def _resized(x: Any, sizes: Any, *rest: Any) -> Any:
    if not _plain(x) or x.dim() != len(sizes) + 2 or min(sizes) < 1:
        return None
    return _empty((*x.shape[:2], *sizes), x)


RULES: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit.default: _batch_norm,
    aten._native_batch_norm_legit.no_stats: _batch_norm_without_statistics,
    aten._native_batch_norm_legit_no_training.default: _batch_norm_in_eval,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten.convolution.default: _convolution,
    aten.addmm.default: _addmm,
    aten.cat.default: _cat,
    aten.mean.dim: _mean,
    aten.add.Tensor: _pair,
    aten.sub.Tensor: _pair,
    aten.mul.Tensor: _pair,
    aten.div.Tensor: _pair,
    aten.add_.Tensor: _pair_in_place,
    aten.mul_.Tensor: _pair_in_place,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _average_pool,
    aten._adaptive_avg_pool2d.default: _resized,
    aten.upsample_nearest2d.default: _resized,
    aten.upsample_bilinear2d.default: _resized,
    aten._softmax.default: _same_along,
    **dict.fromkeys(
        (
            aten.relu.default,
            aten.gelu.default,
            aten.silu.default,
            aten.sigmoid.default,
            aten.tanh.default,
            aten.elu.default,
            aten.leaky_relu.default,
            aten.hardtanh.default,
            aten.hardswish.default,
            aten.hardsigmoid.default,
            aten.mul.Scalar,
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            aten.relu_.default,
            aten.silu_.default,
            aten.leaky_relu_.default,
            aten.hardtanh_.default,
            aten.hardswish_.default,
        ),
        _in_place,
    ),
}

_RULES = {id(func): rule for func, rule in RULES.items()}
