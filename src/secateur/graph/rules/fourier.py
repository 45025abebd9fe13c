"""Complex numbers and Fourier transforms: linear along the transformed dimensions, the others pass."""

from __future__ import annotations

from secateur.graph.capture import Node
from secateur.graph.flow import Flow
from secateur.graph.labels import copied
from secateur.graph.rules.table import rule


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def transform(flow: Flow, node: Node) -> None:
    layout, dims = flow.get(node.args[0]), node.args[1]
    over = {d % len(layout) for d in dims}
    for d in over:
        flow.pin(layout[d], "Fourier transform along this dimension")
    flow.set(node.outputs[0], copied([() if d in over else dim for d, dim in enumerate(layout)]))


@rule("view_as_complex")
def complex_of_pairs(flow: Flow, node: Node) -> None:
    layout = flow.get(node.args[0])
    flow.pin(layout[-1], "real and imaginary part")
    flow.set(node.outputs[0], layout[:-1])


@rule("view_as_real")
def pairs_of_complex(flow: Flow, node: Node) -> None:
    flow.set(node.outputs[0], [*flow.get(node.args[0]), ()])
