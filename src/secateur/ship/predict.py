"""What networks make of photos: label maps, overlays, two networks beside each other, and the time they take."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from secateur.data import DATASETS
from secateur.data.files import read_image, resize_image, resize_label, write_label
from secateur.errors import CannotError, DataError, ModelError, SecateurError, UserError
from secateur.files import atomic_path, write_json
from secateur.ship.drawing import overlay, side_by_side
from secateur.ship.photos import Input, frames, frames_per_second
from secateur.ship.source import Network
from secateur.training import predict

__all__ = ["Predictions"]

LOGITS = 2**28  # numbers that are held at most for one photo: 1 GiB; larger photos are decided at a smaller size

Record = dict[str, Any]


class Predictions:
    """Pictures of what one or two networks predict, in a folder.

    Of a photo NAME there are `labels/NAME.png` (pixels are class numbers, shown in the data set's colours),
    `overlays/NAME.png`, and with two networks `beside/NAME.png`; of a video, `labels/NAME/000000.png` ...,
    `overlays/NAME.mp4`, `beside/NAME.mp4`. All are of the photo's own size; a network is shown the photo at the size of
    its recipe, asked as the recipe says. Of networks that say what a whole image shows there are no pictures.

    Args:
        network: whose predictions are drawn.
        beside: another one, of the same classes.
        out: the folder.
        force: files there may be overwritten.

    Raises:
        UserError: the two networks have different classes.
    """

    def __init__(self, network: Network, beside: Network | None, out: Path, force: bool = False) -> None:
        self.network, self.out, self.force = network, out, force
        self.networks = [network] if beside is None else [network, beside]
        if beside is not None and beside.classes != network.classes:
            raise UserError(
                f"{beside.name} has other classes ({len(beside.classes)}) than {network.name} "
                f"({len(network.classes)}); expected two networks of one data set."
            )
        self.draws = DATASETS[network.recipe.data.name].task == "segmentation"
        self._times: list[list[float]] = [[] for _ in self.networks]
        self.device = _device(network)
        for each in self.networks:
            each.model.to(self.device)

    def make(self, inputs: Sequence[Input], told: Callable[[Record], None] = lambda record: None) -> Record:
        """Predicts all inputs; those that can't be read do not keep the others from it.

        Args:
            inputs: photos and videos.
            told: takes the record of every one, as soon as it is done.

        Returns:
            The content of `predictions.json`: classes, palette, networks with their median time, and of every input its
            size, files and the share of every class that occurs.

        Raises:
            UserError: a file would be overwritten; or nothing could be used, which is a DataError.
            CannotError: some inputs could not be used; the others are done.
        """
        self._check(inputs)
        done: list[Record] = []
        failures: list[str] = []
        for each in inputs:
            try:
                done.append(self._video(each) if each.moves else self._photo(each))
            except (DataError, ModelError) as error:
                failures.append(str(error))
            else:
                told(done[-1])
        if not done:
            raise DataError("\n  ".join(failures))
        record = {
            "classes": list(self.network.classes),
            "palette": [list(colour) for colour in self.network.palette],
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "networks": [
                {"name": each.name, "file": str(each.file), "ms": statistics.median(times), "images": len(times)}
                for each, times in zip(self.networks, self._times, strict=True)
            ],
            "inputs": done,
        }
        with _writing(self.out / "predictions.json"):
            write_json(self.out / "predictions.json", record)
        if failures:
            raise CannotError(
                f"{len(failures)} of {len(inputs)} inputs could not be used; the others are in {self.out}:\n  "
                + "\n  ".join(failures)
            )
        return record

    def _check(self, inputs: Sequence[Input]) -> None:
        """Refuses, before any work, to overwrite files."""
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; choose another folder")
        wanted = [self.out / "predictions.json"]
        wanted += [path for each in inputs for path in self._files(each).values()]
        there = [path for path in wanted if path.exists()]
        if there and not self.force:
            more = f" (and {len(there) - 1} more)" if there[1:] else ""
            raise UserError(f"{there[0]} exists already{more}; choose another --out, or overwrite it with --force")

    def _files(self, each: Input) -> dict[str, Path]:
        if not self.draws:
            return {}
        kinds = ["labels", "overlays", *(["beside"] if self.networks[1:] else [])]
        endings = {kind: "" if kind == "labels" else ".mp4" for kind in kinds} if each.moves else {}
        return {kind: self.out / kind / f"{each.stem}{endings.get(kind, '.png')}" for kind in kinds}

    def _photo(self, each: Input) -> Record:
        photo = read_image(each.path)
        maps = self._maps(photo, each.path)
        files = self._files(each)
        for kind, picture in self._pictures(photo, maps).items() if files else ():
            self._write(files[kind], picture, indexed=kind == "labels")
        return self._record(each, photo.shape[:2], np.bincount(maps[0].ravel(), minlength=256), files)

    def _video(self, each: Input) -> Record:
        files, rate = self._files(each), frames_per_second(each.path)
        counts, number, size = np.zeros(256, np.int64), 0, (0, 0)
        with contextlib.ExitStack() as stack:
            films: dict[str, _Film] = {}
            for number, frame in enumerate(frames(each.path)):
                size = frame.shape[:2]
                maps = self._maps(frame, each.path)
                counts += np.bincount(maps[0].ravel(), minlength=256)
                for kind, picture in self._pictures(frame, maps).items() if files else ():
                    if kind == "labels":
                        self._write(files[kind] / f"{number:06d}.png", picture, indexed=True)
                        continue
                    if kind not in films:
                        films[kind] = stack.enter_context(_film(files[kind], rate, picture.shape[:2]))
                    films[kind](picture)
        return {**self._record(each, size, counts, files), "frames": number + 1}

    def _maps(self, photo: np.ndarray, path: Path) -> list[np.ndarray]:
        """The classes (H, W) that every network gives the photo's pixels; their times are noted."""
        found = []
        for network, times in zip(self.networks, self._times, strict=True):
            if not times:  # the first pass of all takes longer
                self._timed(network, photo, path)
            classes, milliseconds = self._timed(network, photo, path)
            times.append(milliseconds)
            found.append(classes)
        return found

    def _timed(self, network: Network, photo: np.ndarray, path: Path) -> tuple[np.ndarray, float]:
        height, width = photo.shape[:2]
        shown = photo if network.recipe.data.size is None else resize_image(photo, network.recipe.data.size)
        images = torch.from_numpy(network.normalise(np.ascontiguousarray(shown))).permute(2, 0, 1)[None].contiguous()
        shrink = min(1.0, math.sqrt(LOGITS / (len(network.classes) * height * width)))
        size = (max(1, int(shrink * height)), max(1, int(shrink * width)))
        begin = time.perf_counter()
        try:
            classes = predict(network.model, images, network.inference, size)[0].numpy().astype(np.uint8)
        except SecateurError as error:
            raise ModelError(f"{path} ({height}x{width}): {error}") from error
        except Exception as error:  # whatever a user's own network may raise, or memory that is not there
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            at = "x".join(map(str, shown.shape[:2]))
            raise ModelError(
                f"{path} ({height}x{width}): {network.name} fails on it, shown at {at}: {reason}"
            ) from error
        return resize_label(classes, (height, width)), 1000 * (time.perf_counter() - begin)

    def _pictures(self, photo: np.ndarray, maps: list[np.ndarray]) -> dict[str, np.ndarray]:
        overlays = [overlay(photo, classes, self.network.palette) for classes in maps]
        pictures = {"labels": maps[0], "overlays": overlays[0]}
        if overlays[1:]:
            names = [each.name for each in self.networks]
            pictures["beside"] = side_by_side(dict(zip(("photo", *_apart(names)), (photo, *overlays), strict=True)))
        return pictures

    def _write(self, path: Path, picture: np.ndarray, indexed: bool) -> None:
        with _writing(path):
            write_label(path, picture, self.network.palette if indexed else None)

    def _record(self, each: Input, size: tuple[int, ...], counts: np.ndarray, files: dict[str, Path]) -> Record:
        shares = counts[: len(self.network.classes)] / counts.sum()
        order = sorted((int(k) for k in shares.nonzero()[0]), key=lambda k: (-shares[k], k))
        return {
            "input": str(each.path),
            "size": [int(side) for side in size],
            "shares": {self.network.classes[k]: float(shares[k]) for k in order},
            "files": {kind: str(path) for kind, path in files.items()},
            "ms": [times[-1] for times in self._times],
        }


def _apart(names: list[str]) -> list[str]:
    """Names that differ, of networks that are called the same."""
    return names if names[0] != names[1] else [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _device(network: Network) -> torch.device:
    run = network.recipe.run
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    return torch.device("cuda" if run.accelerator != "cpu" and torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Makes the file's folder, and says what can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from error


class _Film:
    """Takes frames, RGB, of one size."""

    def __init__(self, writer: cv2.VideoWriter, size: tuple[int, ...]) -> None:
        self.writer, self.size = writer, size

    def __call__(self, picture: np.ndarray) -> None:
        self.writer.write(cv2.cvtColor(resize_image(picture, (self.size[0], self.size[1])), cv2.COLOR_RGB2BGR))


@contextlib.contextmanager
def _film(path: Path, rate: float, size: tuple[int, ...]) -> Iterator[_Film]:
    """A video, which appears when it is finished."""
    with _writing(path), atomic_path(path) as temporary:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate, (size[1], size[0]))
        if not writer.isOpened():
            raise CannotError(f"{path}: OpenCV can't write a video of {size[0]}x{size[1]} on this machine")
        try:
            yield _Film(writer, size)
        finally:
            writer.release()
