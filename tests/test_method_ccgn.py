"""CCGN: gates and losses against their formulas, what is trained and what is executed, and that nothing is removed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import methods
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import zoo
from own_networks import Residual, Squeezed
from scipy import stats
from test_pipeline import experiment, same, tiny
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import secateur
from secateur.errors import MethodError, RecipeError
from secateur.methods.ccgn import CCGN
from secateur.methods.gates import HIDDEN, TEMPERATURE, batch_shaping, batch_shaping_gradient, step
from secateur.pipeline.inputs import Inputs
from secateur.report import comparison_table
from secateur.training.weights import load_weights

OWN = {"residual": Residual, "squeezed": Squeezed}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return zoo.randomise(OWN[name]()).double() if name in OWN else zoo.build(name).double()


def image(samples: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(samples, 3, 16, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gated(model: nn.Module, steps: int = 8, **options: Any) -> tuple[secateur.Pruner, CCGN]:
    method = CCGN(**options)
    pruner = secateur.Pruner(model, image(2), method=method)
    pruner.begin(steps=steps, lr_sum=0.1 * steps)
    return pruner, method


def train(model: nn.Module, pruner: secateur.Pruner, steps: int, first: int = 0, tell: bool = True) -> None:
    """Steps of plain SGD without momentum, each with images of its own."""
    for number in range(first, first + steps):
        model.zero_grad()
        methods.logits_of(model(image(seed=number))).square().mean().backward()
        pruner.after_backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        if tell:
            pruner.after_step(0.1)


# -- the formulas


def distance(p: list[float], a: float, b: float) -> float:
    """1 / N sum over i of (i / (N + 1) - F(p_(i)))^2, one sample at a time."""
    n = len(p)
    return sum((i / (n + 1) - stats.beta.cdf(x, a, b)) ** 2 for i, x in enumerate(sorted(p), start=1)) / n


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.4), (2.0, 5.0)])
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_batch_shaping_is_the_squared_distance_of_distribution_functions(samples: int, a: float, b: float) -> None:
    logits = 3 * torch.randn(samples, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [distance(column.tolist(), a, b) for column in logits.sigmoid().T]
    assert batch_shaping(logits, a, b).tolist() == pytest.approx(expected, rel=1e-10)
    gradient, little = batch_shaping_gradient(logits, a, b), 1e-6
    for place in np.ndindex(samples, 5):
        up, down = logits.clone(), logits.clone()
        up[place] += little
        down[place] -= little
        slope = (batch_shaping(up, a, b) - batch_shaping(down, a, b)).sum() / (2 * little)
        assert float(gradient[place]) == pytest.approx(float(slope), rel=1e-5, abs=1e-9)


def test_gates_that_follow_the_prior_are_left_alone() -> None:
    """At the quantiles i / (N + 1) the distance and its gradient are zero."""
    quantiles = torch.tensor(stats.beta.ppf(np.arange(1, 8) / 8, 0.6, 0.4))[torch.randperm(7), None]
    assert float(batch_shaping(quantiles.logit(), 0.6, 0.4)) < 1e-25
    assert batch_shaping_gradient(quantiles.logit(), 0.6, 0.4).abs().max() < 1e-12


def test_extreme_logits_have_finite_gradients() -> None:
    """The density of Beta(0.6, 0.4) is infinite at both ends."""
    logits = torch.tensor([[-800.0, 0.0], [-30.0, 40.0], [40.0, 90.0], [900.0, -900.0]])
    assert batch_shaping_gradient(logits, 0.6, 0.4).isfinite().all()


def test_gates_are_steps_with_the_slope_of_a_sigmoid() -> None:
    logits = torch.tensor([[-2.0, 0.5], [0.1, -0.3]], dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([[3.0, -1.0], [0.0, 0.2]], dtype=torch.float64)
    gates = step(logits, noise)
    assert gates.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    gates.backward(torch.full((2, 2), 2.0, dtype=torch.float64))
    soft = torch.sigmoid((logits.detach() + noise) / TEMPERATURE)
    assert torch.allclose(logits.grad, 2 * soft * (1 - soft) / TEMPERATURE, rtol=1e-12)


def by_hand(gate: nn.Module, features: Tensor) -> Tensor:
    """logits = W2 relu(BN(W1 mean(z))) + b2, in train mode, layer by layer."""
    hidden = features.mean((2, 3)) @ gate.first.weight.T
    centred = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + gate.norm.eps).sqrt()
    return (centred * gate.norm.weight + gate.norm.bias).relu() @ gate.second.weight.T + gate.second.bias


def test_the_gated_network_is_the_network_times_its_gates() -> None:
    model = network("residual").eval()
    pruner, method = gated(model)
    x = image()
    assert method.gated == ("first.0.0", "second.0.0", "third.0.0")
    with torch.no_grad():
        for gate in method.gates.children():
            gate.second.bias.fill_(0.0)
            assert gate.first.weight.shape[0] == HIDDEN
        got = model(x)

        def branch(sequence: nn.Sequential, name: str, z: Tensor) -> Tensor:
            gates = (method.gates[name].eval()(z) > 0).double()
            assert 0.1 < gates.mean() < 0.9
            return sequence[2](sequence[1](sequence[0][1](sequence[0][0](z)) * gates[:, :, None, None]))

        pruner.close()
        z = nn.functional.max_pool2d(model.stem(x).relu(), 2)
        z = (z + branch(model.first, "first/0/0", z)).relu()
        z = (model.short(z) + branch(model.second, "second/0/0", z)).relu()
        z = (z + branch(model.third, "third/0/0", z)).relu()
        expected = nn.functional.interpolate(model.head(z), scale_factor=4.0, mode="bilinear")
    assert torch.equal(got, expected) and not torch.equal(model(x), expected)


class LiteralShaping(torch.autograd.Function):
    """The squared distance as the paper gives it, in probabilities, with the Beta density as its slope."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, a: float, b: float) -> Tensor:
        e = (p.argsort(dim=0).argsort(dim=0) + 1).double() / (len(p) + 1)
        values = p.detach().numpy()
        difference = e - torch.from_numpy(stats.beta.cdf(values, a, b))
        ctx.save_for_backward(-2 / len(p) * difference * torch.from_numpy(stats.beta.pdf(values, a, b)))
        return difference.square().mean(0).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None


