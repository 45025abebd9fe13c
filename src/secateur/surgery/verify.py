"""The proof that comes with every cut: pruned(x) == silenced original(x)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.errors import SecateurError
from secateur.graph import mapped_state, mode_of, run, state_of, tensors_in, twice, unwrapped
from secateur.plan import Plan
from secateur.surgery.cut import select, silenced

TOLERANCE = {torch.float64: 1e-12}
FLOAT32_TOLERANCE = 1e-5

# A deep network multiplies rounding errors (batch normalisation over few values most of all): its answer to one unit in
# the last place of every weight says how much. So many times that is still rounding; a wrong cut is far above it.
ROUNDINGS = 100
MOST_ROUNDING = 1e-6

# What operators that draw noise give while two networks are compared.
_CONSTANT = {"bernoulli": 1.0, "bernoulli_": 1.0, "rand": 0.5, "rand_like": 0.5, "uniform_": 0.5, "randn": 0.0,
             "randn_like": 0.0, "normal": 0.0, "normal_": 0.0, "exponential_": 1.0}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: "eval" or "train" mode, with the network's "own" weights or "random" ones."""

    mode: str
    weights: str
    dtype: str
    relative_error: float
    ok: bool
    problem: str = ""
    tolerance: float = FLOAT32_TOLERANCE


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a verification.

    Attributes:
        relative_error: the largest max |pruned - silenced| / max |silenced| over all outputs and deciding checks.
        ok: every check is within its tolerance: 1e-5 in float32; in float64 1e-12, or 100 times the network's own
            answer to a change of one unit in the last place where that is more.
        checks: all comparisons made.
    """

    relative_error: float
    ok: bool
    checks: tuple[Check, ...]

    def __str__(self) -> str:
        state = "exact" if self.ok else "NOT exact"
        problems = "; ".join(c.problem for c in self.checks if c.problem)
        worst = f" ({problems})" if problems else ""
        return f"{state}: largest relative error {self.relative_error:.2e} in {len(self.checks)} checks{worst}"


def verify(model: nn.Module, small: nn.Module, plan: Plan, example_inputs: Any) -> Report:
    """Compare a pruned network with the original whose removed slices are zero.

    Both run on the example inputs in eval and in train mode (dropout off), with their own weights, and once more in
    float64 with random weights: a network fresh from its initialisation can hide a wrong cut behind zeros. Where
    float32 rounding alone exceeds the tolerance, the comparison is decided in float64. Neither network is changed.

    Args:
        model: the original.
        small: the pruned network.
        plan: what was removed.
        example_inputs: as for `trace`.
    """
    model, small = unwrapped(model), unwrapped(small)
    checks = []
    for training in (False, True):
        inputs = twice(example_inputs) if training else example_inputs
        silent = silenced(state_of(model), plan)
        pruned = mapped_state(small, lambda _, tensor: tensor.detach().clone())
        own = compared(model, small, silent, pruned, inputs, training, "own")
        if own is None:  # the original itself does not run in train mode on this input
            continue
        if not own.ok and own.dtype != "float64":
            double = compared(model, small, in_float64(silent), in_float64(pruned), in_float64(inputs), training, "own")
            own = double if double is not None else own
        checks.append(own)
        silent, cut = _random_states(model, plan)
        third = compared(model, small, silent, cut, in_float64(inputs), training, "random")
        if third is not None and not third.problem.startswith("the original"):
            checks.append(third)
    error = max((c.relative_error for c in checks), default=float("inf"))
    return Report(error, bool(checks) and all(c.ok for c in checks), tuple(checks))


def compared(
    model: nn.Module,
    small: nn.Module,
    silenced: dict[str, Tensor],
    pruned: dict[str, Tensor],
    inputs: Any,
    training: bool,
    weights: str,
) -> Check | None:
    """Run a network with its silenced tensors and the pruned one with its own; None if the former does not run."""
    mode = "train" if training else "eval"
    dtype = next((t.dtype for t in silenced.values() if t.is_floating_point()), torch.float32)
    name = str(dtype).removeprefix("torch.")

    def failed(problem: str) -> Check:
        return Check(mode, weights, name, float("inf"), False, problem)

    try:
        expected = list(_outputs(model, silenced, inputs, training))
    except SecateurError:
        raise
    except Exception:
        return None
    if not all(torch.isfinite(t).any() for t in expected if t.is_floating_point() and t.numel()):
        if weights == "random":
            return None
        return failed(f"the original's output is not finite in {mode} mode")
    try:
        got = list(_outputs(small, pruned, inputs, training))
    except Exception as failure:
        return failed(f"the pruned network fails in {mode} mode: {type(failure).__name__}: {failure}")
    if [t.shape for t in got] != [t.shape for t in expected]:
        return failed(f"the output's shapes differ in {mode} mode")
    error = max((_relative_error(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)
    tolerance = TOLERANCE.get(dtype, FLOAT32_TOLERANCE)
    if dtype == torch.float64 and tolerance < error <= MOST_ROUNDING:
        nudged = list(_outputs(model, _nudged(silenced), inputs, training))
        rounding = max((_relative_error(a, b) for a, b in zip(nudged, expected, strict=True)), default=0.0)
        tolerance = max(tolerance, min(ROUNDINGS * rounding, MOST_ROUNDING))
    ok = error <= tolerance
    problem = "" if ok else f"relative error {error:.1e} in {mode} mode, {weights} weights"
    return Check(mode, weights, name, error, ok, problem, tolerance)


def _outputs(model: nn.Module, state: dict[str, Tensor], inputs: Any, training: bool) -> Iterator[Tensor]:
    with mode_of(model, training), _Quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        inputs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
        return iter(tensors_in(run(model, state, inputs)))


class _Quiet(TorchDispatchMode):
    """Randomness made constant: the networks draw noise of different shapes, which can't be compared (dropout ...)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.rpartition("::")[2]
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        out = func(*args, **(kwargs or {}))
        return out.fill_(_CONSTANT[name]) if name in _CONSTANT else out


