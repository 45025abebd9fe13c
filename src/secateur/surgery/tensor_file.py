"""Safetensors files from anybody: written and read by the safetensors library, and checked for what it lets pass.

The library refuses whatever breaks the format: a header that is none, unknown types, data that overlap, lie outside or
are not of the size of their shape, files that are too short or too long. Left to us are headers larger than the network
can need, names that come twice, tensors that the network does not have, and the checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import CheckpointError
from secateur.files import atomic_path
from secateur.plan.plan import shown, strict_json
from secateur.surgery.forms import Form, form_of, misfits

DIGEST = "secateur_sha256"
ARCHIVES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zip, pickle


class Entry(NamedTuple):
    """A tensor in a file: its form, and where its data lie."""

    form: Form
    begin: int
    end: int


# -- writing ----------------------------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a checksum, atomically; equal content makes equal bytes.

    Raises:
        CheckpointError: a tensor is of a type that such files can't hold.
    """
    for name, tensor in tensors.items():
        if form_of(tensor).dtype == str(tensor.dtype):
            raise CheckpointError(f"{path}: {name} is of type {tensor.dtype}, which safetensors files can't hold")
    tensors = _apart(tensors)
    with atomic_path(path) as temporary:
        with disk_errors(path):
            save_file(tensors, temporary, {**metadata, DIGEST: "0" * 64})
        _seal(temporary, tensors)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what the safetensors library says of a disk, "I/O error: ... (os error 28)", into that OSError."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(f"{path}: can't be written ({error})") from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _seal(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Put the checksum into a file's header, and its metadata in order: the library writes them in any (its issue 584).

    The header stays as long as it is: the library writes JSON without spaces, too, and escapes the same characters.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__")
        metadata[DIGEST] = _digest(metadata, _entries(path, header), tensors.__getitem__)
        sealed = {"__metadata__": dict(sorted(metadata.items())), **header}
        file.seek(8)
        file.write(json.dumps(sealed, separators=(",", ":"), ensure_ascii=False).encode().ljust(length))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as the library takes them: contiguous, on the CPU, no two in the same memory."""
    found, memory = {}, set[int]()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        where = own.untyped_storage().data_ptr()
        found[name] = own.clone() if where in memory else own
        memory.add(where)
    return found


def _digest(metadata: Mapping[str, str], entries: Mapping[str, Entry], tensor: Callable[[str], Tensor]) -> str:
    """SHA-256 of the plan, the list of tensors and their data. Other metadata are other programs' business."""
    digest = hashlib.sha256(json.dumps([metadata.get("plan"), entries], sort_keys=True).encode())
    for name in sorted(entries, key=lambda name: entries[name][1:]):
        digest.update(tensor(name).reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# -- reading ----------------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path, tensors: Mapping[str, Tensor]) -> Iterator[TensorFile]:
    """A safetensors file that should hold some or all of a network's tensors.

    Raises:
        CheckpointError: there is none, it can't be read, what it says of its content is not to be believed, or it was
            changed meanwhile.
    """
    try:
        if not path.is_file():  # a pipe or a device could keep us waiting for ever
            what = "a folder" if path.is_dir() else "no such file"
            raise CheckpointError(f"{path}: {what}; a safetensors file was expected")
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            header = _header(path, file, _longest_header(tensors))
        # read, not mapped into memory: of a mapped file that another program cuts short, the interpreter dies
        with safe_open(path, framework="pt", backend="pread") as content:
            _check_unchanged(path, before)
            yield TensorFile(path, header, content)
        _check_unchanged(path, before)
    except SafetensorError as error:
        raise _damaged(path, shown(error, 300)) from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from error


def _longest_header(tensors: Mapping[str, Tensor]) -> int:
    """What lists all tensors and a plan that removes nearly everything, generously: parsing takes many times it."""
    of_tensors = sum(5 * len(json.dumps(name)) + 512 + 12 * sum(t.shape) for name, t in tensors.items())
    return 2**17 + of_tensors


def _header(path: Path, file: BinaryIO, longest: int) -> Any:
    """What a file says of itself, before the library, which parses 100 MB and of two equal names takes the last."""
    magic = file.read(8)
    length = int.from_bytes(magic, "little")
    if length > longest and magic.startswith(ARCHIVES):
        raise CheckpointError(
            f"{path}: no safetensors file but an archive as torch.save writes it, which could run code and is "
            "never opened; have its tensors saved as safetensors"
        )
    if length > longest:
        raise _damaged(path, f"its header would take {length:,} bytes, this network's at most {longest:,}")
    try:
        return strict_json(file.read(length))
    except ValueError as error:
        raise _damaged(path, f"in its header: {error}") from error


def _check_unchanged(path: Path, before: os.stat_result) -> None:
    now = path.stat()
    if any(getattr(now, what) != getattr(before, what) for what in ("st_ino", "st_size", "st_mtime_ns")):
        raise CheckpointError(f"{path}: it was changed while it was read; read it again")


class TensorFile:
    """An open safetensors file that the library found in order; of its tensors nothing was read yet.

    Attributes:
        metadata: texts beside the tensors.
        entries: the tensors' forms and places.
    """

    def __init__(self, path: Path, header: dict[str, Any], content: Any) -> None:
        self.path = path
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.entries = _entries(path, header)
        self._content = content

    def check(self, expected: Mapping[str, Form], owner: str) -> None:
        """Compare the file with what it should hold: names, types and shapes, and the checksum if there is one.

        Raises:
            CheckpointError: it is damaged or belongs to another network; all names that do not fit are told.
        """
        problems = misfits(expected, {name: entry.form for name, entry in self.entries.items()})
        if problems:
            raise CheckpointError(
                f"{self.path} does not belong to this {owner}; {problems}. Was it made from another network, width, "
                "number of classes or type, or damaged since?"
            )
        if DIGEST in self.metadata:  # not in files of earlier releases and other programs
            if _digest(self.metadata, self.entries, self._content.get_tensor) != self.metadata[DIGEST]:
                raise _damaged(self.path, "its content does not match its checksum")

    def tensor(self, name: str) -> Tensor:
        """A tensor of a file that was checked."""
        tensor: Tensor = self._content.get_tensor(name)
        # bytes other than 0 and 1 are no bools, and what torch does with them is undefined
        return tensor.view(torch.uint8).ne(0) if tensor.dtype == torch.bool else tensor


def _entries(path: Path, header: Mapping[str, Any]) -> dict[str, Entry]:
    """The tensors in a header that the library took; it lets pass that more is said of one than the checksum covers."""
    entries = {}
    for name, said in header.items():
        match said:
            case {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **others} if not others:
                entries[name] = Entry(Form(dtype, tuple(shape)), begin, end)
            case _:
                raise _damaged(path, f"not just the type, shape and place of {shown(name)}")
    return entries


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged, truncated or no safetensors file ({why}); fetch or write the file again")
