"""Remove channels whose filters are silent but whose batch norms are not: what these emit is a constant, kept exactly.

A filter of zeros gives zero; the batch norm behind it makes (0 - mean) / sqrt(var + eps) * gamma + beta of that, and an
activation some other number. The constant is followed through the operators of the traced run, channel by channel, up
to the convolutions and linear layers that read it, whose bias takes it times the sum of the kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.errors import MethodError, VerificationError, nearest
from secateur.graph import Graph, mapped_state, state_of, unwrapped
from secateur.graph.capture import Node
from secateur.graph.operators import CONVOLUTIONS
from secateur.plan import Plan, plan_of
from secateur.surgery.constant_values import FollowedConstants
from secateur.surgery.consumers import Carried, Compensated, Consumer, consumers_of
from secateur.surgery.cut import apply, check
from secateur.surgery.seats import Seat, carried_constant, seat_of, write
from secateur.surgery.verify import compared, in_float64
from secateur.surgery.walk import channels_gone, gone_of, operands

BORDERS = ("refuse", "accept")


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

    Examples:
        >>> import torch, secateur
        >>> conv, image = torch.nn.Conv2d, torch.randn(1, 3, 8, 8)
        >>> net = torch.nn.Sequential(conv(3, 8, 1, bias=False), torch.nn.BatchNorm2d(8), conv(8, 2, 1)).eval()
        >>> with torch.no_grad():
        ...     net[0].weight[:4] = 0.0  # silent, but for what the batch norm adds:
        ...     net[1].bias[:] = 0.5
        >>> graph = secateur.trace(net, image)
        >>> plan = secateur.select(graph, secateur.score(graph, "l1"), pruning_ratio=0.5)
        >>> folded = secateur.fold_constants(net, graph, plan)
        >>> print(folded)
        2 (without 4 inputs): carried into 2.bias
        >>> torch.allclose(folded.model(image), net(image), atol=1e-5)
        True
        >>> torch.allclose(secateur.apply(net, plan)(image), net(image), atol=1e-5)
        False
    """
    if borders not in BORDERS:
        raise MethodError(f"borders {borders!r}; {nearest(str(borders), BORDERS)}")
    model = unwrapped(model)
    check(model, plan)
    units, _ = gone_of(graph, plan)
    followed, folds, refused = _followed(graph, model, units, accept=borders == "accept")
    plan = followed.plan
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
    if not followed.rough:
        _verify(graph, model, small, followed.state, values)
    return Compensated(small, plan, tuple(carried), _by_group(graph, refused))


def unfoldable(graph: Graph, units: NDArray[np.bool_], zero: Collection[str] = ()) -> dict[int, str]:
    """Which units `fold_constants` would not remove, whatever their batch norms make of silence: unit -> why.

    Borders are accepted, and no biases are made where there are none.

    Args:
        graph: the traced network; of its weights, only the shapes count.
        units: bool per unit, those whose filters are to be silent.
        zero: names of tensors that are to be zero.
    """
    draws, state = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for name, tensor in state_of(graph.model).items():
        if tensor.is_floating_point() and tensor.dim() == 1:  # 0.5 to 1.5, so that all norms put out something positive
            speaking = (torch.rand(tensor.shape, generator=draws) + 0.5).to(tensor)
            tensor = -speaking if name.endswith("running_mean") else speaking * (name not in zero)
        state[name] = tensor
    return _followed(graph, graph.model, units.copy(), accept=True, state=state, new_biases=False)[2]


def _followed(
    graph: Graph,
    model: nn.Module,
    units: NDArray[np.bool_],
    *,
    accept: bool,
    state: Mapping[str, Tensor] | None = None,
    new_biases: bool = True,
) -> tuple[FollowedConstants, list[_Fold], dict[int, str]]:
    """The constants of units that can be removed, what consumers take of them, and why the others can't be.

    Takes those others out of `units` (bool per unit).
    """
    refused: dict[int, str] = {}
    while True:  # a unit that stays takes its filters out of what is silenced, so all is followed anew
        followed = FollowedConstants(graph, model, plan_of(graph, units), accept=accept, state=state)
        folds = _folds(followed, new_biases)
        if not followed.refused:
            return followed, folds, refused
        refused.update(followed.refused)
        units[list(followed.refused)] = False


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


def _folds(followed: FollowedConstants, new_biases: bool) -> list[_Fold]:
    """What every consumer has to take whose removed inputs are constants other than zero.

    Units whose constant has no place are refused. A bias may be made as such a place with `new_biases`.
    """
    found = []
    for consumer in consumers_of(followed.graph, followed.model, followed.gone):
        if not consumer.nodes:  # runs in train mode only, where nothing is exact
            found.append(_Fold(consumer, Seat(problem=consumer.problem), torch.zeros(0), ""))
            continue
        inputs = [_removed_inputs(followed, at) for at in consumer.nodes]
        if not any(bool((constants != 0).any()) for constants in inputs):
            continue
        seat = Seat(problem=consumer.problem) if consumer.problem else seat_of(followed.graph, consumer)
        if seat.bias and consumer.module.bias is None and not new_biases:
            seat = Seat(problem="it has no bias, and none is to be made")
        rough = [_settle(followed, consumer, seat, at, inputs[0]) for at in consumer.nodes]
        if not seat.problem:
            removed = torch.from_numpy(consumer.removed)
            kernel = consumer.kernel(followed.state[consumer.tensor])[:, :, removed]
            share = inputs[0].reshape(consumer.groups, -1)[:, removed]
            constant = torch.einsum("gort,gr->go", kernel, share)[consumer.kept_outputs(followed.plan)]
            note = "not exact where a kernel reaches into zero padding" if any(rough) else ""
            found.append(_Fold(consumer, seat, constant, note))
    return found


def _removed_inputs(followed: FollowedConstants, at: int) -> Tensor:
    """The constants of a node's input channels, zero for those that stay."""
    node = followed.walk.nodes[at]
    data = operands(node)[0]
    gone = torch.from_numpy(channels_gone(followed.flow, data, _channel_dim(node), followed.gone))
    return torch.where(gone, followed.read[at], 0)


def _settle(followed: FollowedConstants, consumer: Consumer, seat: Seat, at: int, first: Tensor) -> bool:
    """Refuse the units whose constant can't be kept in a consumer; says whether others are exact only inside.

    Args:
        followed: the run's constants; it takes the refusals.
        consumer, seat: the consumer, and where it can keep a constant.
        at: one of its nodes.
        first: the constants that its first node reads.
    """
    node, constants = followed.walk.nodes[at], _removed_inputs(followed, at)
    data = operands(node)[0]

    def shaped(marks: Tensor) -> Tensor:
        return marks.reshape([-1 if d == _channel_dim(node) % rank else 1 for d in range(rank)])

    rank = len(followed.flow.shape(data))
    speaks = shaped(constants != 0)
    followed.refuse(data, shaped(constants.isnan()), f"{consumer.name} reads no constant")
    if seat.problem:
        followed.refuse(data, speaks, f"read by {consumer.name}: {seat.problem}")
    elif consumer.outputs_of_a_tap > 1:
        followed.refuse(data, speaks, f"{consumer.name}, transposed with a stride, spreads a constant unevenly")
    followed.refuse(data, shaped(constants != first), f"{consumer.name} is called again and reads another constant")
    padded = _padded(node, followed.flow.shape(operands(node)[1]))
    if padded:
        followed.meets_padding(data, speaks, consumer.name)
    return padded or bool(followed.held(data, speaks) & followed.padded)


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
