"""Remove channels whose filters are silent but whose batch norms are not: what these emit is a constant, kept exactly.

A filter of zeros gives zero; the batch norm behind it makes (0 - mean) / sqrt(var + eps) * gamma + beta of that, and an
activation some other number. The constant is followed through the operators of the traced run, channel by channel, up
to the convolutions and linear layers that read it, whose bias takes it times the sum of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import MethodError, VerificationError, nearest
from secateur.graph import Graph, mapped_state, state_of, unwrapped
from secateur.graph.capture import Node, Ref
from secateur.graph.operators import BATCH_NORMS, CONVOLUTIONS
from secateur.plan import Plan, plan_of
from secateur.surgery.consumers import (
    PADS,
    Carried,
    Compensated,
    Consumer,
    Seat,
    Walk,
    carried_constant,
    channels_gone,
    consumers_of,
    gone_of,
    is_product,
    operands,
    seat_of,
    write,
)
from secateur.surgery.cut import apply, check, silenced
from secateur.surgery.verify import compared, in_float64

BORDERS = ("refuse", "accept")

# A number at every place stays a number at every place.
_POINTWISE = (
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "silu", "gelu", "mish", "hardtanh", "hardswish",
    "hardsigmoid", "sigmoid", "tanh", "softplus", "clamp", "clamp_min", "clamp_max", "_prelu_kernel", "abs", "neg",
    "square", "exp", "sqrt", "pow", "add", "sub", "div", "mul",
)  # fmt: skip
_SAME = ("clone", "alias", "detach", "contiguous", "lift_fresh")
# Over space, of a constant, these are that constant.
_OVER_SPACE = (
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_trilinear3d", *PADS,
)  # fmt: skip
_RESHAPES = ("view", "_unsafe_view", "squeeze", "unsqueeze", "permute", "transpose", "t", "expand")


def fold_constants(model: nn.Module, graph: Graph, plan: Plan, *, borders: str = "refuse") -> Compensated:
    """Cut a network to a plan whose channels are silent before their batch norm only, exactly in eval mode.

    The result computes what the original computes with the filters of the plan's channels (their slices of convolution
    and linear weights, and of the biases) set to zero and everything else, such as gamma and beta, left as it is: what
    a method leaves behind that silences filters. In that network the channels are constants; each consumer's bias takes
    their share, or, where it has none and a batch norm alone reads its output, that norm's running mean (see
    `compensate`, which says why, and when a bias is made).

    The constant is followed through batch norms with running statistics, activations, sums, concatenations, poolings,
    resizing, and reshapes in front of linear layers. Where it can't be followed, the units concerned are not removed.
    At a consumer's zero padding the constant is missing in the original, which no bias can express.

    In train mode a batch norm makes beta of a silent channel, whatever its running mean: there the result differs.

    Args:
        model: the network that the plan was made for; nothing in it changes.
        graph: its graph.
        plan: the channels to remove.
        borders: "refuse": units whose constant other than zero meets a zero padding are not removed; "accept": they
            are, and the outputs whose kernel reaches into the padding are not exact.

    Returns:
        The cut network, the plan that was carried out, the consumers that were changed, and the units that were not
        removed with the reason.

    Raises:
        PlanError: the plan fits neither the network nor the graph.
        MethodError: unknown `borders`.
        VerificationError: the result, which was compared on the graph's example inputs in float64 unless borders were
            accepted, is not exact.
    """
    if borders not in BORDERS:
        raise MethodError(f"borders {borders!r}; {nearest(str(borders), BORDERS)}")
    model = unwrapped(model)
    check(model, plan)
    units, _ = gone_of(graph, plan)
    refused: dict[int, str] = {}
    while True:  # a unit that stays takes its filters out of what is silenced, so all is followed anew
        plan = plan_of(graph, units)
        constants = _Constants(graph, model, plan, accept=borders == "accept")
        folds = constants.folds()
        if not constants.refused:
            break
        refused.update(constants.refused)
        units[list(constants.refused)] = False
    small = apply(model, plan)
    carried, values = [], dict[str, Tensor]()
    for fold in folds:
        name, seat = fold.consumer.name, fold.seat
        new = {} if seat.why_not else dict(carried_constant(small, fold.consumer, seat, fold.constant))
        values.update(new)
        carried.append(
            Carried(name, fold.consumer.channels, tuple(new), "; ".join(filter(None, (seat.why_not, fold.note))))
        )
    write(small, values)
    if not constants.rough:
        _verify(graph, model, small, constants.state, values)
    return Compensated(small, plan, tuple(carried), _by_group(graph, refused))


def _verify(
    graph: Graph, model: nn.Module, small: nn.Module, state: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> None:
    """Compare in float64, with what was folded as it was before it was rounded to the network's own type."""
    pruned = mapped_state(small, lambda _, t: t.detach().to(torch.float64, copy=True) if t.is_floating_point() else t)
    for name, value in values.items():
        pruned[name].copy_(value)
    silent, inputs = in_float64(dict(state)), in_float64(graph.example_inputs)
    outcome = compared(model, small, silent, pruned, inputs, training=False, weights="own")
    if outcome is None or not outcome.ok:
        raise VerificationError(
            f"{type(model).__name__} with folded constants is not exact"
            f" ({outcome.problem if outcome is not None else 'it does not run on the example inputs'});"
            " please report the network, and prune with secateur.prune, which needs no constants"
        )


