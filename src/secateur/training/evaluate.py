"""Measuring a network: scores over a data set, time of one image, and batch-norm statistics estimated anew."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateur.metrics import Confusion, Scores
from secateur.training.inference import WHOLE, Inference

__all__ = ["Loader", "evaluate", "latency", "predict", "recalibrate"]


class Loader(Protocol):
    """Batches of (images float32 N3HW, labels int64 NHW), `len` of them in every epoch; `secateur.data.Loader` is one.

    The same bits for the same epoch number; `start` leaves out that many batches at the beginning. Iterating must not
    draw from the global random generators.
    """

    def epoch(self, epoch: int, start: int = 0) -> Iterable[tuple[Tensor, Tensor]]: ...

    def __len__(self) -> int: ...


def evaluate(model: nn.Module, loader: Loader, confusion: Confusion, inference: Inference = WHOLE) -> Scores:
    """The scores of the main head's argmax at the labels' size, over all batches of the loader's epoch 0.

    Args:
        model: in any mode; it is evaluated in eval mode and left as it was.
        loader: N3HW images and NHW labels.
        confusion: on the model's device; what it has counted before is forgotten.
        inference: how images are shown to the network; as a whole by default.
    """
    confusion.reset()
    device = device_of(model)
    with _eval_mode(model), torch.no_grad():
        for images, labels in loader.epoch(0):
            labels = labels.to(device)
            confusion.update(inference.classes(model, images.to(device), labels.shape[-2:]), labels)
    return confusion.scores()


def predict(
    model: nn.Module, images: Tensor, inference: Inference = WHOLE, size: tuple[int, int] | None = None
) -> Tensor:
    """The predicted class of every pixel, int64 (N, *size) on the CPU, for normalised images (N, 3, H, W); by default
    at their own size."""
    with _eval_mode(model), torch.no_grad():
        return inference.classes(model, images.to(device_of(model)), size or images.shape[-2:]).cpu()


def recalibrate(model: nn.Module, loader: Loader, batches: int) -> int:
    """Re-estimates the running statistics of all batch norms: the plain average over the first `batches` batches.

    A cut changes what reaches every norm, so the statistics of the uncut network no longer fit. Only the norms are in
    train mode meanwhile; no weight changes, and modes and momenta are left as they were.

    Args:
        model: changed in place (running mean and variance, number of batches tracked).
        loader: training images; its labels are not looked at.
        batches: how many batches to take, at most one epoch; 0 changes nothing.

    Returns:
        How many batches were used.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if batches <= 0 or not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    device, used = device_of(model), 0
    with _eval_mode(model), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # PyTorch's sign for the cumulative average
                norm.training = True
            for images, _ in itertools.islice(loader.epoch(0), batches):
                model(images.to(device))
                used += 1
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return used


def latency(model: nn.Module, example: Tensor, repeats: int = 20, warm_up: int = 3) -> float:
    """The median time of one forward pass in milliseconds, in eval mode on the model's device, after a warm-up.

    Args:
        model: left in the mode in which it was.
        example: one image (1, 3, H, W).
        repeats: timed passes, at least 1.
        warm_up: passes before them.
    """
    device = device_of(model)
    example = example.to(device)
    times = []
    with _eval_mode(model), torch.no_grad():
        for index in range(warm_up + repeats):
            _wait(device)
            begin = time.perf_counter()
            model(example)
            _wait(device)
            if index >= warm_up:
                times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def device_of(model: nn.Module) -> torch.device:
    """Where the network's parameters (or buffers) are; the CPU if it has none."""
    return next((t.device for t in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module then gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
