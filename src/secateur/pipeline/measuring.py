"""How a run measures its networks: scores on the validation split, costs, latency, pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from secateur import report
from secateur.costs import cost
from secateur.data import Loader, Sample
from secateur.data.files import resize_label
from secateur.files import atomic_path, write_json
from secateur.methods import Gating
from secateur.metrics import Confusion, Scores
from secateur.pipeline.exhibits import keep_pictures
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.record import Record, rung
from secateur.training import ProgressDisplay, evaluate, latency, predict

__all__ = ["Measuring"]


class Measuring:
    """Measures on what a recipe names, where Fabric computes."""

    def __init__(self, inputs: Inputs, fabric: Fabric, display: ProgressDisplay) -> None:
        self.recipe, self.inputs = inputs.recipe, inputs
        self.fabric, self.display = fabric, display
        self.counts: Tensor | None = None  # pixels of the last network by label and prediction, (K, K)

    @cached_property
    def _loader(self) -> Loader:
        rank, of = self.fabric.global_rank, self.fabric.world_size
        return self.inputs.loader("val", self.recipe.evaluate.batch_size, rank=rank, of=of)

    def row(self, stage: str, model: nn.Module, gating: Gating | None = None) -> Record:
        """One rung of the accuracy ladder, which is also shown; the network is on Fabric's device afterwards.

        Args:
            stage: the rung's name.
            model: what is measured.
            gating: attached to it; what it lets execute is told beside the cost of the whole network.
        """
        counted = cost(model.to("cpu"), self.inputs.example)
        if self.recipe.run.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.to(self.fabric.device)
        executed = None
        if gating is None:
            scores = self.scores(model)
        else:
            with gating.counting() as counter:
                scores = self.scores(model)
            executed = counter.mean
        repeats = self.recipe.evaluate.latency_repeats
        row = rung(stage, scores, counted, latency(model, self.inputs.example, repeats) if repeats else None, executed)
        size = f"{counted.params:,} parameters, {counted.macs:,} MACs"
        size += f", {executed:,.0f} of them executed on average" if executed is not None else ""
        self.display.line(f"{stage}: mIoU {100 * scores.miou:.1f} %, {size}")
        return row

    def scores(self, model: nn.Module) -> Scores:
        """Of a network on Fabric's device."""
        val, boundary = self.inputs.data["val"], self.recipe.evaluate.boundary
        confusion = Confusion(val.classes, val.ignore_index, self.fabric.device, boundary)
        scores = evaluate(model, self._loader, confusion, self.inputs.inference)
        self.counts = confusion.total()
        return scores

    def draw_confusion(self, path: Path, picture: Path) -> None:
        """The confusion matrix of the network that was measured last, as numbers and as a picture."""
        assert self.counts is not None
        if self.fabric.is_global_zero:
            record = {"classes": list(self.inputs.data["val"].classes), "pixels": self.counts.tolist()}
            write_json(path, record)
            with atomic_path(picture) as temporary:
                report.confusion_picture(temporary, record)

    def draw(self, path: Path, networks: dict[str, nn.Module]) -> Record:
        """The picture of what the networks predict, by name, and beside it every part of it in a file of its own; none
        if the recipe wants no images in it, or if classes are those of whole images.

        Returns:
            The samples with the paths of their pictures, and the colours of the classes, for `exhibits.json`.
        """
        samples = self._samples(self.recipe.evaluate.pictures)
        if not samples or not self.fabric.is_global_zero:
            return {}
        rows = {name: self._predictions(model, samples) for name, model in networks.items()}
        images, labels = [sample.image for sample in samples], [label_of(sample) for sample in samples]
        val = self.inputs.data["val"]
        with atomic_path(path) as temporary:
            report.picture(temporary, images, labels, rows, val.palette, val.classes)
        maps = {"truth": labels, **dict(zip(("unpruned", "final"), rows.values(), strict=True))}
        names = [sample.name for sample in samples]
        colours = zip(val.classes, val.palette, strict=True)
        return {
            "samples": keep_pictures(path.parent, names, images, maps, val.palette),
            "legend": {name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in colours},
        }

    @property
    def pictures(self) -> Callable[[nn.Module], np.ndarray] | None:
        """Draws what a network in training makes of a few images, always the same; None if none are wanted."""
        run = self.recipe.run
        samples = self._samples(run.tensorboard_pictures) if run.tensorboard else []
        if not samples:
            return None
        images, labels = [sample.image for sample in samples], [label_of(sample) for sample in samples]
        palette = self.inputs.data["val"].palette
        return lambda model: report.samples_picture(images, labels, self._predictions(model, samples), palette)

    def _samples(self, count: int) -> list[Sample]:
        """So many validation images, spread evenly; none of whole images' classes."""
        val = self.inputs.data["val"]
        wanted = min(count, len(val)) if val.task == "segmentation" else 0
        return [val.read(int(index)) for index in np.linspace(0, len(val) - 1, wanted)]

    def _predictions(self, model: nn.Module, samples: Sequence[Sample]) -> list[np.ndarray]:
        normalise, how = self.inputs.normalise, self.inputs.inference
        inputs = [torch.from_numpy(normalise(sample.image)).permute(2, 0, 1)[None] for sample in samples]
        return [predict(model, image, how)[0].numpy() for image in inputs]


def label_of(sample: Sample) -> np.ndarray:
    """At the image's size."""
    return resize_label(sample.label, sample.image.shape[:2])
