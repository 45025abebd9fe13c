"""MCAG: rankings by hand, the minority, the flow over the epochs, what is kept for a rare class, its variants."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import methods
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

import secateur
from secateur.errors import DataError, MethodError
from secateur.methods import Material
from secateur.methods.class_taylor import class_scores
from secateur.methods.distances import closest_pairs, unit_distances
from secateur.methods.minority import by_rank_sum, interleaved, labels_of, minority_of, pixel_counts, rarest_first
from secateur.methods.soft import filter_norms

VARIANTS = ("taylor_small_group", "taylor_small", "taylor", "sfp", "fpgm", "tmm")

# rankings


def test_the_interleaved_ranking_of_an_example() -> None:
    """Three classes, the rarest first, and five channels.

    rarest     scores 1 9 3 7 0   ranking 1 3 2 0 4
    second     scores 8 9 2 1 3   ranking 1 0 4 2 3
    third      scores 5 1 4 2 3   ranking 0 2 4 3 1

    All firsts: 1, 1, 0. All seconds: 3, 0, 2. All thirds: 2, 4, 4. Every channel where it appears first: 1 0 3 2 4.
    """
    scores = np.array([[1.0, 9, 3, 7, 0], [8, 9, 2, 1, 3], [5, 1, 4, 2, 3]])
    assert interleaved(scores).tolist() == [1, 0, 3, 2, 4]
    assert interleaved(scores[[2, 0]]).tolist() == [0, 1, 2, 3, 4]  # 0 1, 2 3, 4 2 ...
    assert interleaved(np.zeros((2, 4))).tolist() == [0, 1, 2, 3]  # ties by channel


def test_the_sum_of_ranks_of_the_same_example() -> None:
    """Places of channel 0: 3 + 1 + 0 = 4; 1: 0 + 0 + 4 = 4; 2: 2 + 3 + 1 = 6; 3: 1 + 4 + 3 = 8; 4: 4 + 2 + 2 = 8."""
    scores = np.array([[1.0, 9, 3, 7, 0], [8, 9, 2, 1, 3], [5, 1, 4, 2, 3]])
    assert by_rank_sum(scores).tolist() == [0, 1, 2, 3, 4]


def test_of_the_closest_pair_the_one_nearer_to_the_rest_goes() -> None:
    """Points 0, 1, 5, 7, 20 on a line. Closest are 0 and 1, and 1 is nearer to the rest; then 5 and 7, of which 5 is
    the nearer (0: 5, 20: 15, against 7 and 13, with the 2 between them 22 each: a tie, the lower one); 0 and 7; 0 | 7
    to 20: 7 is nearer; at last 0 and 20."""
    x = np.array([0.0, 1, 5, 7, 20])
    assert closest_pairs(np.abs(x[:, None] - x[None])).tolist() == [1, 2, 3, 0, 4]


def test_closest_pairs_against_a_search_among_all(seed: int = 0) -> None:
    points = np.random.default_rng(seed).normal(size=(12, 3))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    left, order = list(range(12)), []
    while len(left) > 1:
        gap = {i: min(distances[i, j] for j in left if j != i) for i in left}
        close = [i for i in left if np.isclose(gap[i], min(gap.values()), rtol=1e-5)]
        order.append(min(close, key=lambda i: sum(distances[i, j] for j in left)))
        left.remove(order[-1])
    assert closest_pairs(distances).tolist() == [*order, *left]


# the minority


@pytest.mark.parametrize(("classes", "number"), [(11, 5), (19, 9), (21, 10), (150, 75), (2, 1), (1, 1)])
def test_the_minority_is_the_rarer_half(classes: int, number: int) -> None:
    counts = np.random.default_rng(0).permutation(np.arange(1, classes + 1)) * 10
    labels = minority_of(counts, None, [str(c) for c in range(classes)])
    assert len(labels) == number and counts[labels].tolist() == [10 * (i + 1) for i in range(number)]


def test_the_minority_may_be_given() -> None:
    counts, names = np.array([50, 3, 40, 0, 3]), ("road", "pole", "sky", "train", "sign")
    assert rarest_first(counts) == [1, 4, 2, 0]  # of those that occur; ties by label
    assert minority_of(counts, None, names) == [1, 4]
    assert minority_of(counts, 3, names) == [1, 4, 2]
    assert minority_of(counts, ["sky", "pole"], names) == [1, 2]
    assert minority_of(counts, [2, 1], names) == [1, 2]
    assert minority_of(counts, "sign", names) == [4]
    for wanted, message in (
        (["poles"], "class 'poles'; .*did you mean 'pole'"),
        ([5], "class 5; there are the labels 0 to 4"),
        (0, "minority 0"),
        ([], "no class"),
    ):
        with pytest.raises(MethodError, match=message):
            labels_of(wanted, names)


def test_pixels_are_counted_and_void_is_not() -> None:
    labels = torch.tensor([[[0, 0, 2], [255, -1, 7]]])
    material = Material([(torch.zeros(1, 3, 2, 3), labels)] * 2, F.cross_entropy, 3)
    assert pixel_counts(material, nn.Identity()).tolist() == [4, 0, 2]
    with pytest.raises(DataError, match="no pixel of the data has one of the 2 classes"):
        pixel_counts(Material([(torch.zeros(1), torch.full((1, 2, 2), 9))], F.cross_entropy, 2), nn.Identity())


# the flow


def attach(model: nn.Module, epochs: int = 12, **options: Any) -> secateur.Pruner:
    pruner = methods.attach("mcag", model, zoo.example(), **options)
    pruner.begin(steps=epochs, lr_sum=0.1 * epochs, epochs=epochs)
    return pruner


def test_the_scores_of_coupled_layers_are_added_up() -> None:
    """SegNet's shared pooling indices: a unit has a channel of the encoder and one of the decoder."""
    model = zoo.build("segnet")
    pruner = attach(model)
    material, graph = pruner.method.material, pruner.graph
    counts = pixel_counts(material, model)
    minority = minority_of(counts, None, material.class_names)
    by_layer = {layer.module: scores for layer, scores in class_scores(graph, material, minority)}
    together = (by_layer["e1.0"] + by_layer["d2.0"]).numpy()
    number, group = next((i, g) for i, g in enumerate(graph.groups) if ("e1.0.weight", 0) in g.members)
    assert ("d2.0.weight", 0) in group.members
    pruner.after_epoch(0)
    units = list(group.units)
    order = interleaved(together)
    assert pruner.method.scores(graph)[units][order].tolist() == [1 - i / 8 for i in range(8)]
    kept = int(pruner.method._kept[number])
    assert kept == 4 and pruner.method.decided(graph)[units].tolist() == [i in order[4:] for i in range(8)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_others_fade_recover_and_end_silent(variant: str) -> None:
    """12 epochs: all that makes them times 0.7 after each of the first ten, then times 0."""
    model = zoo.build("segnet")
    pruner = attach(model, epochs=12, variant=variant)
    parameters = dict(model.named_parameters())
    graph = pruner.graph

    def slices(units: np.ndarray) -> list[Tensor]:
        """Filters, biases, scales and shifts."""
        out = []
        for unit in np.flatnonzero(units):
            for t, dim, index in graph.slots(unit):
                info = graph.tensors[t]
                if info.parameter and dim == 0:
                    out.append(parameters[info.name].detach()[index].flatten().clone())
        return out

    for epoch in range(12):
        before = {name: p.detach().clone() for name, p in parameters.items()}
        pruner.after_epoch(epoch)
        gone = pruner.method.decided(graph)
        factor = 0.7 if epoch < 10 else 0.0
        for unit in range(graph.units):
            for t, dim, index in graph.slots(unit):
                info = graph.tensors[t]
                if info.parameter and dim == 0:
                    expected = before[info.name][index] * (factor if gone[unit] else 1.0)
                    torch.testing.assert_close(parameters[info.name].detach()[index], expected)
        assert ("faded" in pruner.log()) and np.isfinite(list(pruner.log().values())).all()
        if epoch < 11:  # a training that brings all of them back
            with torch.no_grad():
                for part in parameters.values():
                    part.add_(0.01 * torch.randn(part.shape, generator=torch.Generator().manual_seed(epoch)))
    assert gone.sum() == sum(len(g) // 2 for g in graph.groups if graph.prunable[g.units[0]])
    assert all(not part.any() for part in slices(gone))
    with torch.no_grad():
        whole = model.eval()(zoo.example())
    result = pruner.finish()
    assert result.report.ok and not result.warnings
    torch.testing.assert_close(result.model.eval()(zoo.example()), whole, rtol=1e-4, atol=1e-5)


def test_classes_choose_once_and_weights_after_every_epoch() -> None:
    for variant, again in (("taylor_small_group", False), ("sfp", True), ("fpgm", True), ("tmm", True)):
        model = zoo.build("unet")
        pruner = attach(model, epochs=12, variant=variant, decay=1.0)
        chosen = []
        for epoch in range(12):
            pruner.after_epoch(epoch)
            chosen.append(pruner.method.decided(pruner.graph).copy())
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(epoch)))
        changes = [bool((a != b).any()) for a, b in itertools.pairwise(chosen)]
        # the last phase begins with the eleventh: its choice, made just before, is the last
        assert changes == [again] * 10 + [False]
        pruner.close()


