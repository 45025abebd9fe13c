"""A network as a file for other runtimes, which is kept only if it computes the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.costs import cost
from secateur.data import make_loader
from secateur.errors import CannotError, DataError, RunFolderError
from secateur.files import atomic_path
from secateur.metrics import Confusion
from secateur.ship.agreement import RELATIVE, SAME, Agreement, Runner, agreement, tensors_of
from secateur.ship.images import images_for, opened
from secateur.ship.onnx_file import OnnxNetwork, check_opset, exported_program, need, quantise, write_onnx
from secateur.ship.source import Network, open_network
from secateur.training import evaluate

__all__ = ["Format", "eight_bits", "export", "write_checked"]

Format = Literal["onnx", "torch"]
Record = dict[str, Any]
CHECKED = 8  # images that a file is checked on
CALIBRATED = 64  # images that ranges of activations are taken from
OTHER = (32, 64)  # pixels that a second size is larger by, in height and width


def export(
    network: Network,
    out: Path,
    form: Format,
    opset: int,
    size: tuple[int, int] | None,
    dynamic_size: bool,
    images: Sequence[Path],
    say: Callable[[str], None],
) -> Record:
    """Writes the file, checked on real images.

    Args:
        network: what is exported.
        out: the file; it appears only if the check is passed.
        form: ONNX, or an archive of torch.export.
        opset: of ONNX.
        size: height and width of the images; by default that of the recipe.
        dynamic_size: images may have other sizes as well; checked at a second one.
        images: to check it on; see `images_for`.
        say: takes lines on what is done instead.

    Returns:
        File, size in bytes, opset, shape of the input, images, and how far it is from the original.

    Raises:
        CannotError: the network can't be exported, or the file computes something else.
    """
    size = size or network.input_size
    shown = images_for(network, images, network.recipe.data.val_split, CHECKED, say)
    sizes = [size, *([(size[0] + OTHER[0], size[1] + OTHER[1])] if dynamic_size else [])]
    batches = [batch for each in sizes for batch in _batches(shown.batch(network, each))]
    about = {
        "classes": list(network.classes),
        "palette": [list(colour) for colour in network.palette],
        "mean": list(network.recipe.data.mean),
        "std": list(network.recipe.data.std),
        "size": list(size),
        "macs": int(cost(network.model.cpu(), batches[0]).macs),
    }
    found = write_checked(network.model, out, form, opset, dynamic_size, batches, about)
    return {
        "file": str(out),
        "bytes": out.stat().st_size,
        "format": form,
        "opset": opset if form == "onnx" else None,
        "input": ["N", 3, *(["H", "W"] if dynamic_size else size)],
        "images": shown.source,
        **asdict(found),
    }


def write_checked(
    model: nn.Module,
    out: Path,
    form: Format,
    opset: int,
    dynamic_size: bool,
    batches: Sequence[Tensor],
    about: Record | None = None,
) -> Agreement:
    """Exports any network of one image batch, in eval mode on the CPU; the file is kept if it agrees on the batches.

    Raises:
        CannotError: it can't be exported, or the file computes something else.
    """
    if form == "onnx":
        need("onnx", "onnxscript", "onnxruntime")
        check_opset(opset)
    model = model.cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    # of two images: the exporters take a batch of one for a constant
    first = batches[0][:1].repeat(2, 1, 1, 1)
    program = exported_program(model, first, dynamic_size)
    with atomic_path(out) as temporary:
        if form == "onnx":
            write_onnx(program, first, temporary, opset, about or {})
            run: Runner = OnnxNetwork(temporary).outputs
        else:
            torch.export.save(program, temporary)
            archived = torch.export.load(temporary).module()

            def run(images: Tensor) -> list[Tensor]:
                with torch.no_grad():
                    return tensors_of(archived(images))

        found = agreement(model, run, batches)
        if not found.ok:
            raise CannotError(
                f"{out} is not kept: it computes something else than the network ({found}); expected at most "
                f"{RELATIVE:.0e}, and the same class in at least {100 * SAME:.2f} % of the pixels"
            )
    return found


def eight_bits(
    network: Network, exported: Path, out: Path, images: Sequence[Path], say: Callable[[str], None]
) -> Record:
    """Writes the file with 8-bit integers beside the one of float32, and measures what that costs.

    Args:
        network: what was exported.
        exported: the ONNX file of float32.
        out: the file of 8 bits.
        images: to calibrate with; by default those that the run was trained on.
        say: takes lines on what is done instead, or can't be measured.

    Returns:
        "calibration" and "rows": of every network its bytes and, where the run has validation data, its mIoU.

    Raises:
        CannotError: onnxruntime can't quantise the network.
    """
    shown = images_for(network, images, network.recipe.data.train_split, CALIBRATED, say)
    size = OnnxNetwork(exported).fixed_size or network.input_size
    with atomic_path(out) as temporary:
        quantise(exported, temporary, shown.batch(network, size).split(1))
    candidates: dict[str, tuple[nn.Module, int]] = {}
    parent = _parent(network)
    if parent is not None:
        candidates["parent"] = (parent.model, parent.file.stat().st_size)
    candidates["pruned"] = (network.model, network.file.stat().st_size)
    candidates["pruned, ONNX"] = (OnnxNetwork(exported), exported.stat().st_size)
    candidates["pruned, ONNX int8"] = (OnnxNetwork(out), out.stat().st_size)
    scores = _scores(network, {name: model for name, (model, _) in candidates.items()}, say)
    rows = [{"network": name, "bytes": size, "miou": scores.get(name)} for name, (_, size) in candidates.items()]
    return {"file": str(out), "calibration": shown.source, "rows": rows}


def _batches(images: Tensor) -> list[Tensor]:
    """One by one, and several at once."""
    return [*images.split(1), torch.cat([images, images])[:3]]


def _parent(network: Network) -> Network | None:
    """The run's unpruned network, if the network is not that itself."""
    if network.folder is None or network.file == network.folder.parent:
        return None
    try:
        return open_network(network.folder.path, "parent")
    except RunFolderError:
        return None


def _scores(network: Network, models: dict[str, nn.Module], say: Callable[[str], None]) -> dict[str, float]:
    """mIoU on the run's validation data; nothing if they are not there, or have other sizes than a file takes."""
    recipe = network.recipe
    try:
        data = opened(network, recipe.data.val_split)
    except DataError as error:
        say(f"no mIoU: {error}")
        return {}
    alone = recipe.data.size is None or recipe.evaluate.full_size
    batch = 1 if alone else recipe.evaluate.batch_size
    loader = make_loader(data, batch, training=False, seed=0, workers=0, normalise=network.normalise)
    confusion = Confusion(data.classes, data.ignore_index)
    scores: dict[str, float] = {}
    for name, model in models.items():
        try:
            scores[name] = evaluate(model, loader, confusion, network.inference).miou
        except Exception as error:
            if not isinstance(model, OnnxNetwork):
                raise
            shown = str(error).strip().splitlines()[0]
            say(f"no mIoU of {name}: the recipe shows images of other sizes than the file takes ({shown})")
    return scores
