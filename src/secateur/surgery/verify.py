"""The proof that comes with every cut: pruned(x) == silenced original(x)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.errors import ModelError, SecateurError
from secateur.graph import mapped_state, mode_of, run, state_of, tensors_in, twice, unwrapped
from secateur.plan import Plan
from secateur.surgery.cut import select, silence

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

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
        >>> report = secateur.prune(net, torch.randn(1, 3, 8, 8), pruning_ratio=0.5).report
        >>> report.ok, report.relative_error <= 1e-5
        (True, True)
        >>> [(check.mode, check.weights) for check in report.checks]
        [('eval', 'own'), ('eval', 'random'), ('train', 'own'), ('train', 'random')]
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

    Raises:
        ModelError: nothing can be compared, since the original has no data, fails itself, or gives nothing.

    Examples:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
        >>> image = torch.randn(1, 3, 8, 8)
        >>> graph = secateur.trace(net, image)
        >>> plan = secateur.select(graph, secateur.score(graph, "l1"), pruning_ratio=0.5)
        >>> small = secateur.apply(net, plan)
        >>> secateur.verify(net, small, plan, image).ok
        True
        >>> with torch.no_grad():
        ...     small[2].bias += 1.0
        >>> print(secateur.verify(net, small, plan, image))  # doctest: +ELLIPSIS
        NOT exact: largest relative error ...
    """
    model, small = unwrapped(model), unwrapped(small)
    owner = type(model).__name__
    if any(tensor.is_meta for tensor in state_of(model).values()):
        raise ModelError(f"{owner} has tensors without data (on the meta device), which can't be compared; load them")
    checks = []
    for training in (False, True):
        inputs = twice(example_inputs) if training else example_inputs

        def own(dtype: torch.dtype | None, inputs: Any = inputs, training: bool = training) -> Check | None:
            silent, cut = partial(_silent_state, model, plan, dtype), partial(_own_state, small, dtype)
            return compared(model, small, silent, cut, inputs, training, "own")

        first = own(None)
        if first is None and not training:
            raise ModelError(
                f"{owner} itself fails in eval mode on the example inputs, which tracing needs no values of"
            )
        if first is None:  # the original itself does not run in train mode on this input
            continue
        if not first.ok and first.dtype != "float64":
            inputs = in_float64(inputs)
            double = own(torch.float64, inputs)
            first = double if double is not None else first
        checks.append(first)
        silent, cut = (partial(_random_state, model, plan, cutting) for cutting in (False, True))
        third = compared(model, small, silent, cut, in_float64(inputs), training, "random")
        if third is not None and not third.problem.startswith("the original"):
            checks.append(third)
    error = max((c.relative_error for c in checks), default=float("inf"))
    return Report(error, bool(checks) and all(c.ok for c in checks), tuple(checks))


State = Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]]


