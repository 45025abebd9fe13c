"""The networks' published counts, sizes that do not divide, and networks from a user's own files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.models import create_model, list_models


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def convolution_macs(model: nn.Module, height: int, width: int) -> int:
    """Multiply-accumulates of all convolutions, counted by hooks on meta tensors."""
    total = 0

    def count(conv: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        total += out.numel() * conv.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    model.to("meta")(torch.empty(1, 3, height, width, device="meta"))
    return total


@pytest.mark.parametrize(
    ("classes", "height", "width", "count", "macs"),
    [(19, 512, 1024, 29_454_009, 325_545_099_264), (12, 360, 480, 29_449_956, 106_387_292_160)],
)
def test_segnet_has_the_published_counts(classes: int, height: int, width: int, count: int, macs: int) -> None:
    model = create_model("segnet", classes=classes)
    assert parameters(model) == count
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 26
    assert convolution_macs(model, height, width) == macs


def test_unet_has_the_published_counts() -> None:
    model = create_model("unet", classes=11)
    assert parameters(model) == pytest.approx(13.396e6, abs=500)
    assert convolution_macs(model, 360, 480) == pytest.approx(81.568e9, abs=5e5)


@pytest.mark.parametrize("name", ["segnet", "unet"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (45, 61), (50, 35)])
def test_output_has_the_size_of_the_input_whether_or_not_it_divides(name: str, height: int, width: int) -> None:
    model = create_model(name, classes=5, width=4)
    logits = model(torch.rand(2, 3, height, width))
    assert logits.shape == (2, 5, height, width)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["segnet", "unet"])
def test_width_scales_every_channel_but_input_and_classes(name: str) -> None:
    full, quarter = (
        [m.out_channels for m in create_model(name, classes=7, width=w).modules() if isinstance(m, nn.Conv2d)]
        for w in (64, 16)
    )
    assert quarter[:-1] == [channels // 4 for channels in full[:-1]]
    assert full[-1] == quarter[-1] == 7


def test_segnet_can_have_a_bare_classifier() -> None:
    model = create_model("segnet", classes=5, width=4, bare_classifier=True)
    assert model(torch.rand(2, 3, 32, 32)).min() < 0
    published = create_model("segnet", classes=5, width=4)
    assert parameters(published) - parameters(model) == 2 * 5
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
