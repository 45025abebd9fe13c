"""YOLOv5: what it gives, that it is pruned exactly, that it learns, and the released weights' names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import secateur
from secateur.detection import DetectionLoss, corners, decode, detections, iou, to_pixels
from secateur.errors import CheckpointError, ModelError
from secateur.models import create_model
from secateur.models.yolov5 import STRIDES
from secateur.training.pretrained import load_pretrained

TARGETS = [
    torch.tensor([[1, 0.4, 0.5, 0.5, 0.4], [0, 0.8, 0.2, 0.2, 0.3]]),
    torch.tensor([[2, 0.5, 0.6, 0.3, 0.7]]),
]


def detector(name: str = "yolov5s", classes: int = 3, width: int = 4) -> nn.Module:
    """A narrow one with batch norms unlike a fresh network's."""
    torch.manual_seed(0)
    model = create_model(name, classes=classes, width=width)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def test_maps_in_training_and_boxes_besides_otherwise() -> None:
    model, images = detector(), torch.rand(2, 3, 64, 96)
    shapes = [(2, 3, 64 // s, 96 // s, 8) for s in (8, 16, 32)]
    maps = model(images)
    assert [tuple(raw.shape) for raw in maps] == shapes
    sum(raw.sum() for raw in maps).backward()
    assert all(p.grad is not None for p in model.parameters())
    decoded, maps = model.eval()(images)
    assert decoded.shape == (2, 3 * (8 * 12 + 4 * 6 + 2 * 3), 8) and [tuple(raw.shape) for raw in maps] == shapes
    anchors = model.detect.anchors * torch.tensor([8.0, 16.0, 32.0])[:, None, None]
    assert anchors[0].tolist() == [[10, 13], [16, 30], [33, 23]]
    assert anchors[2].tolist() == [[116, 90], [156, 198], [373, 326]]


def test_before_training_nothing_is_likely_to_be_an_object() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        decoded, _ = create_model("yolov5s", classes=20, width=8).eval()(torch.rand(1, 3, 64, 64))
    assert float(decoded[..., 4:].mean()) == pytest.approx(0.01, rel=0.1)


def test_an_image_that_does_not_divide_is_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match=r"multiples of 32, not 64x100; .*Letterbox"):
        detector()(torch.rand(1, 3, 64, 100))
    with pytest.raises(ModelError, match="at least 1 class"):
        create_model("yolov5m", classes=0)


@pytest.mark.parametrize("name", ["yolov5m", "yolov5l", "yolov5x"])
def test_every_unit_is_prunable_or_pinned_with_a_reason_and_goes_exactly(name: str) -> None:
    model, images = detector(name).double(), torch.rand(1, 3, 64, 64, dtype=torch.float64)
    result = secateur.prune(model, images, method="l1", pruning_ratio=0.3)
    assert result.report.ok and not result.warnings, result.report
    assert {(check.mode, check.weights) for check in result.report.checks} == {
        (mode, weights) for mode in ("eval", "train") for weights in ("own", "random")
    }
    graph = secateur.trace(model, images)
    assert "no rule" not in str(graph)
    assert sum(map(len, graph.groups)) == graph.units
    pinned = {group.name: group.pinned for group in graph.groups if group.pinned is not None}
    assert all(pinned.values())
    # nothing but the image's channels behind Focus, and what is said of each anchor
    assert all(re.match(r"backbone\.focus\.conv\.conv\.weight|detect\.heads\.\d", group) for group in pinned)
    silent = create_model(name, classes=3, width=4).double()
    silent.load_state_dict(model.state_dict())
    with torch.no_grad():
        for tensor, dims in result.plan.removed.items():
            for dim, indices in dims.items():
                silent.state_dict()[tensor].index_fill_(dim, torch.tensor(indices), 0.0)
    loss, images = DetectionLoss(model.detect.anchors), torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for training in (False, True):
        ours, theirs = (loss(net.train(training)(images), TARGETS) for net in (result.model, silent))
        for task, value in theirs.items():
            torch.testing.assert_close(ours[task], value)
    with torch.no_grad():
        ours, theirs = (detections(net.eval()(images)[0], 1e-5, every_class=True) for net in (result.model, silent))
    for mine, wanted in zip(ours, theirs, strict=True):
        assert len(mine) == 300
        torch.testing.assert_close(mine, wanted)


def test_methods_that_look_at_losses_take_those_of_all_tasks() -> None:
    model, images = detector(), torch.rand(2, 3, 64, 64)
    result = secateur.prune(
        model,
        images[:1],
        method="taylor",
        budget={"yolo_flops": 0.6},
        data=[(images, TARGETS)],
        loss=DetectionLoss(model.detect.anchors),
    )
    assert result.report.ok and result.after.yolo_flops <= 0.6 * result.before.yolo_flops


def test_it_learns_to_find_objects_by_the_sum_of_its_losses() -> None:
    torch.manual_seed(0)
    model, images = create_model("yolov5s", classes=3, width=8), torch.rand(2, 3, 64, 64) * 0.1
    for image, targets in zip(images, TARGETS, strict=True):
        for label, *box in to_pixels(targets, (64, 64)).round().int().tolist():
            image[label, box[1] : box[3], box[0] : box[2]] = 1.0
    loss, optimizer = DetectionLoss(model.detect.anchors), torch.optim.Adam(model.parameters(), lr=5e-3)
    first = last = {}
    for _ in range(100):
        optimizer.zero_grad()
        last = loss(model(images), TARGETS)
        first = first or {name: float(value.detach()) for name, value in last.items()}
        sum(last.values()).backward()
        optimizer.step()
    assert all(float(last[name].detach()) < 0.6 * value for name, value in first.items())
    with torch.no_grad():  # with the batch's own statistics: two images give no good running ones
        decoded = decode(model(images), model.detect.anchors, STRIDES)
    for found, targets in zip(detections(decoded), TARGETS, strict=True):
        overlap = iou(corners(targets[:, 1:]) * 64, found[:, :4])
        assert (overlap.amax(1) > 0.5).all()
        assert found[overlap.argmax(1), 5].tolist() == targets[:, 0].tolist()


# -- released weights --------------------------------------------------------------------------------------------------


def released(depths: tuple[int, ...], heads: int = 3) -> list[str]:
    """The tensors' names in release 5.0, written out; without the batch norms' counters."""
    norm = ("weight", "bias", "running_mean", "running_var")
    names = []

    def block(prefix: str) -> None:
        names.extend([f"{prefix}.conv.weight", *(f"{prefix}.bn.{what}" for what in norm)])

    c3 = iter(depths)
    for number in range(24):
        layer = f"model.{number}"
        if number == 0:
            block(f"{layer}.conv")
        elif number in (1, 3, 5, 7, 10, 14, 18, 21):
            block(layer)
        elif number == 8:
            block(f"{layer}.cv1")
            block(f"{layer}.cv2")
        elif number in (2, 4, 6, 9, 13, 17, 20, 23):
            for part in ("cv1", "cv2", "cv3", *(f"m.{i}.cv{k}" for i in range(next(c3)) for k in (1, 2))):
                block(f"{layer}.{part}")
    names += ["model.24.anchors", "model.24.anchor_grid"]
    return [*names, *(f"model.24.m.{i}.{what}" for i in range(heads) for what in ("weight", "bias"))]


def as_released(model: nn.Module) -> dict[str, Tensor]:
    """Other numbers in half precision, under the released names."""
    depth = len(model.backbone.stage4.blocks)
    names = released((depth, 3 * depth, 3 * depth, depth, depth, depth, depth, depth))
    state, found = model.state_dict(), {}
    for name in names:
        own = model.released_name(name)
        shape = state[own].shape if own is not None else (3, 1, 3, 1, 1, 2)
        found[name] = torch.rand(shape).half()
    return found


@pytest.mark.parametrize("name", ["yolov5s", "yolov5x"])
def test_each_released_tensor_has_one_place(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    found = [model.released_name(name) for name in as_released(model)]
    assert found.count(None) == 1
    own = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    assert sorted(filter(None, found)) == sorted(own)


def test_released_weights_are_loaded(tmp_path: Path) -> None:
    model, path = detector("yolov5m"), tmp_path / "yolov5m.safetensors"
    weights = as_released(model)
    save_file(weights, path)
    assert load_pretrained(model, path) == ()
    for released_name, own in (
        ("model.0.conv.conv.weight", "backbone.focus.conv.conv.weight"),
        ("model.4.m.5.cv2.bn.running_var", "backbone.stage8.blocks.5.second.bn.running_var"),
        ("model.8.cv2.conv.weight", "backbone.pyramid.join.conv.weight"),
        ("model.9.cv2.bn.bias", "backbone.stage32.past.bn.bias"),
        ("model.17.cv1.conv.weight", "neck.up8.through.conv.weight"),
        ("model.21.bn.weight", "neck.down32.bn.weight"),
        ("model.24.m.2.bias", "detect.heads.2.bias"),
        ("model.24.anchors", "detect.anchors"),
    ):
        assert torch.equal(model.state_dict()[own], weights[released_name].float()), own
    other = detector("yolov5m", classes=7)
    before = other.detect.heads[0].weight.clone()
    left_out = load_pretrained(other, path)
    assert set(left_out) == set(other.classifiers) and torch.equal(other.detect.heads[0].weight, before)
    assert torch.equal(other.detect.anchors, model.detect.anchors)
    assert torch.equal(other.neck.out32.join.conv.weight, model.neck.out32.join.conv.weight)
    save_file(model.state_dict(), tmp_path / "own.safetensors")  # our own names do, too
    again = detector("yolov5m")
    load_pretrained(again, tmp_path / "own.safetensors")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.13.cv3.conv.weight"), "missing in the file: neck.up16.join.conv.weight"),
        (lambda w: w.update({"model.25.conv.weight": torch.zeros(1)}), "not in the network: model.25.conv.weight"),
        (
            lambda w: w.update({"model.3.conv.weight": torch.zeros(2, 2, 6, 6)}),
            r"of another shape: backbone.down8.conv.weight \(2, 2, 6, 6\) instead of \(16, 8, 3, 3\)",
        ),
        (
            lambda w: w.update({"backbone.down8.conv.weight": w["model.3.conv.weight"].clone()}),
            "model.3.conv.weight and backbone.down8.conv.weight are the same|same tensor of the network",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(tmp_path: Path, change: object, message: str) -> None:
    model, path = detector(), tmp_path / "weights.safetensors"
    weights = as_released(model)
    change(weights)
    save_file(weights, path)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(model, path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_the_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    save_file(as_released(detector("yolov5l")), tmp_path / "yolov5l.safetensors")
    with pytest.raises(CheckpointError, match=r"this YOLOv5; not in the network: .*blocks"):
        load_pretrained(detector("yolov5m"), tmp_path / "yolov5l.safetensors")


def test_a_pickled_network_is_never_opened_and_the_command_to_convert_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = detector()
    torch.save({"model": model.half(), "epoch": -1}, "yolov5s.pt")
    with pytest.raises(CheckpointError, match=r"a whole network.*only if you trust the file") as error:
        load_pretrained(detector(), Path("yolov5s.pt"))
    script = re.findall(r'python -c "(.*?)"', str(error.value))[1]
    exec(script)
    again = detector()
    load_pretrained(again, Path("yolov5s.safetensors"))
    assert torch.equal(again.neck.up8.join.conv.weight, model.neck.up8.join.conv.weight.float())