def _by_group(graph: Graph, refused: Mapping[int, str]) -> dict[str, tuple[int, str]]:
    groups: dict[int, list[str]] = {}
    for unit, reason in sorted(refused.items()):
        groups.setdefault(int(graph.solution.group_of[unit]), []).append(reason)
    return {graph.groups[g].name: (len(said), "; ".join(dict.fromkeys(said))) for g, said in groups.items()}


@dataclass(frozen=True, slots=True)
class _Fold:
    """What a consumer takes: `constant` (kept outputs,) is to be added to its output."""

    consumer: Consumer
    seat: Seat
    constant: Tensor
    note: str


class _Constants:
    """What every value of the eval run is, where it is one number at all places, whatever the input.

    A value is told as a float64 tensor of its rank, each dimension in full or, where all along it is the same, of size
    one: (1, C, 1, 1) for a feature map. What is not known is NaN.

    Attributes:
        state: the network's tensors with the filters of the removed channels zero.
        refused: unit -> why it can't be removed.
        rough: units that were accepted though they are exact only inside.
    """

    def __init__(self, graph: Graph, model: nn.Module, plan: Plan, *, accept: bool) -> None:
        self.graph, self.model, self.plan, self.accept = graph, model, plan, accept
        self.flow, self.walk = graph.flows[0], Walk(graph.flows[0])
        self.gone = gone_of(graph, plan)[1]
        self.state = silenced(state_of(model), Plan(self._filters(), plan.shapes))
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
            elif name in _RULES:
                try:
                    result = _RULES[name](self, node)
                except Exception:  # a use of the operator that its rule did not think of
                    result = None
            else:
                self._unknown(node)
                continue
            self.values[out.value] = _unknown_like(self.flow.shape(out)) if result is None else result
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
            if out is not None:
                self.values[out.value] = _unknown_like(self.flow.shape(out))
                self._watch(node, out)

    def _watch(self, node: Node, out: Ref) -> None:
        """Refuse what is no constant any more; keep an eye on views, whose memory others may write into."""
        reason = f"no constant behind {node.place}"
        if out.value not in self.weights:
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
                    self.values[other] = _unknown_like(self.flow.capture.shapes[other])
                    self.refuse(Ref(other), self.values[other].isnan(), reason)

    def refuse(self, ref: Ref, where: Tensor, reason: str) -> None:
        """The removed units that a value holds at the marked places stay."""
        for unit in self._held(ref, where):
            self.refused.setdefault(unit, reason)

    def _held(self, ref: Ref, where: Tensor) -> set[int]:
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
            self.rough |= self._held(ref, where)
        else:
            self.refuse(ref, where, f"its constant meets the padding of {place}; borders='accept' would remove it")

    # -- folding ------------------------------------------------------------------------------------------------------

    def folds(self) -> list[_Fold]:
        """What every consumer has to take whose removed inputs are constants other than zero.

        Units whose constant has no place are refused.
        """
        found = []
        for consumer in consumers_of(self.graph, self.model, self.gone):
            if not consumer.nodes:  # runs in train mode only, where nothing is exact
                found.append(_Fold(consumer, Seat(problem=consumer.problem), torch.zeros(0), ""))
                continue
            inputs = [self._removed_inputs(at) for at in consumer.nodes]
            if not any(bool((constants != 0).any()) for constants in inputs):
                continue
            seat = Seat(problem=consumer.problem) if consumer.problem else seat_of(self.graph, consumer)
            rough = [self._settle(consumer, seat, at, inputs[0]) for at in consumer.nodes]
            if not seat.problem:
                removed = torch.from_numpy(consumer.removed)
                kernel = consumer.kernel(self.state[consumer.tensor])[:, :, removed]
                share = inputs[0].reshape(consumer.groups, -1)[:, removed]
                constant = torch.einsum("gort,gr->go", kernel, share)[consumer.kept_outputs(self.plan)]
                note = "not exact where a kernel reaches into zero padding" if any(rough) else ""
                found.append(_Fold(consumer, seat, constant, note))
        return found

    def _removed_inputs(self, at: int) -> Tensor:
        """The constants of a node's input channels, zero for those that stay."""
        node = self.walk.nodes[at]
        data = operands(node)[0]
        gone = torch.from_numpy(channels_gone(self.flow, data, _channel_dim(node), self.gone))
        return torch.where(gone, self.read[at], 0)

    def _settle(self, consumer: Consumer, seat: Seat, at: int, first: Tensor) -> bool:
        """Refuse the units whose constant can't be kept in a consumer; says whether others are exact only inside.

        Args:
            consumer, seat: the consumer, and where it can keep a constant.
            at: one of its nodes.
            first: the constants that its first node reads.
        """
        node, constants = self.walk.nodes[at], self._removed_inputs(at)
        data = operands(node)[0]

        def shaped(marks: Tensor) -> Tensor:
            return marks.reshape([-1 if d == _channel_dim(node) % rank else 1 for d in range(rank)])

        rank = len(self.flow.shape(data))
        speaks = shaped(constants != 0)
        self.refuse(data, shaped(constants.isnan()), f"{consumer.name} reads no constant")
        if seat.problem:
            self.refuse(data, speaks, f"read by {consumer.name}: {seat.problem}")
        elif consumer.outputs_of_a_tap > 1:
            self.refuse(data, speaks, f"{consumer.name}, transposed with a stride, spreads a constant unevenly")
        self.refuse(data, shaped(constants != first), f"{consumer.name} is called again and reads another constant")
        padded = _padded(node, self.flow.shape(operands(node)[1]))
        if padded:
            self.meets_padding(data, speaks, consumer.name)
        return padded or bool(self._held(data, speaks) & self.padded)


