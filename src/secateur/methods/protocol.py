"""What a method is: it scores units, and may take part in training.

    start        with the traced network, and again after each of several cuts: attach hooks, remember where to look
    aim          layer by layer, how many units are to stay, for methods that decide that while training
    within       what was asked for, for methods that decide at the cut
    begin        optional facts about the training to come
    after_backward, after_step, after_epoch      in the training loop
    scores       one number per unit, +inf for what must stay
    decided      the units that go, of methods that have decided, or do so now
    stop         remove every hook; the network is as it was but for its weights
    fold         the cut network, of methods that leave channels which emit constants

A method never cuts: it returns scores or units, and `select` and `apply` do the rest. Methods share functions, not
parents; the base class holds nothing but the hooks that most leave empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from secateur.allocate import Allocation
from secateur.errors import MethodError, nearest
from secateur.graph import Graph
from secateur.methods.material import Material
from secateur.plan import Plan
from secateur.surgery import Compensated

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Training:
    """Facts about the training that a method takes part in.

    Attributes:
        steps: optimizer steps in all.
        lr_sum: the sum of the learning rate over these steps.
        momentum: SGD's momentum; 0 for other optimizers.
        adaptive: the optimizer rescales gradients (Adam and kin).
        epochs: in all; 0 if it was not told.
    """

    steps: int
    lr_sum: float
    momentum: float = 0.0
    adaptive: bool = False
    epochs: int = 0


class Method:
    """Base of all methods. Options are the fields of the concrete dataclass, each with `metadata={"help": ...}`.

    Examples:
        A method of your own, which needs no registration: what the loss would lose with a unit, to first order, is
        the sum of weight * gradient over all that goes with it.

        >>> import numpy as np, torch, secateur
        >>> class Taylor(secateur.Method):
        ...     name, needs_training = "taylor", True
        ...     def start(self, graph):
        ...         self.graph, self.sums = graph, np.zeros(graph.units)
        ...     def after_backward(self):
        ...         parameters = dict(self.graph.model.named_parameters())
        ...         for unit in range(self.graph.units):
        ...             for tensor, dim, index in self.graph.slots(unit):
        ...                 p = parameters.get(self.graph.tensors[tensor].name)
        ...                 if p is not None:  # buffers have no gradient
        ...                     self.sums[unit] += float((p.detach() * p.grad).select(dim, index).sum())
        ...     def scores(self, graph):
        ...         return np.abs(self.sums)
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
        >>> image = torch.randn(4, 3, 8, 8)
        >>> pruner = secateur.Pruner(net, image, method=Taylor())
        >>> net(image).square().mean().backward()
        >>> pruner.after_backward()
        >>> pruner.finish(pruning_ratio=0.5).model[0].out_channels
        4
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    needs_training: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False  # it makes passes of its own over `material`
    takes_data: ClassVar[bool] = False  # it makes one where data is given, and otherwise learns from the training
    needs_labels: ClassVar[bool] = False  # the targets are label maps, and `material.classes` says of which classes
    prunes: ClassVar[bool] = True  # it removes channels
    by_task: ClassVar[bool] = False  # it looks at every task's loss by itself: side heads are tasks of their own
    # it chooses what goes: `decided`; layer by layer while training (`aim`), or at the cut if it `needs_training` not
    decides: ClassVar[bool] = False
    material: Material = Material()

    def start(self, graph: Graph) -> None:
        """Look at the network; attach hooks. What was seen of another network is forgotten."""

    def aim(self, kept: NDArray[np.int64]) -> None:
        """How many units of every group (int64 per group) are to stay, after `start` and before the training."""

    def within(self, allocation: Allocation) -> None:
        """What was asked for, with floors, rounding and protection, after `start` and before `decided`."""

    def note_decisions(self, path: Path) -> None:
        """Where a search may write down what it has decided, to go on from there after an interruption."""

    def begin(self, training: Training) -> None:
        """Learn the schedule of the training to come."""

    def after_backward(self) -> None:
        """Gradients are there, the optimizer has not stepped."""

    def after_step(self, lr: float | None = None) -> None:
        """The optimizer has stepped, with the given learning rate if it is known."""

    def after_epoch(self, epoch: int) -> None:
        """An epoch is over (0-based)."""

    def log(self) -> dict[str, float]:
        """Numbers worth a line in the log."""
        return {}

    def warnings(self, graph: Graph, removed: NDArray[np.bool_]) -> list[str]:
        """What the user should know before these units (bool per unit) are cut."""
        return []

    def scores(self, graph: Graph) -> Scores:
        """One number per unit; the smallest go first."""
        raise NotImplementedError(f"{type(self).__name__} does not score")

    def decided(self, graph: Graph) -> NDArray[np.bool_] | None:
        """The units to remove (bool per unit) that were chosen while training, or are now; None: it only scores.

        Raises:
            MethodError: it chooses while training, and the training has not come so far.
        """
        return None

    def stop(self) -> None:
        """Detach everything; what hooks did to the forward pass goes into the weights."""

    def fold(self, graph: Graph, plan: Plan) -> Compensated | None:
        """After `stop`: the network cut to what was decided, with the constants that the silenced channels emit carried
        over into the weights that stay; None where they emit nothing."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on after an interruption; after `stop`, what is needed to `start` there again."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""

    @classmethod
    def options_help(cls) -> dict[str, tuple[Any, str]]:
        """Option -> (default, one line)."""
        if not dataclasses.is_dataclass(cls):
            return {}
        return {f.name: (f.default, f.metadata.get("help", "")) for f in dataclasses.fields(cls) if f.init}

    @classmethod
    def create(cls, **options: Any) -> Method:
        """An instance with the given options.

        Raises:
            MethodError: an option is unknown, or its value is out of range.
        """
        known = cls.options_help()
        for option in options:
            if option not in known:
                what = nearest(option, known) if known else "it has no options"
                raise MethodError(f"method {cls.name} has no option {option!r}; {what}")
        return cls(**options)
