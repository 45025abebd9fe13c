"""What papers printed about networks, as data: the CAP paper's Table 1, and the sizes at which networks were used.

The table is that of He, Wu, Liang, Lam, "CAP: Context-Aware Pruning for Semantic Segmentation", WACV 2021. Which layers
FPGM was applied to is not in the paper; it follows from the counts of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One method's line of the table.

    Attributes:
        method: as the paper writes it; a percentage is the share of all ranked channels that goes.
        miou: in per cent, on the test set.
        params: millions, trainable ones, auxiliary heads included.
        flops: thousand millions, as the paper counts them.
        note: where what was printed differs from what is counted.
    """

    method: str
    miou: float
    params: float
    flops: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """The rows of one network on one data set.

    Attributes:
        title, data: network and data set.
        network, classes, size: its name here, its outputs, height and width of the images.
        share: of the filters that FPGM removes from each of its layers, rounded down.
        layers: these layers, by the names of their modules.
        rows: the table's.
    """

    title: str
    data: str
    network: str
    classes: int
    size: tuple[int, int]
    share: float
    layers: tuple[str, ...]
    rows: tuple[Row, ...]


# the three convolutions of the stem, the first two of every block, everything of the pyramid pooling
_TRUNK = ("trunk.conv*", "trunk.layer*.conv1", "trunk.layer*.conv2", "pyramid")
_PSPNET = (*_TRUNK, "auxiliary.conv")
_ICNET = (*_TRUNK, "full")
# all but the fifth encoder stage, the two convolutions that stay in its mirror image, and the classifier
_SEGNET = (
    "encoder.stage1", "encoder.stage2", "encoder.stage3", "encoder.stage4", "decoder.stage5.block3",
    "decoder.stage4", "decoder.stage3", "decoder.stage2", "decoder.stage1.block1",
)  # fmt: skip

CAP_TABLE = (
    Setting(
        "SegNet", "CamVid", "segnet", 12, (360, 480), 0.5, _SEGNET,
        (  # 11 classes and void
            Row("Unpruned", 55.60, 29.45, 106.73),
            Row("FPGM", 52.54, 15.63, 32.95, "the published FLOPs are those with 19 classes, 32.950364"),
            Row("NS-20%", 54.78, 12.25, 47.81),
            Row("BN-Scale-20%", 55.73, 12.50, 44.54),
            Row("Ours-20%", 57.12, 11.47, 53.14),
            Row("Ours-30%", 56.37, 6.03, 30.01),
        ),
    ),
    Setting(
        "PSPNet101", "Cityscapes", "pspnet101", 19, (713, 713), 0.4, _PSPNET,
        (
            Row("Unpruned", 78.40, 70.44, 557.04, "the project's page has 556.04 FLOPs, a misprint"),
            Row("FPGM", 74.84, 36.09, 280.68),
            Row("NS-60%", 75.70, 48.47, 368.03),
            Row("BN-Scale-60%", 74.88, 48.81, 370.49),
            Row("Ours-60%", 77.82, 47.84, 363.21),
            Row("Ours-70%", 75.27, 39.74, 296.25),
        ),
    ),
    Setting(
        "PSPNet50", "Cityscapes", "pspnet50", 19, (713, 713), 0.4, _PSPNET,
        (
            Row("Unpruned", 76.99, 51.45, 403.00),
            Row("FPGM", 74.59, 27.06, 207.31),
            Row("NS-50%", 73.57, 23.61, 199.78),
            Row("BN-Scale-50%", 73.85, 23.59, 199.43),
            Row("Ours-60%", 75.59, 27.31, 233.67),
            Row("Ours-70%", 73.94, 23.78, 203.19),
        ),
    ),
    Setting(
        "ICNet", "Cityscapes", "icnet", 19, (1024, 2048), 0.4, _ICNET,
        (
            Row("Unpruned", 64.59, 12.21, 40.13),
            Row("FPGM", 62.00, 6.45, 22.96),
            Row("NS-60%", 60.02, 6.90, 22.75),
            Row("BN-Scale-60%", 59.68, 6.96, 22.82),
            Row("Ours-60%", 62.38, 5.56, 21.16),
        ),
    ),
    Setting(
        "SegNet", "Cityscapes", "segnet", 19, (512, 1024), 0.5, _SEGNET,
        (
            Row("Unpruned", 56.10, 29.45, 326.59),
            Row("FPGM", 51.60, 15.63, 100.51),
            Row("NS-20%", 56.85, 11.85, 188.16),
            Row("BN-Scale-20%", 59.95, 11.92, 150.47),
            Row("Ours-20%", 61.16, 10.76, 178.23),
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Use:
    """A network as a paper used it: its name here, outputs, height and width of the images, options."""

    network: str
    paper: str
    classes: int
    size: tuple[int, int]
    options: Mapping[str, Any] = field(default_factory=dict)


USES = (
    Use("pspnet101", "CAP", 19, (713, 713)),
    Use("pspnet101", "CAP", 19, (713, 713), {"auxiliary": False}),
    Use("pspnet50", "CAP, ACoSP", 19, (713, 713)),
    Use("pspnet50", "CAP, ACoSP", 19, (713, 713), {"auxiliary": False}),
    Use("icnet", "CAP", 19, (1024, 2048)),
    Use("segnet", "CAP", 19, (512, 1024)),
    Use("segnet", "CAP, with void as a class", 12, (360, 480)),
    Use("segnet", "ACoSP", 11, (360, 720)),
    Use("unet", "MCAG", 11, (360, 480)),
    Use("resnet18_cifar", "ACoSP", 10, (32, 32)),
    Use("resnet18_cifar", "", 10, (32, 32), {"max_pool": False}),
    Use("resnet50", "", 1000, (224, 224)),
    Use("resnet101", "", 1000, (224, 224)),
)