def compared(
    model: nn.Module,
    small: nn.Module,
    silenced: State,
    pruned: State,
    inputs: Any,
    training: bool,
    weights: str,
) -> Check | None:
    """Run a network with its silenced tensors and the pruned one with its own; None if the former does not run.

    Args:
        silenced: tensors for `model`, or what makes them: then they are dropped before the other network's are made.
        pruned: the same for `small`.
    """
    mode = "train" if training else "eval"
    state = _made(silenced)
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    name = str(dtype).removeprefix("torch.")

    def failed(problem: str) -> Check:
        return Check(mode, weights, name, float("inf"), False, problem)

    try:
        expected = _outputs(model, state, inputs, training)
    except SecateurError:
        raise
    except Exception:
        return None
    finally:
        del state
    if expected and not any(t.numel() for t in expected):
        raise ModelError(f"{type(model).__name__} gives empty outputs on the example inputs: nothing can be compared")
    if not all(torch.isfinite(t).any() for t in expected if t.is_floating_point() and t.numel()):
        if weights == "random":
            return None
        return failed(f"the original's output is not finite in {mode} mode")
    try:
        got = _outputs(small, _made(pruned), inputs, training)
    except Exception as failure:
        return failed(f"the pruned network fails in {mode} mode: {type(failure).__name__}: {failure}")
    if [t.shape for t in got] != [t.shape for t in expected]:
        return failed(f"the output's shapes differ in {mode} mode")
    error = max((_relative_error(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)
    tolerance = TOLERANCE.get(dtype, FLOAT32_TOLERANCE)
    if dtype == torch.float64 and tolerance < error <= MOST_ROUNDING:
        nudged = _outputs(model, _nudged(_made(silenced)), inputs, training)
        rounding = max((_relative_error(a, b) for a, b in zip(nudged, expected, strict=True)), default=0.0)
        tolerance = max(tolerance, min(ROUNDINGS * rounding, MOST_ROUNDING))
    ok = error <= tolerance
    problem = "" if ok else f"relative error {error:.1e} in {mode} mode, {weights} weights"
    return Check(mode, weights, name, error, ok, problem, tolerance)


def _made(state: State) -> dict[str, Tensor]:
    return dict(state() if callable(state) else state)


def _outputs(model: nn.Module, state: Mapping[str, Tensor], inputs: Any, training: bool) -> list[Tensor]:
    with mode_of(model, training), _Quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        inputs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
        return tensors_in(run(model, state, inputs))


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
    """Every weight changed by a rounding error of one sign or the other; takes the tensors out of the given state."""
    generator = torch.Generator().manual_seed(0)
    made: dict[int, tuple[Tensor, Tensor]] = {}
    shared = Counter(map(id, state.values()))
    for name, tensor in state.items():
        if tensor.is_floating_point():
            new = made[id(tensor)][1] if id(tensor) in made else None
            if new is None:
                signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
                new = tensor * (1 + torch.finfo(tensor.dtype).eps * signs)
                if shared[id(tensor)] > 1:
                    made[id(tensor)] = (tensor, new)
            state[name] = new
    return state


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


def _own_state(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A network's tensors, copied; floating-point ones in the given type."""
    return mapped_state(model, lambda _, tensor: _copied(tensor, dtype))


def _silent_state(model: nn.Module, plan: Plan, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A network's tensors, copied, silenced by the plan."""
    state = _own_state(model, dtype)
    silence(state, plan)
    return state


def _copied(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to(dtype if tensor.is_floating_point() and dtype else tensor.dtype, copy=True)


def _random_state(model: nn.Module, plan: Plan, cutting: bool) -> dict[str, Tensor]:
    """Weights in float64 that let every channel show (none zero, variances positive), silenced or cut by the plan.

    Both are drawn alike, so that only one of them need exist at a time.
    """
    parameters = {id(p) for p in model.parameters()}
    generator = torch.Generator().manual_seed(0)
    drawn = _Normal(generator)

    def draw(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        if tensor.dim() >= 2 and id(tensor) in parameters:
            new = drawn(tensor.shape).div_(max(1, tensor.numel() // max(1, len(tensor))) ** 0.5)
        elif id(tensor) in parameters or name.endswith(("running_mean", "running_var")):
            new = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
        else:
            return tensor.detach().to(torch.float64, copy=True)  # a constant of the network: its values mean something
        return new.to(tensor.device)

    def draw_cut(name: str, tensor: Tensor) -> Tensor:
        # A plan names a tied tensor once, by its first name, which comes first here.
        kept = {d: torch.as_tensor(plan.kept(name, d), device=tensor.device) for d in plan.slices.get(name, {})}
        return select(draw(name, tensor), kept)

    if cutting:
        return mapped_state(model, draw_cut)
    random = mapped_state(model, draw)
    silence(random, plan)
    return random


class _Normal:
    """Tensors of normally distributed numbers, of any size, at the price of a copy.

    They are cut one after the other out of a ring of random numbers. Its length is prime, so that no two channels of a
    tensor are alike, however many times the ring goes round.
    """

    PRIME = 65_537

    def __init__(self, generator: torch.Generator) -> None:
        self.ring = torch.randn(self.PRIME, generator=generator, dtype=torch.float64)
        self.at = 0

    def __call__(self, shape: Sequence[int]) -> Tensor:
        new = torch.empty(tuple(shape), dtype=torch.float64)
        flat, done = new.view(-1), 0
        while done < len(flat):
            part = min(len(flat) - done, self.PRIME - self.at)
            flat[done : done + part] = self.ring[self.at : self.at + part]
            done, self.at = done + part, (self.at + part) % self.PRIME
        return new