def _channel_dim(node: Node) -> int:
    return 1 if node.op in CONVOLUTIONS else -1


def _padded(node: Node, weight: Sequence[int]) -> bool:
    """A convolution some of whose outputs see less than the whole kernel."""
    if node.op not in CONVOLUTIONS:
        return False
    padding, dilation, transposed = node.args[4:7]
    if not transposed:
        return any(padding)
    return any(p != d * (k - 1) for p, d, k in zip(padding, dilation, weight[2:], strict=True))


def _unknown_like(shape: Sequence[int]) -> Tensor:
    return torch.full([1] * len(shape), torch.nan, dtype=torch.float64)


# -- one rule per family of operators: the value of the first output, None if it is not known -------------------------


def _named(node: Node) -> dict[str, Any]:
    """An operator's arguments by name, those left out with their defaults."""
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False))
    return {a.name: a.default_value for a in schema if a.has_default_value()} | given | node.kwargs


def _batch_norm(constants: _Constants, node: Node) -> Tensor | None:
    """(x - mean) / sqrt(var + eps) * weight + bias."""
    arguments = _named(node)
    mean, variance = arguments.get("running_mean"), arguments.get("running_var")
    if arguments.get("training") or not isinstance(mean, Ref) or not isinstance(variance, Ref):
        return None
    x = constants.get(node.args[0])

    def along(ref: Ref) -> Tensor:
        return constants.get(ref).reshape(-1, *[1] * (x.dim() - 2))

    eps = arguments["eps"] if "eps" in arguments else arguments["epsilon"]
    x = (x - along(mean)) / (along(variance) + float(eps)).sqrt()
    weight, bias = arguments["weight"], arguments["bias"]
    x = x if weight is None else x * along(weight)
    return x if bias is None else x + along(bias)