def _relative_error(a: Tensor, b: Tensor) -> float:
    if b.numel() == 0:
        return 0.0
    if not (b.is_floating_point() or b.is_complex()):
        return 0.0 if torch.equal(a, b) else float("inf")
    a, b = (t.detach().to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
    finite = torch.isfinite(b)  # masks of infinities are part of some outputs
    same = torch.allclose(a[~finite], b[~finite], equal_nan=True) and torch.isfinite(a[finite]).all()
    if not same or not finite.any():
        return float("inf")
    difference = (a - b)[finite].abs().max().item()
    scale = b[finite].abs().max().item()
    return difference / scale if scale > 0 else difference


def _nudged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every weight changed by a rounding error of one sign or the other."""
    generator = torch.Generator().manual_seed(0)

    def nudge(tensor: Tensor) -> Tensor:
        signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
        return tensor * (1 + torch.finfo(tensor.dtype).eps * signs)

    return _each_float(nudge, state)


def in_float64(tree: Any) -> Any:
    """Every floating-point tensor in float64; shared tensors stay shared."""
    return _each_float(Tensor.double, tree)


def _each_float(convert: Callable[[Tensor], Tensor], tree: Any) -> Any:
    made: dict[int, Tensor] = {}

    def one(item: Any) -> Any:
        if not isinstance(item, Tensor) or not item.is_floating_point():
            return item
        if id(item) not in made:
            made[id(item)] = convert(item)
        return made[id(item)]

    return pytree.tree_map(one, tree)


def _random_states(model: nn.Module, plan: Plan) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights in float64 that let every channel show (none zero, variances positive), silenced and cut by the plan."""
    parameters = {id(p) for p in model.parameters()}
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        if tensor.dim() >= 2 and id(tensor) in parameters:
            new = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / max(1, tensor[0].numel()) ** 0.5
        elif id(tensor) in parameters or name.endswith(("running_mean", "running_var")):
            new = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
        else:
            return tensor.detach().to(torch.float64, copy=True)  # a constant of the network: its values mean something
        return new.to(tensor.device)

    random = mapped_state(model, draw)
    cut: dict[int, Tensor] = {}
    for name, tensor in random.items():  # a plan names a tied tensor once, by its first name, which comes first here
        if id(tensor) not in cut:
            dims = plan.removed.get(name, {})
            cut[id(tensor)] = select(
                tensor, {d: torch.as_tensor(plan.kept(name, d), device=tensor.device) for d in dims}
            )
    return silenced(random, plan), {name: cut[id(t)] for name, t in random.items()}
