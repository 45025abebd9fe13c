"""Weights of a trunk in torchvision's format: whose names they have, where they go, and what does not fit."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import CheckpointError, RecipeError
from secateur.models import create_model
from secateur.pipeline.inputs import Inputs
from secateur.recipe import load_recipe
from secateur.training.pretrained import load_pretrained

WIDTH = 4


def names_in_torchvision(depths: tuple[int, ...]) -> list[str]:
    """The state dict's names of torchvision's ResNets with bottlenecks, written out."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv1.weight", *(f"bn1.{n}" for n in norm)]
    for stage, depth in enumerate(depths, start=1):
        for i in range(depth):
            for number in (1, 2, 3):
                names += [f"layer{stage}.{i}.conv{number}.weight", *(f"layer{stage}.{i}.bn{number}.{n}" for n in norm)]
            if i == 0:
                names += [f"layer{stage}.0.downsample.0.weight", *(f"layer{stage}.0.downsample.1.{n}" for n in norm)]
    return [*names, "fc.weight", "fc.bias"]


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """A narrow ResNet-50's, trained on seven classes, all numbers other than a fresh network's."""
    return {
        name: torch.rand(t.shape) for name, t in create_model("resnet50", classes=7, width=WIDTH).state_dict().items()
    }


@pytest.fixture
def file(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, tmp_path / "resnet50.safetensors")
    return tmp_path / "resnet50.safetensors"


@pytest.mark.parametrize(
    ("name", "depths", "parameters"), [("resnet50", (3, 4, 6, 3), 25_557_032), ("resnet101", (3, 4, 23, 3), 44_549_160)]
)
def test_the_trunks_have_torchvisions_names_and_number_of_parameters(
    name: str, depths: tuple[int, ...], parameters: int
) -> None:
    with torch.device("meta"):
        model = create_model(name, classes=1000)
    assert list(model.state_dict()) == names_in_torchvision(depths)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason='needs the extra: pip install -e ".[zoo]"')
def test_the_trunks_compute_what_torchvisions_compute() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import engine_zoo  # noqa: F401 -- makes torchvision importable beside a PyTorch without CUDA
    import torchvision

    theirs, ours, image = (
        torchvision.models.resnet50(),
        create_model("resnet50", classes=1000),
        torch.rand(1, 3, 65, 97),
    )
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(theirs.eval()(image), ours.eval()(image))


def test_a_trunk_is_found_inside_a_network_and_its_heads_stay(file: Path, weights: dict[str, Tensor]) -> None:
    model = create_model("pspnet50", classes=5, width=WIDTH, stem="7x7")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert load_pretrained(model, file) == ("fc.weight", "fc.bias")
    for name, tensor in model.state_dict().items():
        inside = name.startswith("trunk.") and not name.endswith("num_batches_tracked")
        assert torch.equal(tensor, weights[name.removeprefix("trunk.")] if inside else before[name]), name


def test_a_classifier_of_as_many_classes_is_loaded_whole(file: Path, weights: dict[str, Tensor]) -> None:
    model = create_model("resnet50", classes=7, width=WIDTH)
    assert load_pretrained(model, file) == ()
    assert torch.equal(model.fc.weight, weights["fc.weight"])
    other = create_model("resnet50", classes=3, width=WIDTH)
    assert load_pretrained(other, file) == ("fc.weight", "fc.bias")
    assert torch.equal(other.layer4[2].conv3.weight, weights["layer4.2.conv3.weight"])


def test_half_precision_and_files_without_counters_are_taken(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    halves = {name: tensor.half() for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    save_file(halves, tmp_path / "half.safetensors")
    model = create_model("pspnet50", classes=5, width=WIDTH, stem="7x7")
    load_pretrained(model, tmp_path / "half.safetensors")
    assert torch.equal(model.trunk.conv1.weight, halves["conv1.weight"].float())


def test_a_deep_stem_takes_the_weights_of_a_deep_stem(tmp_path: Path) -> None:
    trained = create_model("pspnet50", classes=5, width=WIDTH)
    save_file(trained.trunk.state_dict(), tmp_path / "deep.safetensors")
    model = create_model("pspnet50", classes=9, width=WIDTH)
    assert load_pretrained(model, tmp_path / "deep.safetensors") == ()
    assert torch.equal(model.trunk.conv3.weight, trained.trunk.conv3.weight)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "pspnet50",
            {},
            r"the trunk of this PSPNet; .*conv1.weight \(4, 3, 7, 7\) instead of \(4, 3, 3, 3\).*stem=7x7",
        ),
        ("pspnet101", {"stem": "7x7"}, r"missing in the file: layer3.6.conv1.weight.* and \d+ more$"),
        ("pspnet50", {"stem": "7x7", "width": 2}, r"of another shape: .*bn1.bias \(4,\) instead of \(2,\).*more$"),
        ("resnet18_cifar", {}, "not in the network: .*of another shape"),
        ("unet", {}, r"no part of this UNet has .*\(bn1.bias.*a network with such a trunk \(pspnet50"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(file: Path, name: str, options: dict, message: str) -> None:
    model = create_model(name, **{"classes": 5, "width": WIDTH, **options})
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(model, file)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match="never opened; convert it once: python -c") as error:
        load_pretrained(create_model("pspnet50", classes=5, width=WIDTH, stem="7x7"), path)
    script = str(error.value).split('"')[1].replace("'resnet50", f"'{tmp_path}/resnet50")
    exec(script)  # the way out works
    load_pretrained(create_model("pspnet50", classes=5, width=WIDTH, stem="7x7"), tmp_path / "resnet50.safetensors")


def test_damaged_and_missing_files_are_named(tmp_path: Path, file: Path) -> None:
    model = create_model("pspnet50", classes=5, width=WIDTH, stem="7x7")
    (tmp_path / "short.safetensors").write_bytes(file.read_bytes()[:-5])
    for path, message in ((tmp_path / "no.safetensors", "no such file"), (tmp_path / "short.safetensors", "truncated")):
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(model, path)


def test_a_recipe_starts_from_it(tmp_path: Path, file: Path, weights: dict[str, Tensor]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {name: streets, size: [64, 96], length: 2, limit: 2}\n"
        f"model: {{name: pspnet50, width: {WIDTH}, options: {{stem: 7x7}}, pretrained: {file}}}\n"
    )
    network = Inputs(load_recipe(recipe)).network()
    assert torch.equal(network.trunk.conv1.weight, weights["conv1.weight"])
    with pytest.raises(RecipeError, match=r"model.pretrained: .*expected one of the two"):
        load_recipe(recipe, [f"model.weights={file}"])
