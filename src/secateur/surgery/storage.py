"""Pruned networks on disk: one safetensors file, the plan as JSON in its header.

Files may come from anybody. Nothing in them is executed, nothing they say is believed before it was compared with the
network at hand, and nothing larger than that network can need is ever read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secateur.errors import CheckpointError, PlanError, nearest
from secateur.files import atomic_path
from secateur.graph import state_of, unwrapped
from secateur.plan import Plan
from secateur.plan.plan import shown, strict_json
from secateur.surgery.cut import apply

FORMAT = "1"
DIGEST = "secateur_sha256"
ARCHIVES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zip, pickle

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
# the numbers that a plan may change: a file must not set whatever else a module keeps
_COUNTS = (
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels",
    "num_groups", "num_parameters", "embedding_dim",
)  # fmt: skip


class Form(NamedTuple):
    """What a tensor is like: its type as safetensors calls it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


class Entry(NamedTuple):
    """A tensor in a file: its form, and where its data are said to lie."""

    form: Form
    begin: int
    end: int


def _persistent(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tied tensor once, under its first name."""
    once: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if isinstance(t, Tensor) and once.setdefault(id(t), name) == name}


def form_of(tensor: Tensor) -> Form:
    return Form(_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


# -- writing ----------------------------------------------------------------------------------------------------------


def save(path: str | Path, model: nn.Module, plan: Plan) -> None:
    """Write a pruned network's tensors and its plan; equal content makes equal bytes.

    Args:
        path: the file; a finished file appears at once or not at all.
        model: the pruned network.
        plan: what was removed from the original.
    """
    write_tensors(Path(path), _persistent(model), {"secateur": FORMAT, "plan": plan.to_json()})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a digest, atomically.

    By ourselves: the library writes metadata in an order that differs from time to time, and the digest is known when
    the data are written.
    """
    entries, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):  # so all are aligned
        form = form_of(tensors[name])
        if form.dtype not in _DTYPES:
            raise CheckpointError(f"{path}: {name} is of type {form.dtype}, which safetensors files can't hold")
        begin, end = end, end + form.bytes
        entries[name] = Entry(form, begin, end)
    digest = _digest(entries, metadata)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(entries, metadata, digest.hexdigest()))  # keeps the place: the length won't change
        for name in entries:
            data = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.seek(0)
        file.write(_header(entries, metadata, digest.hexdigest()))


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str], digest: str) -> bytes:
    tensors = {
        name: {"dtype": form.dtype, "shape": form.shape, "data_offsets": (begin, end)}
        for name, (form, begin, end) in entries.items()
    }
    told = {"__metadata__": dict(sorted({**metadata, DIGEST: digest}.items())), **tensors}
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> hashlib._Hash:
    """SHA-256 of the plan and the list of tensors; the data follow. Other metadata are other programs' business."""
    return hashlib.sha256(json.dumps([metadata.get("plan"), entries], sort_keys=True).encode())


# -- reading ----------------------------------------------------------------------------------------------------------


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """Cut a fresh, unpruned network to a file's plan and load the file's tensors into it.

    Args:
        path: a file written by `save`; it may come from anybody.
        model: the network as it was before pruning; it is not changed.

    Returns:
        The pruned network.

    Raises:
        CheckpointError: the file is damaged or belongs to another network; all names that do not fit are told.
    """
    path, model = Path(path), unwrapped(model)
    with opened(path, {**model.state_dict(), **state_of(model)}) as file:
        plan = _plan_in(file)
        owner = type(model).__name__
        try:
            expected = _forms_after(model, plan)
        except PlanError as error:
            raise CheckpointError(
                f"{path}: its plan does not fit this {owner}: {error}. Give load the unpruned network that the file "
                "was made from"
            ) from error
        file.check(expected, owner)
        small = apply(model, plan)
        with torch.no_grad():
            for name, tensor in _persistent(small).items():
                tensor.copy_(file.tensor(name))
    return small


def _plan_in(file: TensorFile) -> Plan:
    if "plan" not in file.metadata:
        raise CheckpointError(f"{file.path}: weights without a plan; a file written by secateur.save was expected")
    version = file.metadata.get("secateur")
    if version != FORMAT:
        raise CheckpointError(
            f"{file.path}: format {shown(version)}; this release reads format {FORMAT}. Load it with the release that "
            "wrote it"
        )
    try:
        return Plan.from_json(file.metadata["plan"])
    except PlanError as error:
        raise CheckpointError(f"{file.path}: {error}. Write it again with secateur.save") from error


