"""An exponential moving average of a network's weights, which often generalises better than the last weights.

Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; with exponential weights, and with a
decay that is smaller at first so that the beginning is forgotten, as TensorFlow's ExponentialMovingAverage has it:

    average <- d average + (1 - d) weights          d = min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ...

torch.optim.swa_utils.AveragedModel is not used: it copies the whole network with a pruning method's hooks in it, rounds
averages of whole numbers down, and waits for a GPU at every update. Here only tensors are kept, which change places
with the network's own, so that hooks act on the average as they do on the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.surgery.forms import persistent

__all__ = ["Average"]


class Average:
    """The average of a network's weights, and of the running statistics of its norms, over the updates.

    Statistics are averaged as the weights are: those of the last steps belong to other weights. What is no floating
    point number (a count, an index) is not averaged; the network's own holds.

    Args:
        model: the network, on the device where it is trained; its tensors must stay the same ones.
        decay: in (0, 1): the average reaches back about 1 / (1 - decay) updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        own = {name: t.detach() for name, t in persistent(model).items() if t.is_floating_point() or t.is_complex()}
        self.decay, self._updates = decay, 0
        self._own = list(own.values())
        self._averages = {name: tensor.clone() for name, tensor in own.items()}  # in the same memory layout

    @torch.no_grad()
    def update(self) -> None:
        """Behind every optimizer step."""
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_([*self._averages.values()], self._own, 1 - decay)
        self._updates += 1

    @torch.no_grad()
    def exchange(self) -> None:
        """The network gets the average, and its own weights are kept here; the second call undoes the first."""
        for average, own in zip(self._averages.values(), self._own, strict=True):
            before = own.clone()
            own.copy_(average)
            average.copy_(before)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network has the average for a while."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"updates": self._updates, "averages": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            KeyError, RuntimeError: it is of another network.
        """
        self._updates = int(state["updates"])
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])
