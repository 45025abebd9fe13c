"""CCGN, conditional channel gated network: a small network at every residual block decides, image by image, which
channels to compute.

Bejnordi, Blankevoort and Welling, Batch-Shaping for Learning Conditional Channel Gated Networks, ICLR 2020
(arXiv:1907.06627); the authors' later release of the loss, github.com/qualcomm-ai-research/batchshaping. CAP's baseline
of conditional computation (its Table 3). It removes no channel: what falls is the average number of executed
multiply-accumulates.

    gates       global average pooling of what the convolution reads, two linear layers with a batch norm and a ReLU
                between them (16 hidden), binary concrete gates of temperature 2/3, straight-through; see `gates`
    L_BS        gamma * sum over gates of the squared Cramer-von Mises distance between the gate's probabilities over a
                batch and Beta(0.6, 0.4); gamma = 0.75, fading linearly
    L_0         lambda * the expected share of open gates, sigmoid(logit) each

Choices where the sources at hand are silent, or differ from each other:
- *Where.* The first convolution of every branch of a residual sum, behind its batch norm, which before a ReLU is the
  same as behind it. In networks without such sums, every convolution whose channels could be removed.
- *When.* L_BS fades over the first part of the training (`warm_up`), L_0 acts in the rest.
- *Batch shaping* acts on sigmoid(logit), without noise, and is averaged over the batch of one process.
- *The two terms* are added where their gradients arise, at the logits in the network's own backward pass: what is
  trained is the loss plus both, in anybody's loop. A gradient scaler would shrink them: with float16 it is refused.
- *First gates.* Open with probability `open`, so that a trained network is not destroyed at once.
- *Optimizer.* Gates train by SGD with the training's momentum, or Adam where the training's optimizer is adaptive, at
  the training's learning rate, without weight decay.
- *A batch of one image* is normalised by the gate's running statistics, and says nothing of how gates differ.
- *Executed MACs.* A unit is left out of a sample when all gates at the layers that make it are closed: neither it nor
  what reads it is computed. The gates' own are added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.costs import CostModel
from secateur.errors import MethodError
from secateur.graph import Graph, state_of
from secateur.methods.beside import Beside
from secateur.methods.gated_layers import GatedLayer, made_only_by, silent_units, sites_to_gate
from secateur.methods.gates import Gate, batch_shaping_gradient, logistic, step, with_gradient
from secateur.methods.gating import Executed, Gating
from secateur.methods.protocol import Training
from secateur.methods.soft import share_between


@dataclass
class CCGN(Gating):
    """Gates on channels, shaped so that they differ from image to image, then closed as far as the loss lets them."""

    name = "ccgn"
    summary = "gates channels per input, shaped over the batch; it removes none"
    paper = "Bejnordi et al., Batch-Shaping for Learning Conditional Channel Gated Networks, ICLR 2020"
    needs_training = True

    layers: str | list[str] | tuple[str, ...] = field(
        default="blocks",
        metadata={"help": "gated convolutions: blocks (the first of residual branches; else all), all, or names"},
    )
    gamma: float = field(default=0.75, metadata={"help": "strength of batch shaping, at the beginning"})
    lam: float = field(default=1.0, metadata={"help": "lambda, strength of the L0 term: on the share of open gates"})
    a: float = field(default=0.6, metadata={"help": "of the Beta distribution that gates are shaped to"})
    b: float = field(default=0.4, metadata={"help": "of the Beta distribution that gates are shaped to"})
    warm_up: float = field(
        default=0.5, metadata={"help": "share of the training over which batch shaping fades; then the L0 term acts"}
    )
    open: float = field(default=0.9, metadata={"help": "probability, to begin with, that a gate is open"})
    lr: float = field(default=0.01, metadata={"help": "learning rate of the gates, where the training tells none"})
    seed: int = field(default=0, metadata={"help": "of the gates' first weights and their noise"})

    def __post_init__(self) -> None:
        share_between("warm_up", self.warm_up)
        if not 0 < self.open < 1:
            raise MethodError(f"open {self.open}: a probability above 0 and below 1 was expected")
        if not (self.a > 0 and self.b > 0 and self.lr > 0):
            raise MethodError(f"a {self.a}, b {self.b}, lr {self.lr}: all three must be above 0")
        if self.gamma < 0 or self.lam < 0:
            raise MethodError(f"gamma {self.gamma}, lam {self.lam}: neither can be negative")
        self._layers: list[GatedLayer] = []

    def start(self, graph: Graph) -> None:
        self.stop()
        state, generator = state_of(graph.model), torch.Generator().manual_seed(self.seed)
        self._graph, self._layers = graph, []
        for site in sites_to_gate(graph, list(self.layers) if isinstance(self.layers, tuple) else self.layers):
            weight = state[site.weight]
            dtype = torch.promote_types(weight.dtype, torch.float32)
            inputs = weight.shape[0] if site.transposed else weight.shape[1]
            gate = Gate(inputs, len(site.units), self.open, generator, dtype).to(weight.device)
            self._layers.append(GatedLayer(site, gate, self._decide))
        self._gates = nn.ModuleDict({layer.site.module.replace(".", "/"): layer.gate for layer in self._layers})
        self._beside = Beside(list(self._gates.parameters()), self.lr)
        self._step = self._steps = self._draws = 0  # steps done; in all, 0 if not told; draws of noise
        self._ready: list[Tensor | None] = []  # gradients of a step that is owed
        self._seen = [0] * len(self._layers)  # samples of the epoch, in which so many gates were open:
        self._opened = [torch.zeros(len(layer.site.units), dtype=torch.float64) for layer in self._layers]
        self._told: dict[str, float] = {}
        for layer in self._layers:
            layer.attach(graph.model)

    @property
    def gated(self) -> tuple[str, ...]:
        """Names of the gated convolutions."""
        return tuple(layer.site.module for layer in self._layers)

    @property
    def gates(self) -> nn.Module:
        """The gates, by the names of their convolutions with / in the place of dots."""
        return self._gates

    def begin(self, training: Training) -> None:
        self._steps = training.steps
        self._beside.begin(training)

    # -- the forward pass ---------------------------------------------------------------------------------------------

    def _decide(self, layer: GatedLayer, features: Tensor, training: bool) -> Tensor:
        """The gates (N, C) for what a layer reads."""
        self._follow(features.device)
        layer.gate.train(training)
        logits: Tensor = layer.gate(features)
        if not training:
            return step(logits)
        if torch.is_grad_enabled():
            _refuse_float16(features)
            logits = with_gradient(logits, self._pull(logits.detach()))
        gates = step(logits, self._noise(logits))
        number = self._layers.index(layer)
        self._opened[number] = self._opened[number].to(gates.device) + gates.detach().sum(0)
        self._seen[number] += len(gates)
        return gates

    def _follow(self, device: torch.device) -> None:
        """Have the gates where the network is."""
        if any(parameter.device != device for parameter in self._beside.parameters[:1]):
            self._beside.to([device] * len(self._beside.parameters))
            for layer in self._layers:
                layer.gate.to(device)

    def _noise(self, logits: Tensor) -> Tensor:
        """Logistic noise for this process's part of the batch; the same after an interruption."""
        rank, of = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
        self._draws += 1
        generator = torch.Generator().manual_seed((self.seed << 32) + self._draws)
        return logistic((len(logits) * of, logits.shape[1]), generator)[rank * len(logits) :][: len(logits)].to(logits)

    @property
    def _strengths(self) -> tuple[float, float]:
        """gamma and lambda as they are now."""
        done = self._step / self._steps if self._steps else 0.0
        if done >= self.warm_up:
            return 0.0, self.lam
        return self.gamma * (1 - done / self.warm_up), 0.0

    def _pull(self, logits: Tensor) -> Tensor:
        """The gradient of both terms in a layer's logits, (N, C)."""
        gamma, lam = self._strengths
        total = torch.zeros_like(logits)
        if gamma:
            total += gamma * batch_shaping_gradient(logits, self.a, self.b)
        if lam:
            p = logits.sigmoid()
            total += lam / (len(logits) * sum(map(len, self._opened))) * p * (1 - p)
        return total

    # -- training -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def after_backward(self) -> None:
        if not self._steps:
            raise MethodError(
                "method ccgn lets batch shaping fade over the training: tell its length, "
                "pruner.begin(steps=..., lr_sum=...)"
            )
        self._step += 1
        self._ready = self._swap([None] * len(self._beside.parameters))
        if _distributed():
            buffers = [buffer for buffer in self._gates.buffers() if buffer.is_floating_point()]
            for tensor in (*(gradient for gradient in self._ready if gradient is not None), *buffers):
                dist.all_reduce(tensor)
                tensor /= dist.get_world_size()

    def _swap(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Give the gates other gradients; returns those that they had."""
        had = [parameter.grad for parameter in self._beside.parameters]
        for parameter, gradient in zip(self._beside.parameters, gradients, strict=True):
            parameter.grad = gradient
        return had

    def after_step(self, lr: float | None = None) -> None:
        if self._ready:
            following = self._swap(self._ready)  # of the next backward pass, in loops that do not call this
            self._beside.step(lr)
            self._swap(following)
            self._ready = []

    def after_epoch(self, epoch: int) -> None:
        if not all(self._seen):
            return
        shares = torch.cat([gates.cpu() / seen for gates, seen in zip(self._opened, self._seen, strict=True)])
        conditional = (shares > 0.01) & (shares < 0.99)
        self._told = {"gates_open": float(shares.mean()), "gates_conditional": float(conditional.double().mean())}
        self._seen, self._opened = [0] * len(self._seen), [torch.zeros_like(gates) for gates in self._opened]

    def log(self) -> dict[str, float]:
        """The share of gates that were open in the epoch, and of those that were neither always nor never; gamma and
        lambda as they are now."""
        gamma, lam = self._strengths
        return {**self._told, "gamma": gamma, "lambda": lam}

    def stop(self) -> None:
        for layer in self._layers:
            layer.detach()

    # -- what is executed ---------------------------------------------------------------------------------------------

    @contextmanager
    def counting(self) -> Iterator[Executed]:
        if not all(layer.attached for layer in self._layers):
            raise MethodError("the gates of method ccgn are detached: nothing is left out, and nothing to be counted")
        graph, model = self._graph, CostModel(self._graph)
        example = next(leaf for leaf in pytree.tree_leaves(graph.example_inputs) if isinstance(leaf, Tensor))
        executed = Executed(model.total("macs") / len(example))
        units = made_only_by(graph, self.gated)

        def count(*_: Any) -> None:
            if any(layer.opened for layer in self._layers):  # none when the network was traced, as for its cost
                for silent in silent_units(self._layers, units):
                    executed.total += model.total("macs", silent) / len(example)
                    executed.total += sum(layer.gate.macs for layer in self._layers)
                    executed.samples += 1
            for layer in self._layers:
                layer.opened = []

        hook = graph.model.register_forward_hook(count)
        count()
        try:
            yield executed
            executed.add_other_processes()
        finally:
            hook.remove()
            for layer in self._layers:
                layer.opened = None

    # -- interruptions ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "gates": self._beside.state_dict(),
            "buffers": {name: buffer.clone() for name, buffer in self._gates.named_buffers()},
            "step": self._step,
            "steps": self._steps,
            "draws": self._draws,
            "ready": [None if gradient is None else gradient.clone() for gradient in self._ready],
            "seen": list(self._seen),
            "opened": [opened.clone() for opened in self._opened],
            "told": dict(self._told),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._beside.load_state_dict(state["gates"])
        for name, buffer in self._gates.named_buffers():
            buffer.copy_(state["buffers"][name])
        self._step, self._steps, self._draws = (int(state[name]) for name in ("step", "steps", "draws"))
        self._ready, self._seen, self._opened = list(state["ready"]), list(state["seen"]), list(state["opened"])
        self._told = dict(state["told"])


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _refuse_float16(features: Tensor) -> None:
    device = features.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    if torch.float16 in (autocast, features.dtype):
        raise MethodError(
            "method ccgn adds its own terms in the backward pass, which a gradient scaler would shrink: train in "
            "bfloat16 or float32 instead of float16"
        )
