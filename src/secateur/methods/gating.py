"""Methods that remove no channel but decide for every input which to compute, and how much that comes to."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import nn

from secateur.methods.protocol import Method


@dataclass
class Executed:
    """Multiply-accumulates of a network that leaves channels out.

    Attributes:
        dense: of one sample when nothing is left out, without the gates.
        total: those executed so far, the gates' own included.
        samples: in how many samples.
    """

    dense: float
    total: float = 0.0
    samples: int = 0

    @property
    def mean(self) -> float:
        """Of an average sample; NaN before the first."""
        return self.total / self.samples if self.samples else float("nan")

    def add_other_processes(self) -> None:
        """Count what all processes have executed; every one of them has to call it."""
        if dist.is_available() and dist.is_initialized():
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            both = torch.tensor([self.total, float(self.samples)], dtype=torch.float64, device=device)
            dist.all_reduce(both)
            self.total, self.samples = float(both[0]), int(both[1])


class Gating(Method):
    """Base of methods that gate channels per input: they stay attached when the training is over."""

    prunes: ClassVar[bool] = False

    @property
    @abstractmethod
    def gates(self) -> nn.Module:
        """The modules that decide, which are no part of the network; their weights belong beside the network's."""

    @abstractmethod
    def counting(self) -> AbstractContextManager[Executed]:
        """Meanwhile, what the network executes in its forward passes is counted."""