def _pointwise(constants: _Constants, node: Node) -> Tensor | None:
    """The operator itself. Nothing comes of what is not known, except that a product with zero is zero."""
    read = {ref.value: constants.get(ref) for ref in node.inputs()}
    operator = getattr(torch.ops.aten, node.op if node.op.startswith("_") else node.op.rstrip("_"))
    out = operator(*(read[a.value] if isinstance(a, Ref) else a for a in node.args), **node.kwargs)
    for value in read.values():
        out = torch.where(value.isnan(), torch.nan, out)  # some activations make a number of NaN
    if node.op in ("mul", "mul_"):
        for value in read.values():
            out = torch.where(value == 0, 0.0, out)
    return out


def _same(constants: _Constants, node: Node) -> Tensor | None:
    return constants.get(node.args[0])


def _over_space(constants: _Constants, node: Node) -> Tensor | None:
    """Of a map that is the same at every place: the map. Pads and averages that count zeros are rough."""
    x, arguments = constants.get(node.args[0]), _named(node)
    rank = len(node.args[1]) // 2 if node.op in PADS else next(n for n in (1, 2, 3) if f"{n}d" in node.op)
    if any(n != 1 for n in x.shape[-rank:]) or arguments.get("divisor_override") is not None:
        return None
    if node.op == "constant_pad_nd" and any(amount > 0 for amount in node.args[1]):
        constants.meets_padding(node.args[0], x != arguments["value"], str(node.place))
    if arguments.get("count_include_pad") and any(arguments["padding"]):
        constants.meets_padding(node.args[0], x != 0, str(node.place))
    return x


def _average(constants: _Constants, node: Node) -> Tensor | None:
    """A mean over dimensions along which the value is the same."""
    x, arguments = constants.get(node.args[0]), _named(node)
    dims = arguments.get("dim")
    if not dims or any(x.shape[d] != 1 for d in dims):
        return None
    return x if arguments["keepdim"] else x.squeeze(tuple(dims))


def _unpool(constants: _Constants, node: Node) -> Tensor | None:
    """Zeros stay zeros; any other constant comes to stand alone among zeros."""
    x = constants.get(node.args[0])
    return torch.where(x == 0, x, torch.nan)


def _concatenated(constants: _Constants, node: Node) -> Tensor | None:
    refs: list[Ref] = node.args[0]
    dim = _named(node)["dim"] % len(constants.flow.shape(refs[0]))
    parts = []
    for ref in refs:
        value = constants.get(ref)
        parts.append(value.expand([constants.flow.shape(ref)[dim] if d == dim else -1 for d in range(value.dim())]))
    sizes = [max(part.shape[d] for part in parts) for d in range(parts[0].dim())]
    return torch.cat([part.expand([-1 if d == dim else n for d, n in enumerate(sizes)]) for part in parts], dim)


def _reshaped(constants: _Constants, node: Node) -> Tensor | None:
    """The operator itself, on the value in full."""
    x = constants.get(node.args[0])
    if x.isnan().all():
        return None
    full = x.expand(constants.flow.shape(node.args[0])).contiguous()
    out = node.target(full, *node.args[1:], **node.kwargs)
    for dim in range(out.dim()):
        first = out.narrow(dim, 0, 1)
        if ((out == first) | (out.isnan() & first.isnan())).all():
            out = first
    return out


_RULES: dict[str, Callable[[_Constants, Node], Tensor | None]] = {
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_OVER_SPACE, _over_space),
    **dict.fromkeys(_RESHAPES, _reshaped),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _unpool),
    "mean": _average,
    "cat": _concatenated,
}
