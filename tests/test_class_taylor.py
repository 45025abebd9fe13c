"""Class-wise Taylor scores against one pass over the data for every class, and what is saved against that."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import methods
import pytest
import torch
import torch.nn.functional as F
import zoo
from own_networks import Residual, Squeezed
from torch import Tensor, nn

import secateur
from secateur.errors import DataError, MethodError
from secateur.methods import Material
from secateur.methods.class_taylor import class_scores
from secateur.metrics import main_logits

Batches = list[tuple[Tensor, Tensor]]


class Wholesale(nn.Module):
    """A network that answers at a quarter of the size, in a dict with an auxiliary head in train and eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.trunk = zoo.conv_bn(3, 8, stride=2), zoo.conv_bn(8, 12, stride=2)
        self.head, self.aux = nn.Conv2d(12, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.stem(x)
        return {"out": self.head(self.trunk(y)), "aux": self.aux(y)}


OWN: dict[str, Callable[[], nn.Module]] = {"residual": Residual, "squeezed": Squeezed, "wholesale": Wholesale}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return zoo.randomise(OWN[name]()).double().eval() if name in OWN else zoo.build(name).double()


def batches(classes: int, count: int = 3, void: tuple[int, ...] = (255, -1)) -> Batches:
    """Random images; of the last class a few pixels in one batch only; some void."""
    out = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 3, 16, 20, dtype=torch.float64, generator=generator)
        target = torch.randint(0, classes - 1, (2, 16, 20), generator=generator)
        for i, label in enumerate(void):
            target[:, i, : 7 + i] = label
        if seed == 1:
            target[0, 8, 3:6] = classes - 1
        out.append((x, target))
    return out


def one_pass_per_class(model: nn.Module, data: Batches, classes: int) -> dict[str, Tensor]:
    """Target: the true label where it is c, elsewhere the network's answer; cross-entropy; keep every layer's output
    and gradient; the mean over batch and space of the product, added up over batches; its absolute value."""
    modules = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))}
    scores = {name: [0.0] * classes for name in modules}
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            output.retain_grad()
            kept[name] = output
            return output.clone()

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    for c in range(classes):
        for x, label in data:
            kept.clear()
            logits = main_logits(model(x), label.shape[1:])
            void = (label < 0) | (label >= classes)
            target = torch.where(label == c, label, logits.argmax(1)).masked_fill(void, 255)
            F.cross_entropy(logits, target, ignore_index=255).backward()
            for name, a in kept.items():
                if a.grad is not None:
                    scores[name][c] = scores[name][c] + (a.detach() * a.grad).mean((0, 2, 3))
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    return {name: torch.stack(rows).abs() for name, rows in scores.items() if isinstance(rows[0], Tensor)}


@pytest.mark.parametrize("name", ["plain", "segnet", "unet", "dense", "pyramid", *OWN])
def test_the_scores_are_those_of_one_pass_per_class(name: str) -> None:
    model = network(name)
    classes = methods.logits_of(model(zoo.example().double())).shape[1]
    data = batches(classes)
    graph = secateur.trace(model, data[0][0][:1])
    got = class_scores(graph, Material(data, methods.loss_of, classes), range(classes))
    expected = one_pass_per_class(model, data, classes)
    assert {layer.module for layer, _ in got} >= expected.keys()
    for layer, scores in got:
        if layer.module in expected:
            torch.testing.assert_close(scores, expected[layer.module], rtol=1e-5, atol=1e-14)
        else:  # a head that the main one does not hang on
            assert layer.module.startswith("aux") and not scores.any()
    together = torch.cat([scores for _, scores in got], 1)
    assert len({tuple(row) for row in together.tolist()}) == classes  # no two classes alike


def test_only_the_classes_wanted_in_their_order() -> None:
    model = network("unet")
    data = batches(5)
    material = Material(data, methods.loss_of, 5)
    graph = secateur.trace(model, data[0][0][:1])
    every = class_scores(graph, material, range(5))
    some = class_scores(graph, material, [4, 1])
    for (_, a), (_, b) in zip(every, some, strict=True):
        torch.testing.assert_close(a[[4, 1]], b)
    first = class_scores(graph, material, range(5), batches=1)
    again = class_scores(graph, Material(data[:1], methods.loss_of, 5), range(5))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How many forward and backward passes are made."""
    counts = {"forward": 0, "backward": 0}
    grad, forward = torch.autograd.grad, type(network("unet")).forward

    def counted_grad(*args: object, **kwargs: object) -> object:
        counts["backward"] += 1
        return grad(*args, **kwargs)

    def counted_forward(self: nn.Module, x: Tensor) -> Tensor:
        counts["forward"] += not x.is_meta
        return forward(self, x)

    monkeypatch.setattr(torch.autograd, "grad", counted_grad)
    monkeypatch.setattr(type(network("unet")), "forward", counted_forward)
    return counts


def test_one_forward_per_batch_and_one_backward_more_than_there_are_classes_with_errors(
    passes: dict[str, int],
) -> None:
    """One pass per class makes 5 forward and 5 backward passes for every batch."""
    model = network("unet")
    data = batches(5)
    graph = secateur.trace(model, data[0][0][:1])
    passes.update(forward=0, backward=0)
    class_scores(graph, Material(data, methods.loss_of, 5), range(5))
    # classes 0 to 3 have errors in all three batches, class 4 in the second alone
    assert passes == {"forward": 3, "backward": 3 + 3 * 4 + 1}
    passes.update(forward=0, backward=0)
    class_scores(graph, Material(data, methods.loss_of, 5), [4])
    assert passes == {"forward": 3, "backward": 3 + 1}


def test_nothing_but_void_says_nothing() -> None:
    model = network("plain")
    data = [(torch.randn(1, 3, 16, 20, dtype=torch.float64), torch.full((1, 16, 20), 255))]
    got = class_scores(secateur.trace(model, data[0][0]), Material(data, methods.loss_of, 5), range(5))
    assert all(not scores.any() for _, scores in got)


def test_targets_and_classes_that_do_not_fit_are_named() -> None:
    model = network("plain")
    (x, y), *_ = batches(5)
    graph = secateur.trace(model, x[:1])
    with pytest.raises(MethodError, match=r"puts out 5 classes, but classes= names 7"):
        class_scores(graph, Material([(x, y)], methods.loss_of, 7), [0])
    with pytest.raises(DataError, match=r"target of a batch is torch.float64 \(2, 16, 20\); a label map"):
        class_scores(graph, Material([(x, y.double())], methods.loss_of, 5), [0])
    with pytest.raises(DataError, match=r"torch.int64 \(2, 1, 16, 20\)"):
        class_scores(graph, Material([(x, y[:, None])], methods.loss_of, 5), [0])
