"""A method's part in anybody's training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from secateur.allocate import Allocation, Guard, selection
from secateur.costs import LatencyTable
from secateur.errors import CheckpointError, MethodError, SecateurError
from secateur.graph import Graph, trace
from secateur.methods import Material, Method, Training, make_method, must_prune
from secateur.methods.material import Loss
from secateur.plan import Plan, units_of
from secateur.pruner.cutting import cut_verified
from secateur.pruner.decided import cut_decided
from secateur.pruner.one_cut import scores_of
from secateur.pruner.progress import Progress
from secateur.pruner.result import Result
from secateur.surgery import apply
from secateur.surgery.cut import copy_of


class Pruner:
    """A method's part in anybody's training loop, with one cut at its end or several on the way.

    Args:
        model: the network that is being trained, before anything is cut from it.
        example_inputs: what to trace it on.
        method: a method's name or object.
        data, loss, classes: for methods that make passes over data, see `score`.
        options: the method's options.

    Raises:
        MethodError: unknown method or option, a method that finds nothing in this network to work on, or one that needs
            data which was not given.

    Examples:
        Prune a little, train a little. Every ratio and budget is one of the original network, and so is the plan:

        >>> import torch, secateur
        >>> conv, image = torch.nn.Conv2d, torch.randn(2, 3, 8, 8)
        >>> net = torch.nn.Sequential(conv(3, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU(), conv(32, 2, 1))
        >>> optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        >>> pruner = secateur.Pruner(net, image, method="l1")
        >>> for remains in secateur.schedule(0.25, steps=3):
        ...     result = pruner.step(budget={"params": remains}, inplace=True, optimizer=optimizer)
        ...     for _ in range(2):  # your training
        ...         optimizer.zero_grad()
        ...         net(image).square().mean().backward()
        ...         pruner.after_backward()
        ...         optimizer.step()
        ...     print(net[0].out_channels)
        23
        15
        7
        >>> pruner.close()
        >>> fresh = torch.nn.Sequential(conv(3, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU(), conv(32, 2, 1))
        >>> secateur.apply(fresh, result.plan)[0].out_channels
        7
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        method: str | Method = "cap",
        *,
        data: Iterable[tuple[Any, Any]] | None = None,
        loss: Loss | None = None,
        classes: Sequence[str] | int | None = None,
        **options: Any,
    ) -> None:
        self.method = make_method(method, Material(data, loss, classes), **options)
        self._at = Progress.beginning(trace(model, example_inputs))
        self.method.start(self.graph)
        self._stepped = True  # nothing is owed to the optimizer's last step
        self._aimed: Allocation | None = None

    @property
    def graph(self) -> Graph:
        """The graph of the network as it is now."""
        return self._at.now

    @property
    def plan(self) -> Plan:
        """What was removed so far, from the original."""
        return self._at.plan

    @property
    def needs_training(self) -> bool:
        """The method acts while training; others only score at the end."""
        return self.method.needs_training

    def aim(
        self,
        pruning_ratio: float | None = None,
        budget: Mapping[str, float] | None = None,
        *,
        min_keep: float = 0.1,
        round_to: int = 1,
        protect: Iterable[str] = (),
        ratios: Mapping[str, float] | None = None,
        latency_table: LatencyTable | Path | str | None = None,
    ) -> None:
        """Tell a method that chooses channels by itself how much is to go; `finish` then takes no amount.

        Of one that chooses while training the same share of every layer goes (`scope="group"`), since such methods
        choose layer by layer; one that searches at the cut (`pagcp`) finds every layer's share.

        Args:
            pruning_ratio, budget, min_keep, round_to, protect, ratios, latency_table: see `select`.

        Raises:
            MethodError: the method does not choose by itself, or not within this.
            NothingPrunableError, BudgetError: it can't be had.

        Examples:
            >>> import torch, secateur
            >>> conv, image = torch.nn.Conv2d, torch.randn(2, 3, 8, 8)
            >>> net = torch.nn.Sequential(conv(3, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU(), conv(32, 2, 1))
            >>> pruner = secateur.Pruner(net, image, method="sfp")
            >>> pruner.aim(pruning_ratio=0.5)
            >>> pruner.after_epoch(0)  # behind your training: the weakest half is set to zero, and may recover
            >>> int((net[0].weight.flatten(1).norm(dim=1) == 0).sum())
            16
            >>> pruner.finish().model[0].out_channels
            16
        """
        must_prune(self.method)
        if not self.method.decides:
            raise MethodError(
                f"method {self.method.name} chooses nothing while training: give the amount to finish() instead"
            )
        allocation = Allocation(pruning_ratio, budget, "group", min_keep, round_to, protect, ratios, latency_table)
        self.method.within(allocation)
        alike = np.where(np.isfinite(scores_of(self.graph, self.method)), 0.0, np.inf)
        removed = units_of(self.graph, selection(self.graph, alike, allocation, self._at.gone).plan)
        groups = self.graph.solution.group_of
        self.method.aim(np.bincount(groups[~removed], minlength=len(self.graph.groups)))
        self._aimed = allocation

    def begin(self, steps: int, lr_sum: float, momentum: float = 0.0, adaptive: bool = False, epochs: int = 0) -> None:
        """Tell the schedule: optimizer steps in all, the sum of the learning rate over them, SGD's momentum (0 for
        other optimizers), whether the optimizer is Adam or its like, and the number of epochs.
        """
        self.method.begin(Training(steps, lr_sum, momentum, adaptive, epochs))

    def after_backward(self) -> None:
        """Between `loss.backward()` and `optimizer.step()`.

        Examples:
            >>> import torch, secateur
            >>> conv, image = torch.nn.Conv2d, torch.randn(2, 3, 8, 8)
            >>> net = torch.nn.Sequential(conv(3, 8, 3), torch.nn.BatchNorm2d(8), conv(8, 2, 1))
            >>> pruner = secateur.Pruner(net, image, method="network_slimming", lam=0.1)
            >>> net(image).square().mean().backward()
            >>> before = net[1].weight.grad.clone()
            >>> pruner.after_backward()  # pulls the scales of the batch norm towards zero
            >>> bool((net[1].weight.grad > before).all())
            True
            >>> pruner.close()
        """
        if not self._stepped:  # a loop that does not call after_step: what belongs there is done here
            self.method.after_step()
        self.method.after_backward()
        self._stepped = False

    def after_step(self, lr: float | None = None) -> None:
        """Right after `optimizer.step()`, with its learning rate if it changes. Optional: without it, the same happens
        at the next `after_backward`, as if the learning rate were constant."""
        self.method.after_step(lr)
        self._stepped = True

    def after_epoch(self, epoch: int) -> None:
        """At the end of an epoch (0-based).

        Examples:
            >>> import torch, secateur
            >>> class Spread(secateur.Method):
            ...     name = "spread"
            ...     def after_epoch(self, epoch):
            ...         print("epoch", epoch, "is over")
            >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 1))
            >>> pruner = secateur.Pruner(net, torch.randn(1, 3, 8, 8), method=Spread())
            >>> for epoch in range(2):
            ...     pruner.after_epoch(epoch)  # behind your training
            epoch 0 is over
            epoch 1 is over
        """
        self.method.after_epoch(epoch)

    def log(self) -> dict[str, float]:
        """Numbers worth a line in the log."""
        return self.method.log()

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on after an interruption.

        Examples:
            >>> import torch, secateur
            >>> def network():
            ...     return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 1))
            >>> net, image = network(), torch.randn(1, 3, 8, 8)
            >>> pruner = secateur.Pruner(net, image, method="l1")
            >>> _ = pruner.step(pruning_ratio=0.5, inplace=True)
            >>> state = {"pruner": pruner.state_dict(), "model": net.state_dict()}  # for torch.save
            >>> sorted(state["pruner"])
            ['method', 'plan', 'stepped']
        """
        return {"method": self.method.state_dict(), "stepped": self._stepped, "plan": self.plan.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. Was the network cut before that, this one is cut likewise, in place: load its
        weights, and make its optimizer, afterwards.

        Raises:
            CheckpointError: this network has been cut otherwise.

        Examples:
            >>> import torch, secateur
            >>> def network():
            ...     return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 1))
            >>> net, image = network(), torch.randn(1, 3, 8, 8)
            >>> pruner = secateur.Pruner(net, image, method="l1")
            >>> _ = pruner.step(pruning_ratio=0.5, inplace=True)
            >>> state = {"pruner": pruner.state_dict(), "model": net.state_dict()}

            After the interruption, from an unpruned network:

            >>> again = network()
            >>> pruner = secateur.Pruner(again, image, method="l1")
            >>> pruner.load_state_dict(state["pruner"])
            >>> again[0].out_channels
            4
            >>> again.load_state_dict(state["model"])
            <All keys matched successfully>
        """
        plan = Plan.from_json(state["plan"])
        if plan != self.plan:
            if len(self.plan):
                raise CheckpointError(
                    "the state is that of a network that was cut otherwise; load it into a new Pruner of the unpruned "
                    "network"
                )
            self.close()
            self._keep_original()
            self._go_on(plan, apply(self.graph.model, plan, inplace=True))
        self.method.load_state_dict(state["method"])
        self._stepped = bool(state["stepped"])

    def step(
        self,
        pruning_ratio: float | None = None,
        budget: Mapping[str, float] | None = None,
        *,
        scope: str = "global",
        min_keep: float = 0.1,
        round_to: int = 1,
        protect: Iterable[str] = (),
        ratios: Mapping[str, float] | None = None,
        latency_table: LatencyTable | Path | str | None = None,
        guard: Guard | None = None,
        inplace: bool = False,
        optimizer: Optimizer | None = None,
        averages: Iterable[nn.Module] = (),
    ) -> Result:
        """Cut the network to a part of the way and go on with it: one of several cuts with training between them.

        The method starts anew on the cut network; call `begin` for the training that follows, if it is called at all.
        `secateur.schedule` gives the shares of a gradual way.

        Args:
            pruning_ratio, budget, scope, min_keep, round_to, protect, ratios, latency_table, guard: see `select`.
                All shares are of the original network, with what earlier steps removed counted in.
            inplace: cut the network itself; otherwise go on training the result's.
            optimizer: its state is cut along.
            averages: copies of the network that are cut along, in place, such as a
                `torch.optim.swa_utils.AveragedModel`.

        Returns:
            As of `finish`: the plan and the costs are those against the original, the verification is this step's.

        Raises:
            NothingPrunableError, BudgetError, MethodError, VerificationError: nothing was cut, and training can go on.
            PlanError: one of `averages` has other shapes than the network; the same.
        """
        must_prune(self.method)
        if self.method.decides:
            raise MethodError(f"method {self.method.name} chooses once, by itself: use aim() and finish()")
        allocation = Allocation(pruning_ratio, budget, scope, min_keep, round_to, protect, ratios, latency_table, guard)
        averages = (averages,) if isinstance(averages, nn.Module) else tuple(averages)
        try:
            result = self._cut(allocation, inplace, optimizer, averages, last=False)
        except SecateurError:
            self.close()
            state = self.method.state_dict()  # as it is now, when hooks' factors may have gone into the weights
            self.method.start(self.graph)
            self.method.load_state_dict(state)
            raise
        self._go_on(result.plan, result.model)
        return result

    def finish(
        self,
        pruning_ratio: float | None = None,
        budget: Mapping[str, float] | None = None,
        *,
        scope: str = "global",
        min_keep: float = 0.1,
        round_to: int = 1,
        protect: Iterable[str] = (),
        ratios: Mapping[str, float] | None = None,
        latency_table: LatencyTable | Path | str | None = None,
        guard: Guard | None = None,
        inplace: bool = False,
        optimizer: Optimizer | None = None,
    ) -> Result:
        """Detach the method, remove channels physically, verify.

        Without an amount, what a method that chooses while training has chosen is removed; with one, its scores are
        used like any other's.

        Args:
            pruning_ratio, budget, scope, min_keep, round_to, protect, ratios, latency_table, guard: see `select`.
                All shares are of the original network, with what earlier steps removed counted in.
            inplace: cut the network itself.
            optimizer: its state is cut along.

        Raises:
            NothingPrunableError, BudgetError, MethodError, VerificationError.

        Examples:
            >>> import torch, secateur
            >>> conv, image = torch.nn.Conv2d, torch.randn(2, 3, 8, 8)
            >>> net = torch.nn.Sequential(conv(3, 8, 3), torch.nn.BatchNorm2d(8), conv(8, 2, 1))
            >>> optimizer = torch.optim.SGD(net.parameters(), 0.1)
            >>> pruner = secateur.Pruner(net, image, method="cap", position="all")
            >>> for _ in range(2):  # your training
            ...     optimizer.zero_grad()
            ...     net(image).square().mean().backward()
            ...     pruner.after_backward()
            ...     optimizer.step()
            >>> result = pruner.finish(pruning_ratio=0.5)
            >>> result.model[1].num_features, result.report.ok
            (4, True)
        """
        must_prune(self.method)
        if self.method.decides and pruning_ratio is None and budget is None and not ratios:
            if not self._stepped:
                self.after_step()
            return cut_decided(self._at, self.method, self._aimed, inplace=inplace, optimizer=optimizer, guard=guard)
        allocation = Allocation(pruning_ratio, budget, scope, min_keep, round_to, protect, ratios, latency_table, guard)
        return self._cut(allocation, inplace, optimizer)

    def close(self) -> None:
        """Detach the method without pruning."""
        self.method.stop()

    def _cut(
        self,
        allocation: Allocation,
        inplace: bool,
        optimizer: Optimizer | None,
        averages: Iterable[nn.Module] = (),
        last: bool = True,
    ) -> Result:
        """Detaches the method and cuts."""
        if not self._stepped:
            self.after_step()
        scores = scores_of(self.graph, self.method)
        self.close()
        if inplace and not last:
            self._keep_original()
        return cut_verified(
            self._at,
            scores,
            allocation,
            inplace=inplace,
            optimizer=optimizer,
            averages=averages,
            warn=lambda removed: self.method.warnings(self.graph, removed),
        )

    def _keep_original(self) -> None:
        """Before the network is cut in place for the first time: latency stays measured against the whole one."""
        if self._at.original is self.graph:
            whole = replace(self.graph, model=copy_of(self.graph.model, {}))
            self._at = replace(self._at, original=whole)

    def _go_on(self, plan: Plan, model: nn.Module) -> None:
        """Takes up the network as it is after a cut; the plan is that against the original."""
        self._at = Progress(self._at.original, plan, trace(model, self.graph.example_inputs))
        self.method.start(self.graph)
