"""Gates that decide for every input which channels of a layer are computed, and what shapes and closes them.

For the features z of one sample, averaged over space, and a layer with C channels,

    l = W2 relu(BN(W1 z)) + b2                        logits, (C)
    g = 1 where l + n > 0, else 0                     n: logistic noise while training, 0 otherwise

so that a gate is open with probability p = sigmoid(l). The step has no gradient: backwards it is taken for
sigmoid((l + n) / t), the binary concrete relaxation with temperature t (straight-through).

Batch shaping is the squared Cramer-von Mises distance between the p of one gate over a batch of N samples and a Beta
distribution with the cumulative distribution F: with p_(1) <= ... <= p_(N),

    1 / N  sum over i of (i / (N + 1) - F(p_(i)))^2

All gradients are written with respect to logits: there they are bounded, while the Beta density is not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from scipy.special import beta as beta_function
from scipy.special import betainc
from torch import Tensor, nn

HIDDEN = 16
TEMPERATURE = 2 / 3


def cdf(probabilities: Tensor, a: float, b: float) -> Tensor:
    """The cumulative distribution function of Beta(a, b), of the tensor's type."""
    values = betainc(a, b, probabilities.detach().double().cpu().numpy())
    return torch.from_numpy(values).to(probabilities)


def _distances(logits: Tensor, a: float, b: float) -> Tensor:
    """Empirical minus wanted distribution function at every logit, (N, C)."""
    ranks = logits.argsort(dim=0, stable=True).argsort(dim=0) + 1
    return ranks.to(logits.dtype) / (len(logits) + 1) - cdf(logits.detach().sigmoid(), a, b)


def batch_shaping(logits: Tensor, a: float, b: float) -> Tensor:
    """The distance of every gate's probabilities from Beta(a, b), (N, C) -> (C)."""
    return _distances(logits, a, b).square().mean(0)


def batch_shaping_gradient(logits: Tensor, a: float, b: float) -> Tensor:
    """d batch_shaping / d logits, (N, C): -2 / N (e - F(p)) f(p) p (1 - p), f the density."""
    p = logits.detach().sigmoid()
    slope = p**a * (-logits.detach()).sigmoid() ** b / float(beta_function(a, b))
    return -2 / len(logits) * _distances(logits, a, b) * slope


class _Step(torch.autograd.Function):
    """1 where positive; backwards sigmoid(. / TEMPERATURE)."""

    @staticmethod
    def forward(ctx: Any, noisy: Tensor) -> Tensor:
        ctx.save_for_backward(noisy)
        return (noisy > 0).to(noisy.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (noisy,) = ctx.saved_tensors
        soft = torch.sigmoid(noisy / TEMPERATURE)
        return gradients[0] * soft * (1 - soft) / TEMPERATURE


class _Plus(torch.autograd.Function):
    """The same forwards; backwards a gradient is added, as a term of the loss would add it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] + ctx.saved_tensors[0], None


def step(logits: Tensor, noise: Tensor | None = None) -> Tensor:
    """The gates, 0 or 1, (N, C)."""
    return _Step.apply(logits if noise is None else logits + noise)


def with_gradient(values: Tensor, gradient: Tensor) -> Tensor:
    """`values`, in whose backward pass `gradient` is added to what comes from behind: what adding a term to the loss
    would do whose gradient in `values` is this."""
    return _Plus.apply(values, gradient)


def logistic(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Logistic noise, the difference of two Gumbel variables, in float64 on the CPU."""
    return torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-300).logit()


class Gate(nn.Module):
    """The network that makes a layer's logits.

    Args:
        inputs: channels that the layer reads.
        outputs: channels that it makes, C.
        open: the probability, to begin with, that a gate is open.
        generator: of the first weights.
    """

    def __init__(
        self, inputs: int, outputs: int, open: float, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, HIDDEN, bias=False, dtype=dtype)
        self.norm = nn.BatchNorm1d(HIDDEN, dtype=dtype)
        self.second = nn.Linear(HIDDEN, outputs, dtype=dtype)
        with torch.no_grad():
            for layer in (self.first, self.second):
                nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
            self.second.bias.fill_(torch.tensor(open, dtype=torch.float64).logit().item())

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample."""
        return self.first.weight.numel() + self.second.weight.numel()

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, ...) -> logits (N, C). A batch of one is normalised by the running statistics."""
        with torch.autocast(features.device.type, enabled=False):
            pooled = features.to(self.first.weight.dtype).flatten(2).mean(2)
            norm, hidden = self.norm, self.first(pooled)
            hidden = F.batch_norm(
                hidden,
                norm.running_mean,
                norm.running_var,
                norm.weight,
                norm.bias,
                self.training and len(hidden) > 1,
                norm.momentum or 0.0,
                norm.eps,
            )
            return self.second(hidden.relu())
