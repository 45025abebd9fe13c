"""The central law on networks that nobody thought of: drawn from many operators, with plans over all prunable units."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import randomise

import secateur
from secateur.plan import plan_of

MOST = 24  # channels
SIZE = 8  # height and width


def conv(i: int, o: int, k: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2 * options.get("dilation", 1), **options)


class Layer(nn.Module):
    """One step of a random network: reads the current map and all earlier ones, gives one of `out` channels."""

    out: int


class Conv(Layer):
    def __init__(self, c: int, past: list[int], out: int, k: int, groups: int, stride: int, bias: bool) -> None:
        super().__init__()
        groups = groups if c % groups == 0 and out % groups == 0 else 1
        self.conv, self.out = conv(c, out, k, groups=groups, stride=stride, bias=bias), out

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        return F.interpolate(self.conv(y), size=y.shape[2:])


class Depthwise(Layer):
    def __init__(self, c: int, past: list[int], times: int, bias: bool, transposed: bool) -> None:
        super().__init__()
        times, kind = times if c * times <= MOST else 1, nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv, self.out = kind(c, c * times, 3, padding=1, groups=c, bias=bias), c * times

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        return self.conv(y)


class Transposed(Layer):
    def __init__(self, c: int, past: list[int], out: int, groups: int) -> None:
        super().__init__()
        groups = groups if c % groups == 0 and out % groups == 0 else 1
        self.conv, self.out = nn.ConvTranspose2d(c, out, 2, 2, groups=groups), out

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        return F.max_pool2d(self.conv(y), 2)


class Standardised(Layer):
    """The weight is computed: zero mean for every filter."""

    def __init__(self, c: int, past: list[int], over: str) -> None:
        super().__init__()
        self.conv, self.out, self.dims = conv(c, c), c, (2, 3) if over == "space" else (1, 2, 3)

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        weight = self.conv.weight
        return F.conv2d(y, weight - weight.mean(self.dims, keepdim=True), self.conv.bias, padding=1)


class Norm(Layer):
    def __init__(self, c: int, past: list[int], kind: str) -> None:
        super().__init__()
        self.out = c
        self.norm = {
            "batch": lambda: nn.BatchNorm2d(c), "bare": lambda: nn.BatchNorm2d(c, affine=False),
            "instance": lambda: nn.InstanceNorm2d(c),
            "running": lambda: nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
            "group": lambda: nn.GroupNorm(2 if c % 2 == 0 else c, c), "layer": lambda: nn.GroupNorm(1, c),
        }[kind]()  # fmt: skip

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        return self.norm(y)


class Act(Layer):
    def __init__(self, c: int, past: list[int], kind: str, inplace: bool) -> None:
        super().__init__()
        self.out, options = c, {"inplace": inplace} if kind in ("ReLU", "SiLU", "Hardswish", "LeakyReLU", "ELU") else {}
        self.act = nn.PReLU(c) if kind == "PReLU" else getattr(nn, kind)(**options)

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        return self.act(y.clone())  # the past keeps what was before


class Sum(Layer):
    def __init__(self, c: int, past: list[int], back: int, inplace: bool) -> None:
        super().__init__()
        self.back, self.out, self.inplace = back % len(past), c, inplace
        other = past[self.back]
        self.fit = nn.Identity() if other == c else conv(other, c, 1, bias=False)

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        other = self.fit(past[self.back])
        if not self.inplace:
            return y + other
        y = y.clone()
        y += other
        return y


class Cat(Layer):
    def __init__(self, c: int, past: list[int], backs: list[int], nested: bool) -> None:
        super().__init__()
        self.backs, self.nested = [b % len(past) for b in backs], nested
        while self.backs and c + sum(past[b] for b in self.backs) > MOST:
            self.backs.pop()
        self.out = c + sum(past[b] for b in self.backs)

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        maps = [past[b] for b in self.backs]
        return torch.cat([torch.cat([y, *maps[:1]], 1), *maps[1:]] if self.nested else [*maps, y], 1)


class Halves(Layer):
    def __init__(self, c: int, past: list[int], how: str, then: str) -> None:
        super().__init__()
        self.how, self.then, self.whole = how, then, c % 2 == 1 or c < 4
        self.out = c if self.whole or then == "work" else c // 2
        self.work = conv(c // 2, c // 2) if then == "work" and not self.whole else None

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        if self.whole:
            return y
        half = y.shape[1] // 2
        if self.how == "chunk":
            a, b = y.chunk(2, 1)
        elif self.how == "split":
            a, b = torch.split(y, half, 1)
        elif self.how == "slice":
            a, b = y[:, :half], y[:, half:]
        else:
            a, b = y.view(y.shape[0], 2, half, *y.shape[2:]).unbind(1)
        if self.work is not None:
            return torch.cat([b, self.work(a)], 1)
        if self.then == "gate":
            return a * torch.sigmoid(b)
        return torch.maximum(a, b) if self.then == "max" else a - 2 * b


class Shuffle(Layer):
    def __init__(self, c: int, past: list[int], groups: int, module: bool) -> None:
        super().__init__()
        self.out, self.groups = c, groups if c % groups == 0 else 1
        self.module = nn.ChannelShuffle(self.groups) if module else None

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        if self.module is not None:
            return self.module(y)
        n, c, h, w = y.shape
        return y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Unpool(Layer):
    """Max-pooled, worked on, and put back where the maxima were."""

    def __init__(self, c: int, past: list[int], work: bool) -> None:
        super().__init__()
        self.out, self.work = c, conv(c, c) if work else nn.Identity()

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        # Which of two equal values is the maximum would be decided by rounding.
        slope = torch.linspace(0, 1e-3, y.shape[2] * y.shape[3], dtype=y.dtype, device=y.device)
        small, places = F.max_pool2d(y + slope.view(y.shape[2:]), 2, return_indices=True)
        return F.max_unpool2d(self.work(small), places, 2)


class Gate(Layer):
    """Squeeze and excitation, by linear layers or 1x1 convolutions; or one spatial map."""

    def __init__(self, c: int, past: list[int], kind: str, width: int) -> None:
        super().__init__()
        self.out, self.kind = c, kind
        if kind == "linear":
            self.gate: nn.Module = nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, c), nn.Sigmoid())
        elif kind == "conv":
            self.gate = nn.Sequential(nn.Conv2d(c, width, 1), nn.SiLU(), nn.Conv2d(width, c, 1), nn.Hardsigmoid())
        else:
            self.gate = nn.Sequential(nn.Conv2d(c, 1, 3, padding=1), nn.Sigmoid())

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        if self.kind == "linear":
            return y * self.gate(y.mean((2, 3)))[:, :, None, None]
        return y * self.gate(F.adaptive_avg_pool2d(y, 1) if self.kind == "conv" else y)


class Shared(Layer):
    def __init__(self, c: int, past: list[int], norm: bool) -> None:
        super().__init__()
        self.out, self.conv, self.norm = c, conv(c, c), nn.BatchNorm2d(c) if norm else nn.Identity()

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        return self.norm(self.conv(torch.relu(self.norm(self.conv(y)))))


class PixelShuffle(Layer):
    def __init__(self, c: int, past: list[int], out: int, there_and_back: bool) -> None:
        super().__init__()
        self.there_and_back, self.out = there_and_back, out
        self.conv = conv(c, 4 * out) if not there_and_back else conv(4 * c, out)

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        if self.there_and_back:
            return F.interpolate(self.conv(F.pixel_unshuffle(y, 2)), scale_factor=2)
        return F.avg_pool2d(F.pixel_shuffle(self.conv(y), 2), 2)


class Linear(Layer):
    """Channels last and back."""

    def __init__(self, c: int, past: list[int], out: int) -> None:
        super().__init__()
        self.linear, self.out = nn.Linear(c, out), out

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        return self.linear(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Affinity(Layer):
    """Attention over positions."""

    def __init__(self, c: int, past: list[int], width: int) -> None:
        super().__init__()
        self.out, self.q, self.k, self.v = c, nn.Conv2d(c, width, 1), nn.Conv2d(c, width, 1), nn.Conv2d(c, c, 1)

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        q, k, v = (layer(y).flatten(2) for layer in (self.q, self.k, self.v))
        return y + (v @ torch.softmax(q.transpose(1, 2) @ k, -1).transpose(1, 2)).view_as(y)


class Written(Layer):
    """Written into a tensor made on the fly, side by side."""

    def __init__(self, c: int, past: list[int], work: bool) -> None:
        super().__init__()
        self.whole = 2 * c > MOST
        self.out, self.work = c if self.whole else 2 * c, conv(c, c, 1) if work else nn.Identity()

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        if self.whole:
            return y
        c = y.shape[1]
        out = torch.zeros(y.shape[0], 2 * c, *y.shape[2:], dtype=y.dtype, device=y.device)
        out[:, :c] = self.work(y)
        out[:, c:] = y
        return out


class Elementwise(Layer):
    def __init__(self, c: int, past: list[int], kind: str) -> None:
        super().__init__()
        if kind in ("repeat", "twice") and 2 * c > MOST:
            kind = "drop"
        self.out, self.kind = 2 * c if kind in ("repeat", "twice") else c, kind
        self.scale = nn.Parameter(torch.randn(c)) if kind == "scale" else None
        self.drop = nn.Dropout2d(0.5)
        if kind == "constant":
            self.register_buffer("constant", torch.randn(1, c, 1, 1))

    def forward(self, y: Tensor, past: list[Tensor]) -> Tensor:
        steps: dict[str, Callable[[], Tensor]] = {
            "scale": lambda: y * self.scale[:, None, None],  # type: ignore[index]
            "constant": lambda: y + self.constant,
            "centre": lambda: y - y.mean((2, 3), keepdim=True),
            "normalise": lambda: F.normalize(y, dim=1),
            "drop": lambda: self.drop(y),
            "where": lambda: torch.where(y > 0.1, y, torch.zeros_like(y)),
            "spread": lambda: y / (1 + y.std((2, 3), keepdim=True)),
            "repeat": lambda: y.repeat(1, 2, 1, 1),
            "twice": lambda: torch.stack([y, -y], 2).flatten(1, 2),
            "blur": lambda: F.conv2d(y, y.new_ones(y.shape[1], 1, 3, 3), padding=1, groups=y.shape[1]),
            "pool": lambda: F.avg_pool2d(F.pad(y, (1, 1, 1, 1), mode="reflect"), 3, 1),
        }
        return steps[self.kind]()


class Network(nn.Module):
    """A list of steps, a head over the last map, and one over every map in `outputs`.

    Args:
        steps: (layer, its options after the channels).
        head: "map" for a 1x1 convolution, "flat" for a linear layer over the flattened map, "mean" over space.
        outputs: numbers of maps that are read out as well.
    """

    def __init__(self, steps: list[tuple[type[Layer], tuple[Any, ...]]], head: str, outputs: list[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU())
        widths, layers = [8], []
        for kind, options in steps:
            layers.append(kind(widths[-1], widths, *options))
            widths.append(layers[-1].out)
        self.layers, self.head = nn.ModuleList(layers), head
        features = widths[-1] * (16 if head == "flat" else 1)
        self.last = conv(features, 5, 1) if head == "map" else nn.Linear(features, 5)
        self.outputs = sorted({o % len(widths) for o in outputs})
        self.others = nn.ModuleList(nn.Conv2d(widths[o], 2, 1) for o in self.outputs)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        past = [self.stem(x)]
        for layer in self.layers:
            past.append(layer(past[-1], past))
        y = past[-1]
        if self.head == "flat":
            y = F.adaptive_avg_pool2d(y, 4).flatten(1)
        elif self.head == "mean":
            y = y.mean((2, 3))
        others = zip(self.outputs, self.others, strict=True)
        return {"out": self.last(y)} | {str(o): head(past[o]) for o, head in others}


def step(kind: type[Layer], *options: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[type[Layer], tuple[Any, ...]]]:
    return st.tuples(st.just(kind), st.tuples(*options))


flag, width, back = st.booleans(), st.sampled_from([4, 6, 8, 12]), st.integers(0, 9)
STEPS = st.one_of(
    step(Conv, width, st.sampled_from([1, 3]), st.sampled_from([1, 1, 2, 4]), st.sampled_from([1, 2]), flag),
    step(Norm, st.sampled_from(["batch", "batch", "bare", "instance", "running", "group", "layer"])),
    step(Act, st.sampled_from(["ReLU", "SiLU", "Sigmoid", "PReLU", "Hardswish", "LeakyReLU", "ELU", "Softplus"]), flag),
    step(Sum, back, flag),
    step(Cat, st.lists(back, max_size=3), flag),
    step(Halves, st.sampled_from(["chunk", "split", "slice", "view"]), st.sampled_from(["work", "gate", "max", "sum"])),
    step(Depthwise, st.sampled_from([1, 2]), flag, flag),
    step(Transposed, width, st.sampled_from([1, 2])),
    step(Standardised, st.sampled_from(["space", "filter"])),
    step(Shuffle, st.sampled_from([2, 3, 4]), flag),
    step(Unpool, flag),
    step(Gate, st.sampled_from(["linear", "conv", "spatial"]), st.sampled_from([2, 4])),
    step(Shared, flag),
    step(PixelShuffle, st.sampled_from([4, 6]), flag),
    step(Linear, width),
    step(Affinity, st.sampled_from([2, 4])),
    step(Written, flag),
    step(Elementwise, st.sampled_from(["scale", "constant", "centre", "normalise", "drop", "where", "spread", "repeat",
                                       "twice", "blur", "pool"])),
)  # fmt: skip


def drawn_plan(graph: secateur.Graph, seed: int) -> secateur.Plan:
    """Any share of every group, something of each stays."""
    generator = np.random.default_rng(seed)
    removed = np.zeros(graph.units, dtype=bool)
    for group in graph.groups:
        if group.pinned is None and len(group) > 1:
            removed[generator.choice(group.units, generator.integers(0, len(group)), replace=False)] = True
    return plan_of(graph, removed)


# `make fuzz` asks for more examples, and for others than the usual ones.
EXAMPLES = int(os.environ.get("SECATEUR_EXAMPLES", "0"))


@settings(
    max_examples=EXAMPLES or 150,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    steps=st.lists(STEPS, min_size=1, max_size=7),
    head=st.sampled_from(["map", "flat", "mean"]),
    outputs=st.lists(back, max_size=2),
    seed=st.integers(0, 999),
)
def test_any_plan_of_any_network_is_exact(
    steps: list[tuple[type[Layer], tuple[Any, ...]]], head: str, outputs: list[int], seed: int
) -> None:
    check(steps, head, outputs, seed)


def test_three_groups_of_one_small_size_are_told_apart() -> None:
    """Each may lose one or two of its channels only, so that two lose as many in every draw if nobody minds."""
    steps = [(PixelShuffle, (6, False)), *[(Conv, (4, 1, 1, 1, False))] * 2, (Written, (True,)), (Affinity, (2,))]
    graph = check(steps, "map", [], 1)
    assert ("layers.3.work.weight", 0) in next(group for group in graph.groups if group.name == "layers.2.conv").members


@pytest.mark.parametrize("seed", range(8))
def test_two_halves_do_not_pass_for_a_whole(seed: int) -> None:
    """Groups of two units each lose one wherever they lose any: together as many as a group of four may lose."""
    check([(Conv, (4, 1, 1, 1, False)), (Halves, ("chunk", "work")), (Written, (True,))], "map", [], seed)


def check(steps: list[tuple[type[Layer], tuple[Any, ...]]], head: str, outputs: list[int], seed: int) -> secateur.Graph:
    """Cut equals silenced, in eval and train mode, on an input that tracing did not see; the original is left alone."""
    torch.manual_seed(seed)
    model = randomise(Network(steps, head, outputs), seed).double().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = secateur.trace(model, torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64))
    plan = drawn_plan(graph, seed)
    small, silent = secateur.apply(model, plan), zoo.silenced_by_hand(model, plan)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    x = torch.randn(3, 3, SIZE, SIZE, dtype=torch.float64)
    for training in (False, True):
        for network in (small, silent):
            network.train(training)
            for module in network.modules():
                if isinstance(module, nn.Dropout2d):
                    module.eval()
        got, expected = small(x), silent(x)
        for name in expected:
            assert got[name].shape == expected[name].shape
            # Statistics over nearly constant maps make rounding errors large: hence not 1e-12.
            assert_close(
                got[name].detach(), expected[name].detach(), f"{name} in {'train' if training else 'eval'} mode"
            )
        check_gradients(small, got, silent, expected, plan)
    return graph


def check_gradients(
    small: nn.Module, got: dict[str, Tensor], silent: nn.Module, expected: dict[str, Tensor], plan: secateur.Plan
) -> None:
    """What stays has the gradient that it has in the silenced network."""
    for network, outputs in ((small, got), (silent, expected)):
        network.zero_grad()
        sum(output.square().mean() for output in outputs.values()).backward()
    large = dict(silent.named_parameters())
    wanted = {name: p.grad for name, p in large.items() if p.grad is not None}
    if not all(gradient.isfinite().all() for gradient in wanted.values()):
        return  # the silenced network divides by the deviation of a silent channel
    for name, p in small.named_parameters():
        if p.grad is None:
            continue
        gradient = wanted[name]
        for dim in plan.removed.get(name, {}):
            gradient = gradient.index_select(dim, torch.as_tensor(plan.kept(name, dim)))
        assert_close(p.grad, gradient, f"gradient of {name}", tolerance=1e-7)


def assert_close(got: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    error, scale = (got - expected).abs().max(), expected.abs().max()
    assert error <= tolerance * max(scale, 1e-3), f"{what}: {error:.1e} of {scale:.1e}"
