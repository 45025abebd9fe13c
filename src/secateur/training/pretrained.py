"""Weights trained on other data: ImageNet's in torchvision's format, for a network's trunk; a released detector's.

A network whose released weights have other names than here, such as YOLOv5, tells ours by its function `released_name`,
and by `classifiers` which tensors depend on the number of classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from secateur.errors import CheckpointError
from secateur.plan.plan import shown
from secateur.surgery.forms import Form, form_of, misfits
from secateur.surgery.tensor_file import ARCHIVES, opened

__all__ = ["load_pretrained"]

CLASSIFIER = ("fc.weight", "fc.bias")  # of torchvision's ResNets; left out where it does not fit
COUNTER = "num_batches_tracked"  # older files lack it
FLOATS = {"F16", "BF16", "F32", "F64"}

log = logging.getLogger(__name__)


def load_pretrained(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Loads a state dict, such as torchvision's of a ResNet, into the part of `model` that has its names.

    The part is the module below which most of the file's names are found: the network itself, or its trunk. All of the
    file must fit there but the old classifier, and all of the part must be in the file but the classifier and the
    modules of which it has nothing: a network's own heads keep their values.

    Args:
        model: the network; it is changed as a whole or not at all.
        path: a safetensors file; its numbers may be of another floating-point type.

    Returns:
        The names of the file's tensors that were left out.

    Raises:
        CheckpointError: there is no such file, it is damaged or no safetensors file, or it is another trunk's; lists
            the names that are missing, unexpected or of another shape.
    """
    path, state = Path(path), dict(model.state_dict())
    own_name: Callable[[str], str | None] = getattr(model, "released_name", str)
    _refuse_archive(path)
    with opened(path, state) as file:
        # against nothing but its own checksum, if it has one
        file.check({name: entry.form for name, entry in file.entries.items()}, type(model).__name__)
        theirs = _by_own_names(path, [name for name in file.entries if not name.endswith(COUNTER)], own_name)
        found = {name: file.entries[known].form for name, known in theirs.items()}
        part = _part(path, model, state, found)
        inside = {
            name.removeprefix(part): form_of(tensor)
            for name, tensor in state.items()
            if name.startswith(part) and not name.endswith(COUNTER)
        }
        found = {name: _converted(form, inside.get(name)) for name, form in found.items()}
        left_out = tuple(name for name in (*CLASSIFIER, *getattr(model, "classifiers", ())) if name in found)
        if all(found[name] == inside.get(name) for name in left_out):
            left_out = ()
        wanted = {name: form for name, form in found.items() if name not in left_out}
        _check(path, model, part, {name: form for name, form in inside.items() if name not in left_out}, wanted)
        tensors = {f"{part}{name}": file.tensor(theirs[name]) for name in wanted}
    model.load_state_dict(tensors, strict=False)
    if left_out:
        log.info("%s: %s left out, the network has another head", path, " and ".join(left_out))
    return left_out


def _by_own_names(path: Path, names: Iterable[str], own_name: Callable[[str], str | None]) -> dict[str, str]:
    """What tensors are called in the network -> in the file; without those that the network has no use for."""
    theirs: dict[str, str] = {}
    for name in names:
        own = own_name(name)
        if own is not None and theirs.setdefault(own, name) != name:
            raise CheckpointError(f"{path}: {shown(theirs[own])} and {shown(name)} are the same tensor of the network")
    return theirs


def _refuse_archive(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(8)
        if not magic.startswith(ARCHIVES) or int.from_bytes(magic, "little") < 10**8:  # the length of a header
            return
        target = path.with_suffix(".safetensors").name
        start = 'python -c "import torch, safetensors.torch as s; '
        raise CheckpointError(
            f"{path}: an archive as torch.save writes it, which could run code and is never opened; convert it once: "
            f'{start}s.save_file(torch.load({path.name!r}, weights_only=True), {target!r})". If that finds more than '
            "tensors (YOLOv5's releases hold a whole network, as a pickle), and only if you trust the file, run, where "
            f"the code that it was written by can be imported: {start}"
            f"m = torch.load({path.name!r}, map_location='cpu', weights_only=False); "
            "m = m.get('model', m) if isinstance(m, dict) else m; "
            f's.save_file({{k: v.contiguous() for k, v in m.state_dict().items()}}, {target!r})"'
        )


def _part(path: Path, model: nn.Module, state: Mapping[str, Tensor], found: Iterable[str]) -> str:
    """The prefix of the names of the module that has most of the found names, and at least a quarter of them."""
    found = list(found)
    prefixes = ["", *(f"{name}." for name, _ in model.named_modules() if name)]
    counts = [sum(f"{prefix}{name}" in state for name in found) for prefix in prefixes]
    if 4 * max(counts) < len(found) or not found:
        some = ", ".join(map(shown, found[:3])) or "none"
        raise CheckpointError(
            f"{path}: no part of this {type(model).__name__} has tensors of its names ({some} ...); a state dict as "
            "torchvision's ResNets have it was expected, and a network with such a trunk (pspnet50, pspnet101, "
            "resnet50, resnet101), or YOLOv5's of release 5.0 for a yolov5s, m, l or x"
        )
    return prefixes[counts.index(max(counts))]


def _converted(form: Form, wanted: Form | None) -> Form:
    """The form with the wanted type, if that is another floating-point type."""
    return Form(wanted.dtype, form.shape) if wanted and {form.dtype, wanted.dtype} <= FLOATS else form


def _check(path: Path, model: nn.Module, part: str, inside: Mapping[str, Form], found: Mapping[str, Form]) -> None:
    children = {name.partition(".")[0] for name in found}
    problems = misfits({name: form for name, form in inside.items() if name.partition(".")[0] in children}, found)
    if not problems:
        return
    where = f"the {part[:-1]} of this {type(model).__name__}" if part else f"this {type(model).__name__}"
    shapes = [forms["conv1.weight"].shape for forms in (found, inside) if "conv1.weight" in forms]
    if len(shapes) == 2 and shapes[0][2:] == (7, 7) and shapes[1] == (shapes[0][0], 3, 3, 3):
        problems += ". With the option stem=7x7 a PSPNet has torchvision's first layers (model.options: {stem: 7x7})"
    raise CheckpointError(f"{path} does not fit {where}; {problems}")