@pytest.mark.parametrize("done", [0, 2, 6])
@pytest.mark.parametrize("name", ["residual", "resnet_bottleneck", "unet", "segnet", "squeezed"])
def test_what_is_trained_is_the_loss_plus_both_terms(name: str, done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of the network's and the gates' parameters, against the terms added to the loss literally."""
    found = []
    for literal in (False, True):
        model = network(name).train()
        pruner, method = gated(model, gamma=0.7, lam=3.0, a=0.8, b=0.5)
        train(model, pruner, done)
        logits: list[Tensor] = []
        for gate in method.gates.children():
            gate.register_forward_hook(lambda module, args, output, into=logits: into.append(output))
        if literal:
            monkeypatch.setattr(CCGN, "_pull", lambda self, logits: torch.zeros_like(logits))
        model.zero_grad()
        loss = methods.logits_of(model(image(seed=9))).square().mean()
        if literal:
            gamma = 0.7 * (1 - done / 4) if done < 4 else 0.0
            share = torch.cat([layer.sigmoid().mean(0) for layer in logits]).mean()
            loss = loss + gamma * sum(LiteralShaping.apply(layer.sigmoid(), 0.8, 0.5) for layer in logits)
            loss = loss + (3.0 if done >= 4 else 0.0) * share
        loss.backward()
        found.append([parameter.grad for parameter in (*model.parameters(), *method.gates.parameters())])
        pruner.close()
    assert any(float(g.abs().max()) > 1e-4 for g in found[0])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-13)


def test_logits_are_those_of_two_layers_behind_a_pooling() -> None:
    model = network("residual").train()
    _, method = gated(model)
    gate = method.gates["first/0/0"].train()
    with torch.no_grad():
        features = 3 * torch.randn(5, 16, 4, 6, dtype=torch.float64)
        torch.testing.assert_close(gate(features), by_hand(gate, features), rtol=1e-12, atol=1e-14)


# -- which layers


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet_bottleneck", ("blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1")),
        ("inverted", ("expand.0",)),
        ("segnet", ("e1.0", "e2.0", "mid.0", "d2.0", "d1.0")),
        ("unet", ("d1.0", "d2.0", "d3.0", "up2", "u2.0", "u1.0")),
    ],
)
def test_first_convolutions_of_residual_blocks_are_gated_or_all(name: str, layers: tuple[str, ...]) -> None:
    assert gated(network(name))[1].gated == layers


def test_squeezed_maps_of_one_position_are_not_gated() -> None:
    assert not [name for name in gated(network("squeezed"))[1].gated if name.endswith(("down", "up"))]


def test_layers_may_be_named() -> None:
    assert gated(network("segnet"), layers=["e2", "d1.0"])[1].gated == ("e2.0", "d1.0")
    assert len(gated(network("residual"), layers="all")[1].gated) == 8
    with pytest.raises(MethodError, match=r"'e9' names no convolution that can be gated; known: all, blocks, d1.0"):
        gated(network("segnet"), layers=["e9"])
    with pytest.raises(MethodError, match="head"):  # the logits must all be there
        gated(network("segnet"), layers="head")
    with pytest.raises(MethodError, match="no convolution whose output channels could be left out"):
        secateur.Pruner(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3), method=CCGN())


# -- what is executed


def macs(conv: nn.Conv2d, size: tuple[int, int], outputs: float, inputs: float) -> float:
    """Of one sample, so many of the output and input channels being there."""
    height, width = size
    return height * width * conv.kernel_size[0] * conv.kernel_size[1] * outputs * inputs


def test_executed_macs_are_those_of_open_channels() -> None:
    """A residual network, sample by sample: a closed channel is neither made nor read."""
    model = network("residual").eval()
    pruner, method = gated(model)
    with torch.no_grad():
        for gate in method.gates.children():
            gate.second.bias.fill_(0.0)
    x, opened, expected = image(5), dict[str, Tensor](), list[float]()
    for layer in method._layers:
        module = model.get_submodule(layer.site.norm)
        module.register_forward_hook(
            lambda module, args, output, name=layer.site.module: opened.__setitem__(
                name, (output.abs().amax((2, 3)) > 0).sum(1).double()
            )
        )
    with torch.no_grad(), method.counting() as executed:
        for part in x.split(3):
            model(part)
            counts = [opened[name].tolist() for name in method.gated]
            secateur.cost(model, part)  # a trace executes nothing
            expected += [by_layers(model, *of_sample) for of_sample in zip(*counts, strict=True)]
    assert executed.samples == 5
    gates = sum(g.first.weight.numel() + g.second.weight.numel() for g in method.gates.children())
    assert executed.total == pytest.approx(sum(expected) + 5 * gates, rel=1e-12)
    assert executed.mean == executed.total / 5
    assert executed.dense == secateur.cost(model, x).macs / 5 == by_layers(model, 12, 24, 20)
    pruner.close()


def by_layers(model: nn.Module, a: float, b: float, c: float) -> float:
    """Of one sample of 16 x 20, so many channels being open in the three blocks."""
    full, half, quarter, w = (16, 20), (8, 10), (4, 5), 16
    return (
        macs(model.stem[0], full, w, 3)
        + macs(model.first[0][0], half, a, w) + macs(model.first[2][0], half, w, a)
        + macs(model.second[0][0], quarter, b, w) + macs(model.second[2][0], quarter, 2 * w, b)
        + macs(model.short[0], quarter, 2 * w, w)
        + macs(model.third[0][0], quarter, c, 2 * w) + macs(model.third[2][0], quarter, 2 * w, c)
        + macs(model.head, quarter, 4, 2 * w)
    )  # fmt: skip


def test_coupled_channels_are_left_out_where_all_their_gates_are_closed() -> None:
    """SegNet: an encoder layer and the decoder layer that unpools with its indices share channels."""
    model = network("segnet").eval()
    pruner, method = gated(model)
    graph = pruner.graph

    def run(closed: dict[str, list[int]]) -> float:
        with torch.no_grad():
            for layer in method._layers:
                layer.gate.second.weight.zero_()
                layer.gate.second.bias.fill_(1.0)
                layer.gate.second.bias[closed.get(layer.site.module, [])] = -1.0
            with method.counting() as executed:
                model(image(2))
        return executed.mean - sum(layer.gate.macs for layer in method._layers)

    units = {layer.site.module: layer.site.units for layer in method._layers}
    shared = [i for i, unit in enumerate(units["e1.0"]) if unit in units["d2.0"]]
    assert shared, "the encoder's and the decoder's channels are coupled"
    place = shared[0]
    other = int(np.flatnonzero(units["d2.0"] == units["e1.0"][place])[0])
    assert run({}) == secateur.cost(model, image(1)).macs
    assert run({"e1.0": [place]}) == run({"d2.0": [other]}) == run({})
    removed = np.zeros(graph.units, dtype=bool)
    removed[units["e1.0"][place]] = True
    without = secateur.apply(model, secateur.plan.plan_of(graph, removed))
    assert run({"e1.0": [place], "d2.0": [other]}) == secateur.cost(without, image(1)).macs
    pruner.close()
    with pytest.raises(MethodError, match="detached"), method.counting():
        pass


# -- training


def test_the_l0_term_closes_gates_and_batch_shaping_spreads_them() -> None:
    model = network("residual").train()
    pruner, method = gated(model, steps=60, lam=400.0, warm_up=0.0)
    train(model, pruner, 60)
    pruner.after_epoch(0)
    assert pruner.log()["gates_open"] < 0.85 and pruner.log()["lambda"] == 400.0
    model.eval()
    with torch.no_grad(), method.counting() as executed:
        model(image(8))
    assert executed.mean < 0.9 * executed.dense
    pruner.close()

    def distances(model: nn.Module, method: CCGN) -> float:
        logits: list[Tensor] = []
        hooks = [g.register_forward_hook(lambda m, a, out: logits.append(out)) for g in method.gates.children()]
        model(image(16, seed=99))
        for hook in hooks:
            hook.remove()
        return float(torch.cat([batch_shaping(layer.detach(), 0.6, 0.4) for layer in logits]).mean())

    model = network("residual").train()
    pruner, method = gated(model, steps=10**6, gamma=0.75, warm_up=1.0)
    before = distances(model, method)
    train(model, pruner, 60)
    assert distances(model, method) < 0.5 * before
    pruner.close()


def test_a_step_that_is_not_told_is_made_up_for_with_its_own_gradients() -> None:
    """Without `after_step` it happens after the next backward pass, whose gradients wait for the step after that."""
    once, late = (network("residual").train() for _ in range(2))
    (pruner, told), (other, untold) = gated(once), gated(late)
    train(once, pruner, 1)
    train(late, other, 2, tell=False)
    for a, b in zip(told.gates.parameters(), untold.gates.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("owed", [False, True])
def test_interrupted_and_resumed_equals_uninterrupted(owed: bool) -> None:
    """Also between a backward pass and the step that it is for."""

    def fresh() -> tuple[nn.Module, secateur.Pruner, CCGN]:
        model = network("residual").train()
        return model, *gated(model)

    def weights(model: nn.Module, method: CCGN) -> list[Tensor]:
        return [t.clone() for t in (*model.state_dict().values(), *method.gates.state_dict().values())]

    model, pruner, method = fresh()
    train(model, pruner, 8, tell=not owed)
    pruner.after_epoch(0)
    whole, log = weights(model, method), pruner.log()
    model, pruner, _ = fresh()
    train(model, pruner, 3, tell=not owed)
    saved = copy.deepcopy((pruner.state_dict(), model.state_dict()))
    train(model, pruner, 2)
    model, pruner, method = fresh()
    pruner.load_state_dict(saved[0])
    model.load_state_dict(saved[1])
    train(model, pruner, 5, first=3, tell=not owed)
    pruner.after_epoch(0)
    assert all(torch.equal(a, b) for a, b in zip(whole, weights(model, method), strict=True))
    assert pruner.log() == log


def test_the_network_itself_stays_as_it_is() -> None:
    model = network("residual").eval()
    x, names = image(), list(model.state_dict())
    before = model(x)
    pruner, method = gated(model)
    for gate in method.gates.children():
        nn.init.zeros_(gate.second.bias)
    twin = copy.deepcopy(model)
    assert list(model.state_dict()) == names and not torch.equal(model(x), before)
    assert torch.equal(twin(x), model(x))  # a copy asks the same gates
    pruner.close()
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_one_image_at_a_time() -> None:
    model = network("residual").train()
    pruner, method = gated(model)
    methods.logits_of(model(image(1))).square().mean().backward()
    pruner.after_backward()
    pruner.after_step(0.1)
    pruner.after_epoch(0)
    assert all(parameter.isfinite().all() for parameter in method.gates.parameters())


def test_misuse_is_refused() -> None:
    model = network("residual").train()
    for options in ({"open": 1.0}, {"warm_up": 1.5}, {"a": 0.0}, {"lam": -1.0}):
        with pytest.raises(MethodError, match=next(iter(options))):
            CCGN(**options)
    pruner = secateur.Pruner(model, image(2), method=CCGN())
    methods.logits_of(model(image())).square().mean().backward()
    with pytest.raises(MethodError, match=r"pruner.begin\(steps"):
        pruner.after_backward()
    with torch.autocast("cpu", torch.float16), pytest.raises(MethodError, match="float16"):
        model.float()(image().float())


def test_nothing_is_removed() -> None:
    model = network("residual")
    pruner, _ = gated(model)
    for refused in (
        lambda: pruner.finish(pruning_ratio=0.5),
        lambda: pruner.finish(),
        lambda: pruner.step(pruning_ratio=0.5),
        lambda: pruner.aim(pruning_ratio=0.5),
        lambda: secateur.prune(model, image(1), method=CCGN(), pruning_ratio=0.5),
        lambda: secateur.score(secateur.trace(model, image(1)), CCGN()),
    ):
        with pytest.raises(MethodError, match=r"ccgn .*removes none"):
            refused()
    pruner.close()


# -- several processes


def part(rank: int, world: int) -> tuple[dict[str, Tensor], int, float]:
    """Three steps on this process's images, and how much it executes."""
    model = network("residual").train()
    pruner, method = gated(model)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for number in range(3):
        optimizer.zero_grad()
        wrapped(image(4, seed=number)[rank::world]).square().mean().backward()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step(0.1)
    model.eval()
    with torch.no_grad(), method.counting() as executed:
        model(image(4)[rank::world])
    return method.gates.state_dict(), executed.samples, executed.total


def worker(rank: int, world: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=world)
    try:
        torch.save(part(rank, world), Path(out, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


def test_processes_keep_the_same_gates_and_count_together(tmp_path: Path) -> None:
    mp.spawn(worker, args=(2, str(tmp_path)), nprocs=2)
    (gates, samples, total), other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert samples == other[1] == 4 and total == other[2]
    assert all(torch.equal(value, other[0][name]) for name, value in gates.items())


# -- a whole run


def recipe(**sections: dict[str, Any]) -> Any:
    own = f"{Path(__file__).with_name('own_networks.py')}:residual"
    return tiny(**{
        "method": {"name": "ccgn", "options": {"lam": 50.0, "warm_up": 0.25}}, "model": {"name": own, "width": 16},
        "sparsify": {"epochs": 4}, "evaluate": {"latency_repeats": 1, "pictures": 1}, **sections,
    })  # fmt: skip


def test_a_run_keeps_the_gated_network_and_tells_what_it_executes(tmp_path: Path) -> None:
    run = experiment(recipe(), tmp_path / "run")
    result = run.run()
    rows = {row["stage"]: row for row in result["stages"]}
    assert list(rows) == ["unpruned", "gated", "finetuned"]
    assert rows["finetuned"]["params"] == rows["unpruned"]["params"] and result["budget"] is None
    assert "executed_macs" not in rows["unpruned"]
    for stage in ("gated", "finetuned"):
        assert 0 < rows[stage]["executed_macs"] < 1.1 * rows[stage]["macs"] == 1.1 * rows["unpruned"]["macs"]
    assert "removes none" in result["warnings"][0] and "budget was not used" in result["warnings"][0]
    assert secateur.Plan.from_json((tmp_path / "run" / "plan.json").read_text()).removed == {}
    # the network as a user opens it
    network = secateur.load(tmp_path / "run" / "model.safetensors", Residual(11, 16))
    pruner = secateur.Pruner(network, torch.zeros(1, 3, 32, 48), method="ccgn")
    load_weights(pruner.method.gates, tmp_path / "run" / "gates.safetensors")
    with pruner.method.counting() as executed:
        scores = run.measuring.scores(network)
    assert executed.mean == rows["finetuned"]["executed_macs"]
    assert scores.miou == pytest.approx(rows["finetuned"]["miou"], abs=1e-12)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [line["lambda"] for line in metrics if "lambda" in line]
    assert told == [50.0] * 5 and "gates_open" in metrics[-1]  # the fine-tuning goes on where the sparsifying ended
    assert "executed on average" in (tmp_path / "run" / "log.txt").read_text()
    table = comparison_table({"ccgn": [result]})
    assert f"{rows['finetuned']['executed_macs'] / 1e9:.3f}" in table


def test_stages_one_by_one_end_like_the_whole_run(tmp_path: Path) -> None:
    experiment(recipe(), tmp_path / "whole").run()
    for stage in ("train", "prune", "finetune", "evaluate"):
        getattr(experiment(recipe(), tmp_path / "parts", resume=stage != "train"), stage)()
    for name in ("model.safetensors", "gates.safetensors"):
        assert same(tmp_path / "whole" / name, tmp_path / "parts" / name)


def test_recipes_that_gate_nothing_are_refused(tmp_path: Path) -> None:
    for section, expected in (
        ({"sparsify": {"epochs": 0}}, "give sparsify.epochs"),
        ({"schedule": {"steps": 2}}, "removes none: expected schedule.steps=1"),
    ):
        with pytest.raises(RecipeError, match=expected):
            experiment(recipe(**section), tmp_path / "run")
    with pytest.raises(RecipeError, match="float16"):  # found before a device is asked for
        Inputs(recipe(run={"precision": 16}))
    with pytest.raises(MethodError, match="names no convolution that can be gated"):
        experiment(recipe(method={"name": "ccgn", "options": {"layers": ["nowhere"]}}), tmp_path / "run")
