"""The networks: sizes that do not divide, widths, heads, training, pruning; and networks from a user's own files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.detection import DetectionLoss
from secateur.errors import ModelError
from secateur.models import create_model, list_models
from secateur.models.pyramid import ActivatedBN
from secateur.training.optimize import segmentation_loss

SIZES = {"resnet": (32, 32), "icnet": (96, 128), "yolov5": (64, 96)}  # where an odd one will not do
PYRAMID = tuple(f"pyramid.bins.{i}.bn.weight" for i in range(4))


@pytest.mark.parametrize("name", ["segnet", "unet"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (45, 61), (50, 35)])
def test_output_has_the_size_of_the_input_whether_or_not_it_divides(name: str, height: int, width: int) -> None:
    model = create_model(name, classes=5, width=4)
    logits = model(torch.rand(2, 3, height, width))
    assert logits.shape == (2, 5, height, width)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "heads"),
    [("pspnet50", [(9, 13), (9, 13)]), ("pspnet101", [(9, 13), (9, 13)]), ("icnet", [(18, 26), (9, 13), (4, 6)])],
)
def test_heads_are_smaller_than_the_input_and_the_side_heads_are_there_in_training(
    name: str, heads: list[tuple[int, int]]
) -> None:
    model, image = create_model(name, classes=5, width=2), torch.rand(2, 3, 65, 97)
    outputs = model(image)
    assert [tuple(logits.shape) for logits in outputs] == [(2, 5, *size) for size in heads]
    segmentation_loss(outputs, torch.zeros(2, 65, 97, dtype=torch.long)).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(image).shape == (2, 5, *heads[0])
    alone = create_model(name, classes=5, width=2, auxiliary=False)
    assert alone(image).shape == (2, 5, *heads[0])
    assert alone.state_dict().keys() == {
        key for key in model.state_dict() if "auxiliary" not in key and "side" not in key
    }


@pytest.mark.parametrize("name", ["segnet", "unet", "pspnet50", "icnet"])
def test_width_scales_every_channel_but_input_and_classes(name: str) -> None:
    with torch.device("meta"):
        full, quarter = (
            [m.out_channels for m in create_model(name, classes=7, width=w).modules() if isinstance(m, nn.Conv2d)]
            for w in (64, 16)
        )
    assert quarter == [channels if channels == 7 else channels // 4 for channels in full]
    assert quarter[-1] == 7


def small(name: str, **options: object) -> tuple[nn.Module, Tensor]:
    """A narrow network and two small images for it."""
    torch.manual_seed(0)
    size = next((size for start, size in SIZES.items() if name.startswith(start)), (65, 97))
    return create_model(name, classes=5, width=4, **options), torch.rand(2, 3, *size)


@pytest.mark.parametrize("name", list_models())
def test_every_network_is_pruned_exactly_and_trains_on(name: str) -> None:
    model, image = small(name)
    result = secateur.prune(model, image[:1], method="l1", pruning_ratio=0.5)
    assert result.report.ok
    assert result.after.params < 0.5 * result.before.params
    pruned = result.model.train()

    def loss() -> Tensor:
        torch.manual_seed(1)  # the same channels are dropped
        outputs = pruned(image)
        if name.startswith("resnet"):
            return nn.functional.cross_entropy(outputs, torch.zeros(2, dtype=torch.long))
        if name.startswith("yolov5"):
            targets = [torch.tensor([[0, 0.5, 0.5, 0.4, 0.3]])] * 2
            # the only one that a short step must lower: those of boxes and objectness hold moving parts fixed
            return DetectionLoss(pruned.detect.anchors)(outputs, targets)["class"]
        return segmentation_loss(outputs, torch.zeros(2, *image.shape[-2:], dtype=torch.long))

    before = loss()
    before.backward()
    assert all(p.grad is not None for p in pruned.parameters())
    # four channels normalised over a dozen pixels bend a detector's losses much
    torch.optim.SGD(pruned.parameters(), 1e-4 if name.startswith("yolov5") else 0.01).step()
    assert loss() < before


@pytest.mark.parametrize("activated_bn", [True, False])
@pytest.mark.parametrize("name", ["pspnet50", "pspnet101", "icnet"])
def test_cap_guides_the_branches_of_the_pyramid_pooling(name: str, activated_bn: bool) -> None:
    model, image = small(name, activated_bn=activated_bn)
    pruner = secateur.Pruner(model, image[:1], method="cap")
    assert pruner.method.guided == PYRAMID
    read: dict[str, Tensor] = {}
    for i, branch in enumerate(model.pyramid.bins):  # the last module of a branch is, or holds, the activation
        branch.register_forward_hook(lambda m, a, out, i=i: read.__setitem__(PYRAMID[i], out.detach().clone()))
    segmentation_loss(model.train()(image), torch.zeros(2, *image.shape[-2:], dtype=torch.long)).backward()
    pruner.after_backward()
    for scale in PYRAMID:
        maps = read[scale].double().flatten(2)
        sums = (maps @ maps.transpose(1, 2)).sum(2)  # eq. 1 and 2, with the matrix
        low, high = sums.amin(1, keepdim=True), sums.amax(1, keepdim=True)
        mean = ((sums - low) / (high - low)).mean(0)
        expected = (mean - mean.min()) / (mean.max() - mean.min())
        torch.testing.assert_close(pruner.method.beta[scale].double(), expected, rtol=1e-3, atol=1e-4)
    pruner.close()


def test_activated_bn_is_a_batch_norm_and_a_leaky_relu() -> None:
    bn, x = ActivatedBN(6), torch.randn(4, 6, 3, 3)
    plain = nn.BatchNorm2d(6)
    assert torch.equal(bn(x), nn.functional.leaky_relu(plain(x), 0.01))
    assert torch.equal(bn.running_var, plain.running_var)
    assert torch.equal(ActivatedBN(6, slope=None)(x), nn.BatchNorm2d(6)(x))


def test_one_image_averaged_to_one_pixel_has_no_variance_and_can_be_trained_on() -> None:
    bn, x = ActivatedBN(6), torch.randn(1, 6, 1, 1)
    assert torch.equal(bn(x), bn.eval()(x))
    assert torch.equal(bn.running_var, torch.ones(6))
    model, image = small("pspnet50")
    assert model.train()(image[:1])[0].isfinite().all()


def test_segnet_can_have_a_bare_classifier() -> None:
    model = create_model("segnet", classes=5, width=4, bare_classifier=True)
    assert model(torch.rand(2, 3, 32, 32)).min() < 0
    published = create_model("segnet", classes=5, width=4)
    assert len(published.state_dict()) - len(model.state_dict()) == 5  # of one batch norm
    assert published(torch.rand(2, 3, 32, 32)).min() >= 0


def test_list_models_is_sorted_and_every_name_makes_a_network() -> None:
    assert list_models() == sorted(list_models())
    for name in list_models():
        assert isinstance(create_model(name, classes=3, width=4), nn.Module)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unett", {}, "unknown network 'unett'.*did you mean 'unet'"),
        ("unet", {"widht": 3}, "no option 'widht'.*width.*did you mean 'width'"),
        ("unet", {"width": 0}, "width=0"),
        ("pspnet50", {"width": 0}, "width=0"),
        ("icnet", {"classes": 0}, "classes=0"),
        ("resnet50", {"width": 0}, "width=0"),
        ("pspnet50", {"stem": "5x5"}, "stem '5x5'.*known: 3x3, 7x7, deep"),
        ("unet", {"width": "wide"}, "'unet'.*width='wide'.*TypeError"),
        ("no_such_package.nets:make", {}, "no module 'no_such_package.nets'"),
        ("torch.nn:Conv2dd", {}, "torch.nn has no 'Conv2dd'.*did you mean 'Conv2d'"),
        ("missing.py:make", {}, "there is no file .*missing.py"),
        ("nets.py:", {}, "expected 'package.module:factory'"),
    ],
)
def test_what_is_wrong_is_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model(name, **options)


USER_FILE = """
from dataclasses import dataclass
from torch import nn
from beside import CHANNELS

