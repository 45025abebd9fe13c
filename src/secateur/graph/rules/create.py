"""Tensors made inside forward."""

from __future__ import annotations

import numpy as np

from secateur.graph.capture import Node
from secateur.graph.flow import Flow
from secateur.graph.labels import FREE, Track, copied
from secateur.graph.rules.table import rule


@rule("zeros", "ones", "full", "empty", "empty_strided", "new_zeros", "new_ones", "new_full", "new_empty",
      "new_empty_strided", "rand", "randn", "scalar_tensor", "empty_permuted")  # fmt: skip
def filled(flow: Flow, node: Node) -> None:
    """The same everywhere, or noise: whose channel an element is depends on what it meets or what is written there."""
    for out in node.outputs:
        if out is not None:
            flow.set(out, [(Track(np.full(n, FREE)),) if n > 1 else () for n in flow.shape(out)])


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "bernoulli")
def like(flow: Flow, node: Node) -> None:
    """As large as another tensor: the channels are that one's."""
    flow.set(node.outputs[0], copied(flow.get(node.args[0]), zero=node.op == "zeros_like"))


@rule("normal")
def drawn(flow: Flow, node: Node) -> None:
    """From numbers to a given size; from tensors of means and deviations there is no rule."""
    if any(node.inputs()):
        return flow.barrier("noise with a mean or deviation for every element")
    return filled(flow, node)


@rule("arange", "linspace", "eye", "randperm", "randint", "tril_indices", "triu_indices")
def fixed(flow: Flow, node: Node) -> None:
    """Every element has its own value: the size can't change."""
    for out in node.outputs:
        if out is not None:
            flow.set(out, [()] * len(flow.shape(out)))