def test_the_variants_by_weights_rank_as_their_methods_do() -> None:
    model = zoo.build("unet")
    graph = secateur.trace(model, zoo.example())
    distances = dict(unit_distances(graph))
    rankings = {
        "sfp": lambda number, units: filter_norms(graph)[units],
        "fpgm": lambda number, units: secateur.score(graph, "fpgm", relative=False)[units],
        "tmm": lambda number, units: np.argsort(closest_pairs(distances[number])),
    }
    for variant, ranking in rankings.items():
        model = zoo.build("unet")
        pruner = attach(model, variant=variant)
        pruner.after_epoch(0)
        scores = pruner.method.scores(pruner.graph)
        for number, group in enumerate(graph.groups):
            units = list(group.units)
            if graph.prunable[units[0]]:
                assert np.argsort(scores[units]).tolist() == np.argsort(ranking(number, units)).tolist()


@pytest.mark.parametrize(
    ("epochs", "final_epochs", "zeroed_from"), [(300, 50, 250), (12, 50, 10), (3, 50, 2), (1, 50, 0), (12, 1, 11)]
)
def test_the_last_phase(epochs: int, final_epochs: int, zeroed_from: int) -> None:
    """50 of 300 epochs; of a short training a sixth, at least one."""
    pruner = attach(zoo.build("plain"), epochs=epochs, final_epochs=final_epochs, variant="sfp", decay=1.0)
    silent = []
    for epoch in range(epochs):
        pruner.after_epoch(epoch)
        silent.append(bool(pruner.method._silent))
    assert silent == [epoch >= zeroed_from for epoch in range(epochs)]
    pruner.close()


