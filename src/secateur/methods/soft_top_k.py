"""ACoSP's soft choice of k among n, for many groups at once.

Weights are rows, (G, C): a group has n of the C places, the others are zero; `there` (bool, same shape) says which.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HOTTEST, COLDEST = 1.0, 0.001
_LEAST_STD = 1e-3


def normalised(weights: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Every row to mean 0 and standard deviation 1 (with n - 1, of 1e-3 at least); and the deviation (G, 1) it had."""
    n = there.sum(1, keepdim=True)
    centred = (weights - (weights * there).sum(1, keepdim=True) / n) * there
    std = (centred.square().sum(1, keepdim=True) / (n - 1)).sqrt()
    return centred / std.clamp_min(_LEAST_STD), std


def normalised_backward(gradient: Tensor, normed: Tensor, std: Tensor, there: Tensor) -> Tensor:
    """The gradient of the weights from that of `normed`, which `normalised` made of them with `std`."""
    n = there.sum(1, keepdim=True)
    spread = torch.where(std > _LEAST_STD, normed * (gradient * normed).sum(1, keepdim=True) / (n - 1), 0)
    return (gradient - gradient.sum(1, keepdim=True) / n - spread) / std.clamp_min(_LEAST_STD) * there


def thresholds(normed: Tensor, there: Tensor, kept: Tensor) -> Tensor:
    """x0 of every row, (G, 1): the quantile 1 - kept / n, interpolated as `torch.quantile` does."""
    n = there.sum(1, keepdim=True)
    position = (n - kept) * (n - 1) / n.double()
    low = position.long()
    ordered = normed.masked_fill(~there, math.inf).sort(1).values
    return torch.lerp(ordered.gather(1, low), ordered.gather(1, low + 1), (position - low).to(normed.dtype))


def soft_masks(weights: Tensor, there: Tensor, kept: Tensor, tau: float) -> Tensor:
    """(G, C): sigmoid((w_norm - x0) / tau); ones in groups that keep all."""
    normed, _ = normalised(weights, there)
    soft = torch.sigmoid((normed - thresholds(normed, there, kept)) / tau)
    return torch.where(kept < there.sum(1, keepdim=True), soft, 1)


def temperature(epoch: int, start: int, end: int) -> float:
    """tau in an epoch (0-based): 1 up to the start, 0.001 at the end, log-linear between."""
    done = min(max((epoch - start) / (end - start), 0.0), 1.0)
    return math.exp((1 - done) * math.log(HOTTEST) + done * math.log(COLDEST))


def shares(masks: Tensor) -> dict[str, float]:
    """Which shares of the masks are above 0.99, below 0.01, and neither."""
    chosen, pruned, n = int((masks > 0.99).sum()), int((masks < 0.01).sum()), masks.numel()
    return {"chosen": chosen / n, "pruned": pruned / n, "undecided": (n - chosen - pruned) / n}