def _forms_after(model: nn.Module, plan: Plan) -> dict[str, Form]:
    """What a plan makes of a network's tensors, told without cutting anything.

    Raises:
        PlanError: it names what the network lacks, or fits it badly.
    """
    state, modules = state_of(model), dict(model.named_modules())
    unknown = [name for name in {**plan.removed, **plan.shapes} if name not in state]
    if unknown:
        raise PlanError(f"no such tensor: {_some(unknown)}; {nearest(shown(unknown[0]), state, shown=5)}")
    cut: dict[int, tuple[int, ...]] = {}
    for name, dims in plan.removed.items():
        shape = tuple(state[name].shape)
        if plan.shapes.get(name) != shape:
            raise PlanError(f"{name}: shape {shape}, the plan was made for {shown(plan.shapes.get(name))}")
        cut.setdefault(id(state[name]), tuple(size - len(dims.get(d, ())) for d, size in enumerate(shape)))
    for module, numbers in plan.numbers.items():
        for attribute, value in numbers.items():
            known = getattr(modules.get(module), attribute, None) if attribute in _COUNTS else None
            if not isinstance(known, int) or not 1 <= value <= known:
                raise PlanError(f"{shown(f'{module}.{attribute}')}: {known} in this network can't become {value}")
    for name, layer in modules.items():
        _check_layer(name, layer, state, cut, plan.numbers.get(name, {}))
    forms = {name: (form_of(tensor), id(tensor)) for name, tensor in _persistent(model).items()}
    return {name: Form(form.dtype, cut.get(which, form.shape)) for name, (form, which) in forms.items()}


def _check_layer(
    name: str,
    module: nn.Module,
    state: Mapping[str, Tensor],
    cut: Mapping[int, tuple[int, ...]],
    numbers: Mapping[str, int],
) -> None:
    """Raise PlanError if a layer's tensors and numbers fit each other before the cut, but not after."""
    before = _sizes(module, lambda attribute: getattr(module, attribute))
    after = _sizes(module, lambda attribute: numbers.get(attribute, getattr(module, attribute)))
    prefix = f"{name}." if name else ""
    if f"{prefix}weight" not in state and getattr(module, "weight", None) is not None:
        return  # computed from other tensors
    for role, shape in before.items():
        tensor = state.get(f"{prefix}{role}")
        if tensor is not None and tensor.shape == shape and cut.get(id(tensor), shape) != after[role]:
            raise PlanError(
                f"{prefix}{role} would be of shape {cut.get(id(tensor), shape)}, but the other numbers of this "
                f"{type(module).__name__} ask for {after[role]}"
            )


def _sizes(module: nn.Module, number: Callable[[str], int]) -> dict[str, tuple[int, ...]]:
    """The shapes that torch's own layers claim for their tensors, by their numbers."""
    if isinstance(module, _ConvNd):
        into, out, groups = number("in_channels"), number("out_channels"), number("groups")
        first, second = (into, out) if module.transposed else (out, into)
        return {"weight": (first, second // groups, *module.kernel_size), "bias": (out,)}
    if isinstance(module, nn.Linear):
        return {"weight": (number("out_features"), number("in_features")), "bias": (number("out_features"),)}
    if isinstance(module, (_NormBase, nn.GroupNorm)):
        size = (number("num_features" if isinstance(module, _NormBase) else "num_channels"),)
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), size)
    if isinstance(module, nn.PReLU):
        return {"weight": (number("num_parameters"),)}
    if isinstance(module, nn.Embedding):
        return {"weight": (number("num_embeddings"), number("embedding_dim"))}
    return {}


@contextmanager
def opened(path: Path, tensors: Mapping[str, Tensor]) -> Iterator[TensorFile]:
    """A safetensors file that should hold some or all of a network's tensors.

    Raises:
        CheckpointError: there is none, it can't be read, or what it says of its content is not to be believed.
    """
    try:
        if not path.is_file():  # a pipe or a device could keep us waiting for ever
            what = "a folder" if path.is_dir() else "no such file"
            raise CheckpointError(f"{path}: {what}; a safetensors file was expected")
        with path.open("rb") as file:
            yield TensorFile(path, file, _longest_header(tensors))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from error


def _longest_header(tensors: Mapping[str, Tensor]) -> int:
    """What lists all tensors and a plan that removes nearly everything, generously: parsing takes many times it."""
    of_tensors = sum(5 * len(json.dumps(name)) + 512 + 12 * sum(t.shape) for name, t in tensors.items())
    return 2**17 + of_tensors