def test_a_training_of_unknown_length_is_warned_of() -> None:
    model = zoo.build("unet").train()
    pruner = methods.attach("mcag", model, zoo.example())
    methods.train(model, pruner, zoo.example(), torch.optim.SGD(model.parameters(), 0.01), range(2))
    with pytest.raises(MethodError, match="chooses once"):
        pruner.step(pruning_ratio=0.5)
    result = pruner.finish()
    assert any("had not been set to zero; tell the length" in warning for warning in result.warnings)


def test_an_amount_at_the_end_uses_the_ranking() -> None:
    pruner = attach(zoo.build("unet"))
    pruner.after_epoch(0)
    pruner.after_epoch(1)
    ranking = pruner.method.scores(pruner.graph)
    result = pruner.finish(pruning_ratio=0.25, scope="group")
    removed = secateur.plan.units_of(pruner.graph, result.plan)
    assert removed.any() and (ranking[removed] <= 0.25 + 1e-9).all()
    unranked = attach(zoo.build("unet")).finish(pruning_ratio=0.25)
    assert any("no epoch was over" in warning for warning in unranked.warnings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_and_resumed_equals_uninterrupted(variant: str) -> None:
    x = zoo.example()

    def trained(*spans: range) -> tuple[nn.Module, secateur.Pruner]:
        state: Any = None
        for span in spans:
            model = zoo.build("unet").train()
            pruner = attach(model, epochs=7, variant=variant)
            pruner.aim(pruning_ratio=0.4)
            if state is not None:
                model.load_state_dict(state[0])
                pruner.load_state_dict(state[1])
            methods.train(model, pruner, x, torch.optim.SGD(model.parameters(), 0.05), span)
            state = {k: v.clone() for k, v in model.state_dict().items()}, pruner.state_dict()
        return model, pruner

    one, first = trained(range(7))
    two, second = trained(range(1), range(1, 4), range(4, 7))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert first.finish().plan == second.finish().plan


# what it is for


def rare_class_network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Three classes, told by the brightest of three input channels; the third has 1 pixel in 50.

    The first layer has eight channels: three pairs alike look at the first two inputs with weights around 3, one looks
    at the third with a weight of 0.5, one sees nothing. The head answers nearly right, but that it asks a little too
    much before it says "third class".
    """
    generator = torch.Generator().manual_seed(0)
    label = torch.multinomial(torch.tensor([0.55, 0.43, 0.02]), 4 * 24 * 24, True, generator=generator)
    label = label.reshape(4, 24, 24)
    noise, bright = (torch.rand(4, n, 24, 24, generator=generator) for n in (3, 1))
    image = F.one_hot(label, 3).permute(0, 3, 1, 2) * (0.4 + 0.6 * bright) + 0.2 * noise
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))
    with torch.no_grad():
        weight = torch.zeros(8, 3)
        weight[:6, 0] = torch.tensor([3.0, 3.1, 2.9, 0, 0, 0])
        weight[:6, 1] = torch.tensor([0, 0, 0, 3.0, 3.1, 2.9])
        weight[6, 2], weight[7] = 0.5, 1e-3
        net[0].weight[:], net[0].bias[:] = weight.reshape(8, 3, 1, 1), 0.0
        head = torch.zeros(3, 8)
        head[0, :3], head[1, 3:6], head[2, 6] = 1.0, 1.0, 12.0
        net[3].weight[:], net[3].bias[:] = head.reshape(3, 8, 1, 1), torch.tensor([0.0, 0.0, -2.0])
    return net, [(image[:2], label[:2]), (image[2:], label[2:])]


@pytest.mark.parametrize(("variant", "kept"), [("taylor_small_group", True), ("sfp", False)])
def test_the_channel_of_the_rare_class_stays(variant: str, kept: bool, caplog: pytest.LogCaptureFixture) -> None:
    net, data = rare_class_network()
    pruner = secateur.Pruner(
        net, data[0][0], "mcag", data=data, loss=F.cross_entropy, classes=["sky", "road", "pole"], variant=variant
    )
    pruner.aim(pruning_ratio=0.75)
    pruner.begin(steps=6, lr_sum=0.0, epochs=3)
    with caplog.at_level(logging.INFO, logger="secateur"):
        for epoch in range(3):
            pruner.after_epoch(epoch)
    result = pruner.finish()
    assert result.model[0].out_channels == 2
    assert (6 not in result.plan.removed["0.weight"][0]) == kept
    if variant == "taylor_small_group":
        assert "minority classes, from the rarest: pole (" in caplog.text


def test_options_are_checked() -> None:
    model, x = zoo.build("unet"), zoo.example()
    for options, message in (
        ({"variant": "taylor_smal"}, "did you mean 'taylor_small'"),
        ({"keep_rate": 1.5}, "keep_rate 1.5"),
        ({"decay": -0.1}, "decay -0.1"),
        ({"final_epochs": 0}, "final_epochs 0"),
        ({"batches": 0}, "batches 0"),
        ({"minority": ["7"]}, "class '7'"),
    ):
        with pytest.raises(MethodError, match=message):
            methods.attach("mcag", model, x, **options)
    with pytest.raises(MethodError, match=r"give data= .*, loss= .*, classes="):
        secateur.Pruner(model, x, "mcag")
