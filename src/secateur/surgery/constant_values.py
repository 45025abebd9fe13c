"""Channels whose filters are silent, followed through the recorded run: which number each value is at all places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from secateur.graph import Graph, state_of
from secateur.graph.capture import Node, Ref
from secateur.graph.operators import CONVOLUTIONS
from secateur.plan import Plan
from secateur.surgery.constant_rules import RULES
from secateur.surgery.cut import silenced
from secateur.surgery.walk import Walk, channels_gone, gone_of, is_product, operands


class FollowedConstants:
    """What every value of the eval run is, where it is one number at all places, whatever the input.

    Args:
        graph, model, plan: the network, and what is to be removed from it.
        accept: constants may meet padding.
        state: tensors to go by instead of the network's own.

    Attributes:
        state: the network's tensors with the filters of the removed channels zero.
        refused: unit -> why it can't be removed.
        rough: units that were accepted though they are exact only inside.
    """

    def __init__(
        self,
        graph: Graph,
        model: nn.Module,
        plan: Plan,
        *,
        accept: bool,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.graph, self.model, self.plan, self.accept = graph, model, plan, accept
        self.flow, self.walk = graph.flows[0], Walk(graph.flows[0])
        self.gone = gone_of(graph, plan)[1]
        self.state = silenced(state or state_of(model), Plan(self._filters(), plan.shapes))
        self.values: dict[int, Tensor] = {}
        self.read: dict[int, Tensor] = {}  # number of a convolution or product -> its input's channels
        self.refused: dict[int, str] = {}
        self.rough: set[int] = set()
        self.root: dict[int, int] = {}  # of a view, the value whose memory it shares
        self.weights = set(self.flow.capture.names.values())  # values made of parameters and buffers alone
        self._follow()
        self.padded = frozenset(self.rough)  # those that met a padding before a consumer

    def _filters(self) -> dict[str, dict[int, tuple[int, ...]]]:
        """The slices that are silent: of the weights (and biases) that make removed channels, not of those that read
        them."""
        found: dict[str, dict[int, tuple[int, ...]]] = {}
        names = self.flow.capture.names
        for node in self.walk.nodes:
            if not is_product(node):
                continue
            name, dim = self._weight(node)
            if node.op in CONVOLUTIONS:
                bias = self.walk.parameter(node.args[2])
            else:
                bias = self.walk.name_of.get(names.get(f"{node.module}.bias", -1), "")
            for tensor, at in ((name, dim), (bias, 0)):
                removed = self.plan.removed.get(tensor, {}).get(at)
                if removed:
                    found.setdefault(tensor, {})[at] = removed
        return found

    def _weight(self, node: Node) -> tuple[str, int]:
        """The parameter that makes a node's output channels ("" if there is none), and its dimension for them."""
        data, weight = operands(node)
        name = self.walk.parameter(weight)
        if node.op in CONVOLUTIONS:
            return name, int(bool(node.args[6]) and self.flow.shape(data)[1] != int(node.args[8]))
        return name, int(weight.value in self.walk.name_of)

    # -- following ----------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        for at, node in enumerate(self.walk.nodes):
            out = node.outputs[0] if node.outputs else None
            refs = [ref.value for ref in node.inputs()]
            if out is None or not refs:
                continue
            if self.weights.issuperset(refs):
                self.weights.update(o.value for o in node.outputs if o is not None)
            result: Tensor | None
            name = node.op if node.op.startswith("_") else node.op.rstrip("_")
            if is_product(node):
                self.read[at] = self._channels(operands(node)[0], 1 if node.op in CONVOLUTIONS else -1)
                result = self._filtered(node, out)
            elif name in RULES:
                try:
                    result = RULES[name](self, node)
                except Exception:  # a use of the operator that its rule did not think of
                    result = None
            else:
                self._unknown(node)
                continue
            self.values[out.value] = self._silent(node, out) if result is None else result
            self._watch(node, out)

    def get(self, ref: Ref) -> Tensor:
        known = self.values.get(ref.value)
        if known is not None:
            return known
        tensor = self.state.get(self.walk.name_of.get(ref.value, ""))
        if tensor is not None and tensor.is_floating_point() and sum(n > 1 for n in tensor.shape) <= 1:
            return tensor.detach().to("cpu", torch.float64)
        return _unknown_like(self.flow.shape(ref))

    def _channels(self, ref: Ref, dim: int) -> Tensor:
        """The number that each index of a dimension is, NaN where it is none."""
        value = self.get(ref).movedim(dim, 0)
        rows = value.reshape(value.shape[0], -1)
        same = (rows == rows[:, :1]).all(dim=1)
        return torch.where(same, rows[:, 0], torch.nan).expand(self.flow.shape(ref)[dim])

    def _filtered(self, node: Node, out: Ref) -> Tensor | None:
        """What a convolution or product makes: zero where its filter is silent."""
        convolution = node.op in CONVOLUTIONS
        bias = node.args[2] if convolution else node.args[0] if node.op == "addmm" else None
        if not self._weight(node)[0] or (bias is not None and not self.walk.parameter(bias)):
            return None
        silent = torch.from_numpy(channels_gone(self.flow, out, 1 if convolution else -1, self.gone))
        made = torch.full(silent.shape, torch.nan, dtype=torch.float64).masked_fill(silent, 0)
        rank = len(self.flow.shape(out))
        return made.reshape(1, -1, *[1] * (rank - 2)) if convolution else made.reshape(*[1] * (rank - 1), -1)

    def _unknown(self, node: Node) -> None:
        """An operator without a rule: no channel that it reads may speak, and none that it writes may be removed."""
        for ref in node.inputs():
            if ref.value not in self.weights:
                self.refuse(ref, self.get(ref) != 0, f"a constant can't be followed through {node.place}")
        for out in node.outputs:
            if out is not None and out.value in self.walk.readers:
                self.values[out.value] = self._silent(node, out)
                self._watch(node, out)

    def _silent(self, node: Node, out: Ref) -> Tensor:
        """What no rule tells: unknown, but for removed channels that are zero in the silenced network, where of all
        that the operator reads nothing speaks."""
        made = _unknown_like(shape := self.flow.shape(out))
        if any(self.held(ref, self.get(ref) != 0) for ref in node.inputs() if ref.value != out.value):
            return made
        for dim, tracks in enumerate(self.flow.get(out)):
            zero = np.zeros(shape[dim], dtype=bool)
            for track in tracks:
                if track.zero:
                    zero |= (track.atoms >= 0) & self.gone[track.atoms]
            if zero.any():
                along = torch.from_numpy(zero).reshape([-1 if d == dim else 1 for d in range(len(shape))])
                made = torch.where(along, 0.0, made)
        return made

    def _watch(self, node: Node, out: Ref) -> None:
        """Refuse what is no constant any more; keep an eye on views, whose memory others may write into."""
        reason = f"no constant behind {node.place}"
        if out.value in self.walk.readers and out.value not in self.weights:
            self.refuse(out, self.values[out.value].isnan(), reason)
        schema = node.target._schema
        wrote = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
        if not wrote and schema.returns and schema.returns[0].alias_info is not None:
            source = next(node.inputs()).value
            self.root[out.value] = self.root.get(source, source)
        elif wrote:
            mine = self.root.get(out.value, out.value)
            for other in {mine, *(v for v, root in self.root.items() if root == mine)} - {out.value}:
                if other in self.walk.readers:
                    self.values[other] = self._silent(node, Ref(other))
                    self.refuse(Ref(other), self.values[other].isnan(), reason)

    def refuse(self, ref: Ref, where: Tensor, reason: str) -> None:
        """The removed units that a value holds at the marked places stay."""
        for unit in self.held(ref, where):
            self.refused.setdefault(unit, reason)

    def held(self, ref: Ref, where: Tensor) -> set[int]:
        """The removed units that a value holds at the marked places; `where` is bool, as a value is told."""
        found = set[int]()
        for dim, size in enumerate(self.flow.shape(ref)):
            rows = where.movedim(dim, 0)
            marked = rows.reshape(rows.shape[0], -1).any(dim=1).expand(size).numpy()
            for track in self.flow.get(ref)[dim]:
                atoms = track.atoms[marked & (track.atoms >= 0)]
                found.update(self.graph.solution.of_atom[atoms[self.gone[atoms]]].tolist())
        return found

    def meets_padding(self, ref: Ref, where: Tensor, place: str) -> None:
        """What a value is at the marked places, it is not at the borders of what comes next."""
        if self.accept:
            self.rough |= self.held(ref, where)
        else:
            self.refuse(ref, where, f"its constant meets the padding of {place}; borders='accept' would remove it")


def _unknown_like(shape: Sequence[int]) -> Tensor:
    return torch.full([1] * len(shape), torch.nan, dtype=torch.float64)