class TensorFile:
    """An open safetensors file; at first only its header is read.

    Not by the library, which parses headers of up to 100 MB before anybody can look at them.

    Attributes:
        metadata: texts beside the tensors.
        entries: what the file says of its tensors; true only after `check`.
    """

    def __init__(self, path: Path, file: BufferedReader, longest: int) -> None:
        self.path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        if self._size < 8:
            raise self._damaged(f"it has {self._size} bytes")
        magic = self._bytes(8)
        length = int.from_bytes(magic, "little")
        if length > longest and magic.startswith(ARCHIVES):
            raise CheckpointError(
                f"{path}: no safetensors file but an archive as torch.save writes it, which could run code and is "
                "never opened; have its tensors saved as safetensors"
            )
        if length > longest:
            raise self._damaged(f"its header would take {length:,} bytes, this network's at most {longest:,}")
        self._start = 8 + length
        if self._start > self._size:
            raise self._damaged(f"its header takes {length:,} bytes, only {self._size - 8:,} are there")
        try:
            self.metadata, self.entries = _entries(strict_json(bytes(self._bytes(length))))
        except ValueError as error:
            raise self._damaged(f"in its header: {error}") from error

    def check(self, expected: Mapping[str, Form], owner: str) -> None:
        """Compare the file with what it should hold: names, types, shapes, places of the data, and the digest.

        Raises:
            CheckpointError: it is damaged or belongs to another network; all names that do not fit are told.
        """
        problems = misfits(expected, {name: entry.form for name, entry in self.entries.items()})
        if problems:
            raise CheckpointError(
                f"{self.path} does not belong to this {owner}; {problems}. Was it made from another network, width, "
                "number of classes or type, or damaged since?"
            )
        at = 0
        for name, (form, begin, end) in sorted(self.entries.items(), key=lambda item: item[1][1:]):
            if (begin, end) != (at, at + form.bytes):
                raise self._damaged(f"{name} from byte {begin} to {end} instead of {at} to {at + form.bytes}")
            at = end
        if self._start + at != self._size:
            raise self._damaged(f"{self._size - self._start:,} bytes of data instead of {at:,}")
        if DIGEST in self.metadata:  # not in files of earlier releases and other programs
            digest = _digest(self.entries, self.metadata)
            self._file.seek(self._start)
            while chunk := self._file.read(2**20):
                digest.update(chunk)
            if digest.hexdigest() != self.metadata[DIGEST]:
                raise self._damaged("its content does not match its checksum")

    def tensor(self, name: str) -> Tensor:
        """A tensor of a file that was checked."""
        form, begin, _ = self.entries[name]
        if not form.bytes:
            return torch.empty(form.shape, dtype=_DTYPES[form.dtype])
        self._file.seek(self._start + begin)
        data = torch.frombuffer(self._bytes(form.bytes), dtype=torch.uint8)
        # bytes other than 0 and 1 are no bools, and what torch does with them is undefined
        right = data.ne(0) if form.dtype == "BOOL" else data.view(_DTYPES[form.dtype])
        return right.reshape(form.shape)

    def _bytes(self, count: int) -> bytearray:
        data = bytearray(count)
        if self._file.readinto(data) < count:
            raise self._damaged("it was cut short while it was read")
        return data

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: damaged, truncated or no safetensors file ({why}); fetch or write the file again"
        )


def _entries(header: Any) -> tuple[dict[str, str], dict[str, Entry]]:
    """The metadata and the tensors in a header; ValueError if it isn't one."""
    if not isinstance(header, dict):
        raise ValueError("an object was expected")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("metadata that are no texts")
    entries = {}
    for name, said in header.items():
        match said:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end], **others}:
                if not others and dtype in _DTYPES and all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
                    entries[name] = Entry(Form(dtype, tuple(shape)), begin, end)
                    continue
        raise ValueError(f"no known type, shape and place of {shown(name)}")
    return metadata, entries


def misfits(expected: Mapping[str, Form], found: Mapping[str, Form]) -> str:
    """The names by which a file's tensors differ from a network's, a few of each kind; empty if they fit."""
    both = [(name, found[name], form) for name, form in expected.items() if name in found]
    kinds = {
        "missing in the file": [name for name in expected if name not in found],
        "not in the network": [name for name in found if name not in expected],
        "of another shape": [f"{name} {shown(a.shape)} instead of {b.shape}" for name, a, b in both if a[1] != b[1]],
        "of another type": [f"{name} {shown(a.dtype)} instead of {b.dtype}" for name, a, b in both if a[0] != b[0]],
    }
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name, 200) for name in names[:most]) + more
