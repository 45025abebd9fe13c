"""One call of an operator as far as its time depends on it: kind, shapes, options; no values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True, slots=True)
class Shaped:
    """A tensor argument; `indices` are whole numbers, all zero, which is always within bounds."""

    shape: tuple[int, ...]
    indices: bool = False

    def __str__(self) -> str:
        return f"{_sizes(self.shape) or 'number'}{' indices' if self.indices else ''}"

    def made(self, device: torch.device, dtype: torch.dtype, channels_last: bool) -> Tensor:
        if self.indices:
            tensor = torch.zeros(self.shape, device=device, dtype=torch.int64)
        else:
            tensor = torch.ones(self.shape, device=device, dtype=dtype)
        return _formatted(tensor, channels_last)


@dataclass(frozen=True, slots=True)
class Operator:
    """What is timed.

    Attributes:
        kind: "convolution", "transposed convolution", "product" (of matrices; a linear layer), "elementwise", or the
            name of the ATen operator that `target` is.
        shape: of the input: (N, C, ...) of a convolution, (batch, rows, inner) of a product, (elements,); of the
            largest tensor that `target` reads or makes.
        out: output channels, or columns.
        kernel, stride, padding, dilation, output_padding, groups: of a convolution.
        bias: something is added for every output channel.
        channels_last: the memory format of input and weight.
        target, arguments: another operator as it was called, with `Shaped` in the place of tensors.
    """

    kind: str
    shape: tuple[int, ...]
    out: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    channels_last: bool = False
    target: Callable[..., Any] | None = field(default=None, compare=False)
    arguments: tuple[Any, ...] = ()

    def __str__(self) -> str:
        """The key in a table's file."""
        parts = [f"{self.kind} of {_sizes(self.shape)}"]
        if self.target is not None:
            parts.append(f"called with {', '.join(map(str, self.arguments))}")
        elif self.kind != "elementwise":
            parts.append(f"to {self.out}")
        if self.kernel:
            parts += [
                f"{name} {_sizes(getattr(self, name))}"
                for name in ("kernel", "stride", "padding", "dilation", "output_padding")
            ]
            parts.append(f"groups {self.groups}")
        parts += [name.replace("_", " ") for name in ("bias", "channels_last") if getattr(self, name)]
        return ", ".join(parts)

    @property
    def work(self) -> float:
        """Multiply-accumulates, or elements: what the time roughly goes with."""
        if not self.kernel:
            return float(math.prod(self.shape) * self.out)
        skipped = math.prod(self.stride) if self.kind == "convolution" else 1
        return math.prod(self.shape) / skipped * math.prod(self.kernel) * self.out / self.groups

    def prepared(self, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
        """A function that makes the call, on tensors that exist already."""

        def ones(*shape: int) -> Tensor:
            return torch.ones(shape, device=device, dtype=dtype)

        if self.target is not None:
            arguments = (
                item.made(device, dtype, self.channels_last) if isinstance(item, Shaped) else item
                for item in self.arguments
            )
            return partial(self.target, *arguments)
        if self.kind == "elementwise":
            x = ones(*self.shape)
            return lambda: torch.relu(x)
        bias = ones(self.out) if self.bias else None
        if self.kind == "product":
            batch, rows, inner = self.shape
            if batch == 1:
                x, weight = ones(rows, inner), ones(self.out, inner)
                return lambda: F.linear(x, weight, bias)
            x, weight = ones(batch, rows, inner), ones(batch, inner, self.out)
            return lambda: torch.bmm(x, weight)
        transposed, channels = self.kind == "transposed convolution", self.shape[1]
        sides = (channels, self.out // self.groups) if transposed else (self.out, channels // self.groups)
        x, weight = ones(*self.shape), ones(*sides, *self.kernel)
        x, weight = (_formatted(tensor, self.channels_last) for tensor in (x, weight))
        options = (self.stride, self.padding, self.dilation, transposed, self.output_padding, self.groups)
        return lambda: torch.convolution(x, weight, bias, *options)


def _formatted(tensor: Tensor, channels_last: bool) -> Tensor:
    if channels_last and tensor.dim() in _LAST:
        return tensor.contiguous(memory_format=_LAST[tensor.dim()])
    return tensor


def _sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
