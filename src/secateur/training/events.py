"""TensorBoard's event files: scalars, pictures and histograms.

Written at once and in this thread. TensorBoard's own writer leaves that to a thread, whose errors end as a traceback on
the terminal, and which a process that is forked for loading data would take along, locks and all.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["EventFile", "scales_of"]

BINS = 30


def scales_of(model: nn.Module) -> dict[str, Tensor]:
    """The scales, gamma, of every batch norm by the name of its histogram, and those of all together."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    scales = {f"gamma/{name}": norm.weight.detach() for name, norm in norms.items() if norm.weight is not None}
    return {"gamma/all": torch.cat([*scales.values()]), **scales} if scales else {}


class EventFile:
    """A new event file in `folder`, which is made if need be.

    Args:
        folder: TensorBoard shows the event files of a folder as one run.
        step: where this attempt goes on; events of this step and later ones that are there already are those of an
            attempt that was interrupted, and TensorBoard hides them.

    Raises:
        OSError: the disk refuses, here and in all methods.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # a third of a second
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._histogram = Event, Summary, HistogramProto
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder by name
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}.{step}"
        self._file: BinaryIO = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One number per name."""
        self._add([self._summary.Value(tag=name, simple_value=value) for name, value in values.items()], step)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """uint8 (H, W, 3), RGB."""
        data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
        height, width, channels = pixels.shape
        image = self._summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=data)
        self._add([self._summary.Value(tag=name, image=image)], step)

    def histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """How the finite ones of the values behind each name are spread; nothing where there are none."""
        written = []
        for name, tensor in values.items():
            numbers = tensor.detach().double().flatten().cpu().numpy()
            numbers = numbers[np.isfinite(numbers)]
            if not len(numbers):
                continue
            counts, edges = np.histogram(numbers, bins=BINS)
            histogram = self._histogram(
                min=numbers.min(),
                max=numbers.max(),
                num=len(numbers),
                sum=numbers.sum(),
                sum_squares=(numbers**2).sum(),
                # a bucket has only an upper limit: an empty one in front says where the first begins
                bucket_limit=edges.tolist(),
                bucket=[0.0, *counts.tolist()],
            )
            written.append(self._summary.Value(tag=name, histo=histogram))
        self._add(written, step)

    def flush(self) -> None:
        """What was written can be read."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, values: list[Any], step: int) -> None:
        if values:
            self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
