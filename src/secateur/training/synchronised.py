"""Batch norms whose statistics are those of the batches of all processes, as if one had seen them together.

torch.nn.SyncBatchNorm refuses tensors on the CPU and is a module of another class, which is neither traced nor cut as
the batch norm that it stands for. Here the modules stay the batch norms that they are, with their names, tensors and
hooks; for the time of a training they only compute their forward pass otherwise.

Of process r, with n_r values per channel, mean m_r and biased variance v_r, and N the sum of the n_r (Chan, Golub and
LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979):

    mean = sum n_r m_r / N          variance = sum n_r (v_r + (m_r - mean)^2) / N

which does not lose digits where a mean is large, as the mean of the squares would. Both sums are differentiable: the
gradient of a sum over processes is the sum of the processes' gradients. Running statistics move by the mean and by
variance * N / (N - 1), as torch's do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["synchronised"]


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Meanwhile the network's batch norms take the statistics of all processes while they train; in eval mode, in a
    process alone and afterwards, they are as before. Every process must run the same forward passes.

    Batch norms that compute their forward pass in a way of their own, such as torch's SyncBatchNorm, are left alone.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    norms = [m for m in model.modules() if _is_plain(m)] if several else []
    for norm in norms:
        norm.forward = MethodType(_forward, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and getattr(module.forward, "__func__", None) is _BatchNorm.forward


def _forward(norm: _BatchNorm, features: Tensor) -> Tensor:
    """(N, C, ...) -> the same shape and type, computed in float32 at least."""
    if not norm.training:
        return _BatchNorm.forward(norm, features)
    norm._check_input_dim(features)
    values = features.to(torch.promote_types(features.dtype, torch.float32))
    mean, variance, count = _statistics(values)
    if norm.track_running_stats and norm.running_mean is not None:
        _follow(norm, mean.detach(), variance.detach() * (count / (count - 1)))
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    shape = [1, -1, *[1] * (features.dim() - 2)]
    return (values * scale.view(shape) + shift.view(shape)).to(features.dtype)


def _statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of every channel over all processes, (C); and how many values each has, a scalar."""
    own, mean = torch.var_mean(values, [dim for dim in range(values.dim()) if dim != 1], correction=0)
    count = values.new_tensor([values.numel() // values.shape[1]])
    sums = _SumOverProcesses.apply(torch.cat([mean * count, count]))
    total = sums[-1].detach()
    whole = sums[:-1] / total
    squares = _SumOverProcesses.apply((own + (mean - whole).square()) * count)
    return whole, squares / total, total


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Moves the running statistics towards those of the step."""
    assert norm.num_batches_tracked is not None and norm.running_mean is not None and norm.running_var is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum  # None: a plain average
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of every process's tensor, which all of them get; and so backwards for the gradients."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        return _summed(own)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(own: Tensor) -> Tensor:
    total = own.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
