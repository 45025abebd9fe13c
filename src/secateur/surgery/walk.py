"""The recorded run as surgery reads it: who makes and who reads a value, and which of its channels a plan removes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import PlanError
from secateur.graph import Flow, Graph
from secateur.graph.capture import Node, Ref
from secateur.graph.operators import CONVOLUTIONS
from secateur.plan import Plan, plan_of, units_of

PADS = ("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
        "replication_pad2d", "replication_pad3d")  # fmt: skip
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv")


class Walk:
    """Who makes and who reads every value of a recorded run."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.nodes = flow.capture.nodes
        self.maker: dict[int, Node] = {}
        self.readers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for out in node.outputs:
                if out is not None:
                    self.maker.setdefault(out.value, node)
            for ref in node.inputs() if node.op != "detach" else ():  # autograd's own copies lead nowhere
                self.readers.setdefault(ref.value, []).append(node)
        self.name_of = {value: name for name, value in reversed(flow.capture.names.items())}

    def parameter(self, ref: Any) -> str:
        """The name of the parameter or buffer that a value is, as it is or transposed; "" if it is none."""
        if not isinstance(ref, Ref):
            return ""
        if ref.value not in self.name_of:
            maker = self.maker.get(ref.value)
            if maker is None or maker.op != "t":
                return ""
            ref = maker.args[0]
        return self.name_of.get(ref.value, "")


def gone_of(graph: Graph, plan: Plan) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """bool per unit and bool per atom: removed by the plan.

    Raises:
        PlanError: the plan was not made for this graph.
    """
    by_name = {t.name: t for t in graph.tensors}
    for name in plan.slices:
        if name not in by_name or plan.shapes.get(name) != by_name[name].shape:
            raise PlanError(
                f"the plan removes slices of {name}, of which the traced {type(graph.model).__name__} has none of that "
                "shape; make the plan from the same graph: secateur.select(graph, ...)"
            )
    units = units_of(graph, plan)
    if plan_of(graph, units).slices != plan.slices:
        raise PlanError(
            "the plan removes parts of units of this graph; make the plan from the same graph: secateur.select(...)"
        )
    return units, graph.removed_atoms(units)


def channels_gone(flow: Flow, ref: Ref, dim: int, gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool per index of a value's dimension: it belongs to a removed atom."""
    marks = np.zeros(flow.shape(ref)[dim], dtype=bool)
    for track in flow.get(ref)[dim]:
        live = track.atoms >= 0
        marks[live] |= gone[track.atoms[live]]
    return marks


def operands(node: Node) -> tuple[Ref, Ref]:
    """What a convolution or a matrix product reads: the data and the weight."""
    first, second = node.args[1:3] if node.op in ("addmm", "baddbmm", "addmv") else node.args[:2]
    return first, second


def is_product(node: Node) -> bool:
    return node.op in CONVOLUTIONS or node.op in _PRODUCTS
