"""A pruned network and everything to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from secateur.costs import Cost
from secateur.graph import Graph
from secateur.plan import Plan
from secateur.surgery import Report


@dataclass(frozen=True)
class Result:
    """A pruned network and everything to know about it.

    Attributes:
        model: the pruned network, a plain module of the original's class.
        plan: what was removed.
        report: the verification; None only if it was switched off.
        before, after: cost on the example inputs.
        budget: {"asked": ..., "achieved": ...} in the same units.
        graph: the graph of the original.
        warnings: what the user should know.

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
        >>> result = secateur.prune(net, torch.randn(1, 3, 8, 8), pruning_ratio=0.5)
        >>> result.before.params, result.after.params, result.budget["achieved"]
        (242, 122, {'pruning_ratio': 0.5})
        >>> print(result)  # doctest: +ELLIPSIS
                                before           after    change
        params                     242             122    -49.6%
        macs                     8,352           4,176    -50.0%
        paper_flops              9,000           4,536    -49.6%
        bytes (fp32)               968             488    -49.6%
        asked         pruning_ratio 0.5
        achieved      pruning_ratio 0.5
        verification  exact: largest relative error ... in 4 checks
        pinned        2 of 3 groups:
          0.weight (3 units): input of a convolution that is fixed in 0 ...
          2 (2 units): output of the network
    """

    model: nn.Module
    plan: Plan
    report: Report | None
    before: Cost
    after: Cost
    budget: Mapping[str, Mapping[str, float]]
    graph: Graph
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        def row(name: str, a: float, b: float) -> str:
            return f"{name:<14}{a:>16,.0f}{b:>16,.0f}{(b / a - 1) if a else 0:>+10.1%}"

        def unit(name: str) -> str:
            return " ms" if name == "latency" and self.budget["asked"][name] > 1 else ""

        before, after = self.before, self.after
        lines = [f"{'':<14}{'before':>16}{'after':>16}{'change':>10}"]
        lines += [row(name, getattr(before, name), getattr(after, name)) for name in ("params", "macs", "paper_flops")]
        lines.append(row("bytes (fp32)", 4 * before.params, 4 * after.params))
        for what in ("asked", "achieved"):
            lines.append(f"{what:<14}" + ", ".join(f"{k} {v:.4g}{unit(k)}" for k, v in self.budget[what].items()))
        lines.append(f"verification  {self.report if self.report is not None else 'not made'}")
        pinned = [g for g in self.graph.groups if g.pinned]
        lines.append(f"pinned        {len(pinned)} of {len(self.graph.groups)} groups" + (":" if pinned else ""))
        lines += [f"  {g.name} ({len(g)} units): {g.pinned}" for g in pinned]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines)
