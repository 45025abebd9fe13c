"""Units and groups, written by hand beside the networks; pins and their reasons; the trace itself."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

import secateur
from secateur.errors import ModelError, PlanError
from secateur.graph.rules import RULES
from secateur.graph.rules.reshape import blocks
from secateur.plan import plan_of


def members(graph: secateur.Graph, name: str) -> set[tuple[str, int]]:
    (group,) = (g for g in graph.groups if g.name == name)
    return set(group.members)


def slices(graph: secateur.Graph, name: str, unit: int) -> set[tuple[str, int, int]]:
    (group,) = (g for g in graph.groups if g.name == name)
    return {(graph.tensors[t].name, d, i) for t, d, i in graph.slots(group.units[unit])}


def test_plain_chain() -> None:
    graph = secateur.trace(zoo.build("plain"), zoo.example())
    assert [(g.name, len(g)) for g in graph.groups if g.pinned is None] == [("a.0", 8), ("b.0", 12)]
    norm = {("a.1.weight", 0), ("a.1.bias", 0), ("a.1.running_mean", 0), ("a.1.running_var", 0)}
    assert members(graph, "a.0") == {("a.0.weight", 0), ("b.0.weight", 1)} | norm
    reasons = {g.name: g.pinned for g in graph.groups if g.pinned}
    assert reasons["head"] == "output of the network"
    assert "fixed" in reasons["a.0.weight"]  # the image's three channels


def test_unit_ids_are_dense_and_groups_partition_them() -> None:
    for name in zoo.NETWORKS:
        graph = secateur.trace(zoo.build(name), zoo.example())
        assert [u for g in graph.groups for u in g.units] == list(range(graph.units))
        assert len({g.name for g in graph.groups}) == len(graph.groups)


def test_residual_sum_is_one_group_and_marked() -> None:
    graph = secateur.trace(zoo.build("resnet_basic"), zoo.example())
    first = next(g for g in graph.groups if ("stem.0.weight", 0) in g.members)
    assert {("stem.0.weight", 0), ("blocks.0.conv2.weight", 0), ("blocks.1.down.0.weight", 1)} <= set(first.members)
    marked = {graph.groups[graph.solution.group_of[u]].name for u in np.flatnonzero(graph.residual)}
    assert marked == {first.name, next(g.name for g in graph.groups if ("blocks.1.conv2.weight", 0) in g.members)}


def test_shared_pooling_indices_couple_encoder_and_decoder() -> None:
    graph = secateur.trace(zoo.build("segnet"), zoo.example())
    group = next(g for g in graph.groups if ("e1.0.weight", 0) in g.members)
    assert {("e1.0.weight", 0), ("e2.0.weight", 1), ("d2.0.weight", 0), ("d1.0.weight", 1)} <= set(group.members)


def test_concatenation_keeps_every_index_apart() -> None:
    graph = secateur.trace(zoo.build("nested"), zoo.example())
    # head reads [b 6, c 8, a 4, a 4, b 6]
    assert slices(graph, "b.0", 2) >= {
        ("b.0.weight", 0, 2),
        ("c.0.weight", 1, 6),
        ("head.weight", 1, 2),
        ("head.weight", 1, 24),
    }
    assert slices(graph, "a.0", 1) >= {
        ("a.0.weight", 0, 1),
        ("c.0.weight", 1, 1),
        ("head.weight", 1, 15),
        ("head.weight", 1, 19),
    }


def test_the_same_tensor_twice() -> None:
    graph = secateur.trace(zoo.build("twice"), zoo.example())
    assert slices(graph, "b.0", 3) >= {("head.weight", 1, 3), ("head.weight", 1, 9)}
    shared = next(g for g in graph.groups if ("shared.0.weight", 0) in g.members)
    assert {("a.0.weight", 0), ("shared.0.weight", 1), ("b.0.weight", 1)} <= set(shared.members)


def test_depthwise_goes_group_by_group() -> None:
    graph = secateur.trace(zoo.build("inverted"), zoo.example())
    # 8 channels, two filters each: filters 2 i and 2 i + 1 belong to channel i
    unit = next(g for g in graph.groups if ("wider.0.weight", 0) in g.members).units[3]
    found = {
        (graph.tensors[t].name, i)
        for t, d, i in graph.slots(unit)
        if graph.tensors[t].name in ("wider.0.weight", "head.weight")
    }
    assert found == {("wider.0.weight", 6), ("wider.0.weight", 7), ("head.weight", 6), ("head.weight", 7)}


def test_grouped_convolution_loses_the_ith_of_each_group() -> None:
    graph = secateur.trace(zoo.build("resnext"), zoo.example())
    group = next(g for g in graph.groups if ("blocks.0.conv1.weight", 0) in g.members)
    rows = {i for t, d, i in graph.slots(group.units[1]) if graph.tensors[t].name == "blocks.0.conv1.weight" and d == 0}
    assert rows == {1, 3, 5, 7}  # 8 channels in 4 groups of 2


def test_flattened_maps_carry_all_their_pixels() -> None:
    graph = secateur.trace(zoo.build("flat"), zoo.example())
    columns = sorted(
        i for t, d, i in graph.slots(graph.find("b.0")[0].units[2]) if graph.tensors[t].name == "fc1.weight" and d == 1
    )
    assert columns == list(range(32, 48))


@pytest.mark.parametrize(
    ("name", "group", "words"),
    [
        ("baked", "b.0", "split_with_sizes into unequal parts [5, 7]"),
        ("unknown", "b.0", "no rule for linalg_matrix_exp"),
        ("norms", "c", "layer norm"),
        ("tied", "unused", "never used in forward"),
        ("attention", "head", "output of the network"),
    ],
)
def test_pins_have_reasons(name: str, group: str, words: str) -> None:
    graph = secateur.trace(zoo.build(name), zoo.example())
    (found,) = (g for g in graph.groups if g.name == group)
    assert words in (found.pinned or "")
    assert words in str(graph)
    assert words in graph.explain(group)


def test_a_size_written_in_the_code_is_found_by_running_again() -> None:
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = zoo.conv_bn(3, 8), zoo.conv_bn(8, 8), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y = y.view(x.shape[0], 8, y.shape[2] * y.shape[3]).view_as(y)  # the 8 is literal
            return self.c(self.b(y))

    graph = secateur.trace(Literal(), zoo.example())
    reasons = {g.name: g.pinned for g in graph.groups}
    assert "a size is written in the code" in reasons["a.0"] and "shape" in reasons["a.0"]
    assert reasons["b.0"] is None


def test_the_other_factor_is_tried_when_a_reshape_leaves_a_choice() -> None:
    """view(b, 2, 16, ...) keeps 16 by default; here it is the 2 parts' own size that is literal and the other that
    follows.
    """

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = zoo.conv_bn(3, 32), nn.Conv2d(32, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            n, c, h, w = y.shape
            y = y.view(n, c // 16, 16, h, w).transpose(1, 2).reshape(n, c, h, w)
            return self.c(y)

    model = zoo.randomise(Parts()).double()
    graph = secateur.trace(model, zoo.example().double())
    group = next(g for g in graph.groups if ("a.0.weight", 0) in g.members)
    assert group.pinned is None and len(group) == 2
    assert secateur.prune(model, zoo.example().double(), method="random", pruning_ratio=0.5).report.ok


def test_tracing_falls_back_to_real_tensors_where_values_are_read() -> None:
    graph = secateur.trace(zoo.build("tied"), zoo.example())
    assert graph.prunable.any()


def test_a_network_that_fails_says_so() -> None:
    with pytest.raises(ModelError, match=r"Plain fails in eval mode on example inputs of shape \(2, 4, 16, 20\)"):
        secateur.trace(zoo.build("plain"), torch.zeros(2, 4, 16, 20))


def test_train_mode_that_fails_is_noted_not_fatal() -> None:
    class EvalOnly(zoo.Plain):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise ValueError("targets are needed")
            return super().forward(x)

    model = EvalOnly()
    graph = secateur.trace(model, zoo.example())
    assert "targets are needed" in str(graph)
    assert secateur.prune(model, zoo.example(), pruning_ratio=0.5).report.ok


def test_hooks_and_modes_survive_tracing() -> None:
    model = zoo.build("pyramid")
    model.stem.train()
    seen = []
    model.stem.register_forward_hook(lambda *_: seen.append(1))
    secateur.trace(model, zoo.example())
    assert model.stem.training and not model.trunk.training
    assert len(model.stem._forward_hooks) == 1


def test_auxiliary_heads_that_only_training_uses_are_pruned_too() -> None:
    graph = secateur.trace(zoo.build("pyramid"), zoo.example())
    aux = next(g for g in graph.groups if ("aux.0.weight", 0) in g.members)
    assert aux.pinned is None
    assert {t for t, _ in aux.members} >= {"aux.0.weight", "aux.4.weight"}


def test_plans_refuse_pinned_units_and_empty_groups() -> None:
    graph = secateur.trace(zoo.build("plain"), zoo.example())
    with pytest.raises(PlanError, match="head can't be removed; pinned: output of the network"):
        plan_of(graph, [graph.find("head")[0].units[0]])
    with pytest.raises(PlanError, match="at least one must stay"):
        plan_of(graph, graph.find("a.0")[0].units)


def test_unknown_name_names_the_nearest() -> None:
    graph = secateur.trace(zoo.build("plain"), zoo.example())
    with pytest.raises(ModelError, match="did you mean 'head'"):
        graph.explain("haed")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((8, 6, 5), (8, 30), [([0], [0]), ([1, 2], [1])]),
        ((8, 12), (8, 3, 4), [([0], [0]), ([1], [1, 2])]),
        ((2, 1, 12), (2, 12, 1), [([0], [0]), ([2], [1])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
        ((2, 8, 3, 4), (2, 2, 4, 12), [([0], [0]), ([1], [1, 2]), ([2, 3], [3])]),
    ],
)
def test_blocks_of_a_reshape(before: tuple[int, ...], after: tuple[int, ...], expected: list) -> None:
    assert blocks(before, after) == expected


def test_every_rule_has_an_operator() -> None:
    """No misspelt operator in the table: each is an operator of this torch, or the in-place form of one."""
    known = {name.removeprefix("aten::").partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    unknown = [name for name in RULES if name not in known and name.rstrip("_") not in known]
    assert unknown == []


def test_conv1d_conv3d_and_instance_like_norms() -> None:
    one = nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3))
    three = nn.Sequential(
        nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2), nn.ConvTranspose3d(8, 4, 2)
    )
    for model, x in ((one, torch.randn(2, 3, 16)), (three, torch.randn(2, 3, 8, 8, 8))):
        result = secateur.prune(zoo.randomise(model), x, method="l1", pruning_ratio=0.5)
        assert result.report.ok and result.model[0].out_channels == 4


def test_zero_padding_of_a_shortcut_is_pinned_where_the_padding_is_literal() -> None:
    class PadShortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.b, self.c = zoo.conv_bn(3, 8), zoo.conv_bn(8, 16), zoo.conv_bn(16, 16)
            self.head = nn.Conv2d(16, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.c(self.b(x)) + F.pad(x, (0, 0, 0, 0, 4, 4)))

    model = zoo.randomise(PadShortcut()).double()
    result = secateur.prune(model, zoo.example().double(), method="random", pruning_ratio=0.5)
    assert result.report.ok and len(result.plan)


class InTraining(nn.Module):
    """In train mode, a size that is written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        runs.write("train " if self.training else "eval ")
        y = self.one(x).relu()
        if self.training and self.one.bias is not None:
            y = y.reshape(y.shape[0], 8, -1).reshape(y.shape)
        return self.head(self.two(y).relu())


runs = io.StringIO()  # a list would be put back after each run


def test_what_runs_in_train_mode_only_is_tried_there() -> None:
    graph = secateur.trace(InTraining(), torch.zeros(1, 3, 4, 4))
    reasons = {group.name: group.pinned for group in graph.groups}
    assert "written in the code" in str(reasons["one"]) and reasons["two"] is None


def test_a_network_without_surprises_runs_twice_to_be_recorded_and_once_a_draw() -> None:
    net = InTraining()
    net.one = nn.Conv2d(3, 8, 1, bias=False)  # then train mode runs through the same code
    runs.seek(runs.truncate(0))
    graph = secateur.trace(net, torch.zeros(1, 3, 4, 4))
    assert [group.pinned for group in graph.groups if group.name in ("one", "two")] == [None, None]
    assert runs.getvalue() == "eval train eval eval eval "
