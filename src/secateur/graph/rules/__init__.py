"""How labels travel through each ATen operator: one small rule per operator, one file per family.

To add an operator, write a function `(flow, node) -> None` under `@rule("operator_name")` in the file of its family;
an operator that is not here pins the channels that reach it, with its name in the reason.
"""

from secateur.graph.rules import (
    convolution,
    create,
    elementwise,
    fourier,
    index,
    join,
    linear,
    norm,
    pool,
    reduce,
    reshape,
    scatter,
    split,
)
from secateur.graph.rules.table import RULES, rule

__all__ = [
    "RULES", "convolution", "create", "elementwise", "fourier", "index", "join", "linear", "norm", "pool", "reduce",
    "reshape", "rule", "scatter", "split",
]  # fmt: skip
