"""Tensors that a method trains beside the network, with an optimizer of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.methods.protocol import Training


class Beside:
    """Tensors of a method's own that train beside the network: SGD with the training's momentum, or Adam where the
    training's optimizer is adaptive; without weight decay.

    Attributes:
        parameters: the tensors; set `.grad` before `step`.
        lr: learning rate where none is told, by step or by schedule.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float = 0.01) -> None:
        self.parameters, self.lr = list(parameters), lr
        self._adaptive, self._momentum, self._mean_lr = False, 0.0, 0.0
        self._optimizer = self._make()

    def _make(self) -> torch.optim.Optimizer | None:
        if not self.parameters:
            return None
        if self._adaptive:
            return torch.optim.Adam(self.parameters, self.lr)
        return torch.optim.SGD(self.parameters, self.lr, momentum=self._momentum)

    def to(self, devices: Sequence[torch.device]) -> None:
        """Move the tensors, one device for each, and what the optimizer keeps of them."""
        for parameter, device in zip(self.parameters, devices, strict=True):
            if parameter.device != device:
                parameter.grad, waiting = None, parameter.grad
                parameter.data = parameter.data.to(device)
                parameter.grad = None if waiting is None else waiting.to(device)
                state = {} if self._optimizer is None else self._optimizer.state.get(parameter, {})
                moved = {k: v.to(device) for k, v in state.items() if isinstance(v, Tensor) and v.dim()}
                state.update(moved)

    def begin(self, training: Training) -> None:
        """Learn the optimizer and the schedule."""
        self._adaptive, self._momentum = training.adaptive, training.momentum
        self._mean_lr = training.lr_sum / training.steps if training.steps > 0 else 0.0
        self._optimizer = self._make()

    def step(self, lr: float | None) -> None:
        """One step with the gradients that are there. A step whose gradients are not finite, as a gradient scaler
        skips them, counts as one of zero gradients."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self._optimizer is None or not gradients:
            return
        finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
        for gradient in gradients:
            gradient.copy_(torch.where(finite, gradient, 0))
        self._optimizer.param_groups[0]["lr"] = lr if lr is not None else self._mean_lr or self.lr
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The tensors, gradients that wait for a step, and the optimizer."""
        return {
            "values": [p.detach().clone() for p in self.parameters],
            "gradients": {i: p.grad.clone() for i, p in enumerate(self.parameters) if p.grad is not None},
            "adaptive": self._adaptive,
            "momentum": self._momentum,
            "mean_lr": self._mean_lr,
            "optimizer": {} if self._optimizer is None else copy.deepcopy(self._optimizer.state_dict()),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._adaptive, self._momentum = bool(state["adaptive"]), float(state["momentum"])
        self._mean_lr = float(state["mean_lr"])
        self._optimizer = self._make()
        for i, (parameter, value) in enumerate(zip(self.parameters, state["values"], strict=True)):
            parameter.copy_(value)
            waiting = state["gradients"].get(i)
            parameter.grad = None if waiting is None else waiting.to(parameter.device, copy=True)
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