@dataclass
class Settings:
    classes: int

def with_classes(classes, depth=1):
    return nn.Sequential(*[nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(depth)], nn.Conv2d(CHANNELS, classes, 1))

def without_classes():
    return nn.Conv2d(3, 2, 1)

def takes_anything(**options):
    assert "classes" not in options
    return nn.Conv2d(3, options["channels"], 1)

def raises():
    raise RuntimeError("no weights here")

def no_network():
    return 3

NUMBER = 7
NETWORK = nn.Conv2d(1, 1, 1)
"""


@pytest.fixture
def user_file(tmp_path: Path) -> str:
    folder = tmp_path / "my nets"
    folder.mkdir()
    (folder / "beside.py").write_text("CHANNELS = 3\n")
    (folder / "mine.py").write_text(USER_FILE)
    return str(folder / "mine.py")


def test_a_file_of_the_users_makes_a_network(user_file: str) -> None:
    model = create_model(f"{user_file}:with_classes", classes=4, depth=2)
    assert model(torch.rand(1, 3, 2, 2)).shape == (1, 4, 2, 2)
    assert len(list(model.children())) == 3
    assert isinstance(create_model(f"{user_file}:without_classes", classes=4), nn.Conv2d)
    assert create_model(f"{user_file}:takes_anything", classes=4, channels=6)(torch.rand(1, 3, 2, 2)).shape[1] == 6


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("with_clases", {}, "has no 'with_clases'.*did you mean 'with_classes'"),
        ("with_classes", {"dept": 2}, "no option 'dept'.*depth"),
        ("without_classes", {"depth": 2}, "no option 'depth'; it takes none"),
        ("raises", {}, "RuntimeError: no weights here"),
        ("no_network", {}, "must return a torch.nn.Module, got int"),
        ("NUMBER", {}, "NUMBER is a int"),
        ("NETWORK", {}, "NETWORK is a network already"),
    ],
)
def test_a_users_mistake_is_named(user_file: str, factory: str, options: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model(f"{user_file}:{factory}", **options)


def test_a_file_that_does_not_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import torch\n1 / 0\n")
    with pytest.raises(ModelError, match=r"running .*broken\.py failed: ZeroDivisionError"):
        create_model(f"{tmp_path / 'broken.py'}:make")


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_of_this_test").mkdir()
    (tmp_path / "nets_of_this_test" / "tiny.py").write_text(
        "from torch import nn\n\nclass Tiny(nn.Identity):\n    pass\n"
    )
    (tmp_path / "imports_badly.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    assert type(create_model("nets_of_this_test.tiny:Tiny")).__name__ == "Tiny"
    with pytest.raises(ModelError, match=r"importing imports_badly failed: .*a_package_that_is_not_there"):
        create_model("imports_badly:make")


def test_classes_of_an_unchanged_file_stay_the_same(user_file: str) -> None:
    path = Path(user_file)
    path.write_text("from torch import nn\n\nclass Net(nn.Identity):\n    pass\n")
    first, second = create_model(f"{path}:Net"), create_model(f"{path}:Net")
    assert type(first) is type(second)
    path.write_text("from torch import nn\n\nclass Net(nn.Flatten):\n    pass\n")
    assert isinstance(create_model(f"{path}:Net"), nn.Flatten)
