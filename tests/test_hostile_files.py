"""Files from strangers: whatever is in them, they are refused by name or loaded right, and nothing else happens."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_as_numpy
from safetensors.torch import save_file
from torch import nn

import secateur
from secateur.errors import CheckpointError, PlanError
from secateur.surgery.storage import DIGEST, form_of, opened, write_tensors
from secateur.training.weights import load_weights, save_weights


class Mini(nn.Module):
    """Two convolutions with a batch norm between them; 4 channels of which 2 go."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1)
        self.depth = 5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.bn(self.a(x)))


def mini(seed: int = 7) -> Mini:
    torch.manual_seed(seed)
    return Mini()


EXAMPLE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
RESULT = secateur.prune(mini(), EXAMPLE, method="l1", pruning_ratio=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `pruned`, written by save, and `parent`, written by save_weights."""
    folder = tmp_path_factory.mktemp("hostile")
    secateur.save(folder / "pruned", RESULT.model, RESULT.plan)
    save_weights(folder / "parent", mini())
    return folder


@pytest.fixture(scope="module")
def pruned(folder: Path) -> bytes:
    return (folder / "pruned").read_bytes()


@pytest.fixture(scope="module")
def parent(folder: Path) -> bytes:
    return (folder / "parent").read_bytes()


def snapshot(model: nn.Module) -> Any:
    tensors = {name: (id(t), t.tolist(), t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()}
    plain = {
        name: {k: v for k, v in vars(module).items() if isinstance(v, (int, float, tuple))}
        for name, module in model.named_modules()
    }
    return tensors, plain


def refused(path: Path, words: str, load: Callable[[Path, nn.Module], Any] = secateur.load) -> None:
    """Loading ends in time, with one printable line that names the file, without much memory or any change."""
    model = mini(9)
    before, begin = snapshot(model), time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=words) as caught:
            load(path, model)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message and message.isprintable() and len(message) < 1500
    assert time.monotonic() - begin < 5
    assert snapshot(model) == before


LIBRARY = "damaged, truncated or no safetensors file"  # what the safetensors library refuses by itself


def refused_by_the_library(path: Path) -> None:
    with pytest.raises(SafetensorError), safe_open(path, framework="pt"):
        pass


def parent_load(path: Path, model: nn.Module) -> None:
    load_weights(model, path)


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def twice(data: bytes, name: str) -> bytes:
    """The same said of something once more, at the end of the header."""
    header, data = split(data)
    return joined(f"{json.dumps(header)[:-1]}, {json.dumps({name: header[name]})[1:]}".encode(), data)


# -- files that are no safetensors file, for both ways to load --------------------------------------------------------

RAW: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda good: b"", "in its header"),
    "seven bytes": (lambda good: good[:7], "in its header"),
    "header length alone": (lambda good: good[:8], "in its header"),
    "header cut": (lambda good: good[:100], "in its header"),
    "data cut": (lambda good: good[:-1], LIBRARY),
    "no data": (lambda good: good[: -len(split(good)[1])], LIBRARY),
    "data twice": (lambda good: good + split(good)[1], LIBRARY),
    "something behind": (lambda good: good + b"#!/bin/sh", LIBRARY),
    "header length zero": (lambda good: bytes(8) + good[8:], "in its header"),
    "header length one less": (lambda good: (int.from_bytes(good[:8], "little") - 9).to_bytes(8, "little") + good[8:],
                               "in its header"),
    "header length one more": (lambda good: (int.from_bytes(good[:8], "little") + 1).to_bytes(8, "little") + good[8:],
                               "in its header"),
    "header length negative": (lambda good: b"\xff" * 8 + good[8:], "header would take 18,446,744,073,709,551,615"),
    "header of a gigabyte": (lambda good: (2**30).to_bytes(8, "little") + good[8:], "would take 1,073,741,824 bytes"),
    "header really too long": (lambda good: joined(b"{" + b" " * 2**20 + b"}", b""), "would take 1,048,578 bytes"),
    "text": (lambda good: b"Dear user, there are no weights in this file.\n" * 9, "no safetensors file"),
    "web page": (lambda good: b"<!doctype html><html><body>404</body></html>", "no safetensors file"),
    "zeros": (lambda good: bytes(4096), "no safetensors file"),
    "deep lists": (lambda good: joined(b"[" * 10**5, b""), "nested too deeply"),
    "deep objects": (lambda good: joined(b'{"a":' * 20000, b""), "nested too deeply"),
    "deep tensor": (lambda good: joined(b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", b""), LIBRARY),
    "many lists": (lambda good: joined(b"[" + b"[]," * 40000 + b"[]]", b""), LIBRARY),
    "many objects": (lambda good: joined(b"[" + b"{}," * 40000 + b"{}]", b""), LIBRARY),
    "many tensors": (lambda good: joined({f"t{i}": 1 for i in range(9000)}, b""), LIBRARY),
    "header not UTF-8": (lambda good: joined(b'{"\xff\xfe": 1}', b""), "utf-8"),
    "header in UTF-16": (lambda good: joined('{"a": 1}'.encode("utf-16"), b""), "no safetensors file"),
    "header a list": (lambda good: joined([], b""), LIBRARY),
    "header a number": (lambda good: joined(b"7", b""), LIBRARY),
    "header NaN": (lambda good: joined(b"NaN", b""), "not NaN"),
    "header a huge number": (lambda good: joined(b"9" * 10**5, b""), "whole number was expected, not 999"),
    "tensor twice": (lambda good: good.replace(b'"a.bias"', b'"b.bias"', 1), "b.bias comes twice"),
    "tensor twice, the same": (lambda good: twice(good, "b.bias"), "b.bias comes twice"),
    "metadata twice": (lambda good: twice(good, "__metadata__"), "__metadata__ comes twice"),
    "text twice": (lambda good: joined(b'{"__metadata__":{"plan":"","plan":""}}', b""), "plan comes twice"),
    "no tensors": (lambda good: joined({"__metadata__": split(good)[0]["__metadata__"]}, b""), "missing in the file"),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_what_is_no_safetensors_file_is_refused(name: str, tmp_path: Path, pruned: bytes, parent: bytes) -> None:
    change, words = RAW[name]
    (tmp_path / "bad").write_bytes(change(parent))
    refused(tmp_path / "bad", words, parent_load)
    (tmp_path / "bad").write_bytes(change(pruned))
    refused(tmp_path / "bad", "without a plan|" + words)
    if words == LIBRARY:
        refused_by_the_library(tmp_path / "bad")


# -- headers that lie, for both ways to load --------------------------------------------------------------------------


def told(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Other things said of a.weight."""
    return lambda header: header["a.weight"].update(changes)


def moved(by: int, name: str = "a.weight") -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[name]["data_offsets"] = [at + by for at in header[name]["data_offsets"]]

    return change


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda header: header.update({name: header.pop("a.weight")})


HEADERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing tensor": (lambda header: header.pop("bn.weight"), LIBRARY),
    "extra tensor": (lambda header: header.update(virus=header["a.bias"]), LIBRARY),
    "path as a name": (renamed("../../etc/passwd"), r"not in the network: \.\./\.\./etc/passwd"),
    "orders to a terminal": (renamed("\x1b[2J\n\r\0"), r"not in the network: '\\x1b\[2J"),
    "half a character": (renamed("\ud800"), LIBRARY),
    "right-to-left name": (renamed("\u202egnp"), r"not in the network: '\\u202egnp'"),
    "endless name": (renamed("a" * 10**5), "not in the network: aaaa"),
    "no name": (renamed(""), "not in the network: "),
    "shape of terabytes": (told(shape=[10**6, 10**6]), LIBRARY),
    "shape of terabytes and its data": (told(shape=[10**12], data_offsets=[0, 4 * 10**12]), LIBRARY),
    "shape beyond 64 bits": (told(shape=[10**25]), "whole number was expected, not 1000"),
    "shape that overflows to the right size": (told(shape=[2**32, 2**32, 3]), LIBRARY),
    "empty shape of much": (told(shape=[0, 10**17]), LIBRARY),
    "shape of many dimensions": (told(shape=[1] * 30000), LIBRARY),
    "negative shape": (told(shape=[-4, -3, 1, 1]), LIBRARY),
    "fractional shape": (told(shape=[4.0, 3, 1, 1]), "whole number was expected, not 4.0"),
    "infinite shape": (told(shape=[float("inf")]), "not Infinity"),
    "boolean shape": (told(shape=[True, True]), LIBRARY),
    "shape of texts": (told(shape=["4", "3"]), LIBRARY),
    "shape a text": (told(shape="43"), LIBRARY),
    "shape an object": (told(shape={"4": 3}), LIBRARY),
    "no shape": (lambda header: header["a.weight"].pop("shape"), LIBRARY),
    "half precision": (told(dtype="F16"), LIBRARY),
    "integers": (told(dtype="I32"), "of another type: a.weight I32 instead of F32"),
    "unknown type": (told(dtype="PICKLE"), LIBRARY),
    "type of Python": (told(dtype="torch.float32"), LIBRARY),
    "type a list": (told(dtype=["F32"]), LIBRARY),
    "tensor a list": (lambda header: header.update({"a.weight": []}), LIBRARY),
    "tensor null": (lambda header: header.update({"a.weight": None}), LIBRARY),
    "more said of a tensor": (told(hook="import os"), "not just the type, shape and place of a.weight"),
    "data before the file": (moved(-10**6), LIBRARY),
    "data behind the file": (moved(10**9), LIBRARY),
    "data at the end of all": (moved(10**17), LIBRARY),
    "overlapping data": (moved(4), LIBRARY),
    "shared data": (
        lambda header: header["bn.bias"].update(data_offsets=header["bn.weight"]["data_offsets"]), LIBRARY
    ),
    "data backwards": (lambda header: header["a.weight"]["data_offsets"].reverse(), LIBRARY),
    "data too short": (told(data_offsets=[0, 4]), LIBRARY),
    "three places": (told(data_offsets=[0, 4, 8]), LIBRARY),
    "places as booleans": (told(data_offsets=[False, True]), LIBRARY),
    "metadata a list": (lambda header: header.update(__metadata__=[]), LIBRARY),
    "metadata of numbers": (lambda header: header["__metadata__"].update(secateur=1), LIBRARY),
    "metadata of objects": (lambda header: header["__metadata__"].update(plan={"removed": {}}), LIBRARY),
    "checksum of another file": (lambda header: header["__metadata__"].update({DIGEST: "0" * 64}), "checksum"),
    "checksum that is none": (lambda header: header["__metadata__"].update({DIGEST: ""}), "checksum"),
}  # fmt: skip


@pytest.mark.parametrize("load", [secateur.load, parent_load], ids=["load", "load_weights"])
@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie_are_refused(
    name: str, load: Callable[[Path, nn.Module], Any], tmp_path: Path, pruned: bytes, parent: bytes
) -> None:
    change, words = HEADERS[name]
    header, data = split(pruned if load is secateur.load else parent)
    header["__metadata__"].pop(DIGEST)  # as a stranger would
    change(header)
    (tmp_path / "bad").write_bytes(joined(header, data))
    refused(tmp_path / "bad", words, load)
    if words == LIBRARY:
        refused_by_the_library(tmp_path / "bad")


OTHERS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "missing tensor": (lambda tensors: tensors.pop("bn.weight"), "missing in the file: bn.weight"),
    "extra tensor": (lambda tensors: tensors.update(virus=torch.ones(2)), "not in the network: virus"),
    "half precision": (
        lambda tensors: tensors.update({"b.bias": torch.ones(2).half()}), "of another type: b.bias F16 instead of F32"
    ),
    "another shape": (lambda tensors: tensors.update({"b.bias": torch.ones(3)}), r"of another shape: b.bias \(3,\)"),
    "no shape": (lambda tensors: tensors.update({"b.bias": torch.ones(())}), r"of another shape: b.bias \(\)"),
    "empty shape of much": (lambda tensors: tensors.update({"b.bias": torch.ones(0, 10**15)}), "of another shape"),
    "shape of many dimensions": (lambda tensors: tensors.update({"b.bias": torch.ones([1] * 60)}), "of another shape"),
    "nothing": (lambda tensors: tensors.clear(), "missing in the file: .* and 4 more"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_tensors_of_other_networks_are_refused(name: str, tmp_path: Path) -> None:
    change, words = OTHERS[name]
    metadata = {"secateur": "1", "plan": RESULT.plan.to_json()}
    for network, load in ((RESULT.model, secateur.load), (mini(), parent_load)):
        tensors = dict(network.state_dict())
        change(tensors)
        save_file(tensors, tmp_path / "bad", metadata)
        refused(tmp_path / "bad", words, load)


# -- plans ------------------------------------------------------------------------------------------------------------


def removing(*indices: Any, name: str = "a.weight", dim: str = "0") -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan["removed"][name].update({dim: list(indices)})


def instead(text: str | bytes) -> Callable[[dict[str, Any]], Any]:
    return lambda plan: text


# what Plan.from_json refuses by itself
TEXTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no text": (instead(""), "not JSON"),
    "prose": (instead("remove everything"), "not JSON"),
    "code": (instead("__import__('os').system('true')"), "not JSON"),
    "YAML that makes objects": (instead("!!python/object/apply:os.system ['true']"), "not JSON"),
    "null": (instead("null"), "object with the key 'removed'"),
    "empty object": (instead("{}"), "object with the key 'removed'"),
    "deep lists": (instead('{"removed": ' + "[" * 10**5), "nested too deeply"),
    "deep objects": (instead('{"removed": ' + '{"a":' * 15000), "nested too deeply"),
    "key twice": (instead('{"removed": {}, "removed": {"a.weight": {"0": [1]}}}'), "removed comes twice"),
    "tensor twice": (instead('{"removed": {"a": {"0": [1]}, "a": {"0": [2]}}}'), "a comes twice"),
    "dimension twice": (instead('{"removed": {"a": {"0": [1], "0": [2]}}}'), "0 comes twice"),
    "dimension twice in two spellings": (removing(1, dim="00"), "a dimension was expected, not 00"),
    "dimension negative": (removing(1, dim="-1"), "a dimension was expected, not -1"),
    "dimension huge": (removing(1, dim="9" * 50), "a dimension was expected, not 999"),
    "dimension in other digits": (removing(1, dim="\u0663"), "a dimension was expected"),
    "dimension that is none": (removing(1, dim="9"), "4 dimensions"),
    "index twice": (removing(1, 1), "distinct, sorted"),
    "indices unsorted": (removing(2, 1), "distinct, sorted"),
    "index negative": (removing(-1, 1), "not negative"),
    "index out of range": (removing(1, 4), "index 4 is beyond its size 4"),
    "index beyond 64 bits": (removing(10**30), "whole number was expected, not 1000"),
    "index of a million digits": (instead('{"removed": {"a": {"0": [' + "9" * 10**5 + "]}}}"), "not 9999"),
    "index a fraction": (removing(1.5, 2), "whole number was expected, not 1.5"),
    "index a whole fraction": (removing(1.0, 2), "whole number was expected, not 1.0"),
    "index NaN": (removing(float("nan")), "not NaN"),
    "index minus infinity": (removing(float("-inf")), "not -Infinity"),
    "index true": (removing(True, 2), "whole number was expected, not True"),
    "index a text": (removing("1", "2"), "whole number was expected, not 1"),
    "index null": (removing(None), "whole number was expected, not None"),
    "index a list": (removing([1], [2]), "whole number was expected, not a list"),
    "indices a text": (lambda plan: plan["removed"]["a.weight"].update({"0": "12"}), "list of whole numbers"),
    "indices an object": (lambda plan: plan["removed"]["a.weight"].update({"0": {"1": 2}}), "list of whole numbers"),
    "all channels": (removing(0, 1, 2, 3), "removes all 4 indices"),
    "removed a list": (lambda plan: plan.update(removed=["a.weight"]), "removed: an object was expected"),
    "dimensions a list": (lambda plan: plan["removed"].update({"a.weight": [1]}), "a.weight: an object was expected"),
    "shapes a list": (lambda plan: plan.update(shapes=[4]), "shapes: an object was expected"),
    "shape a number": (lambda plan: plan["shapes"].update({"a.weight": 4}), "the shape of a.weight: a list"),
    "shape negative": (lambda plan: plan["shapes"].update({"b.bias": [-2]}), r"b.bias: the shape \(-2,\)"),
    "numbers null": (lambda plan: plan.update(numbers=None), "numbers: an object was expected"),
    "number a text": (lambda plan: plan["numbers"]["a"].update(out_channels="2"), "numbers of a: a whole number"),
    "number true": (lambda plan: plan["numbers"]["a"].update(out_channels=True), "numbers of a: a whole number"),
    "version of tomorrow": (lambda plan: plan.update(secateur_plan=2), "version 2; this release reads version 1"),
    "version true": (lambda plan: plan.update(secateur_plan=True), "version True"),
    "version a text": (lambda plan: plan.update(secateur_plan="1\n"), "version '1"),
    "key of tomorrow": (lambda plan: plan.update(execute="rm"), "the key execute; known: numbers, removed, shapes"),
}  # fmt: skip

# what is wrong for this network, or with these tensors
MISFITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "path as a name": (lambda plan: plan["removed"].update({"../../../etc/passwd": {"0": [1]}}), "tensor: \\.\\./"),
    "attribute as a name": (lambda plan: plan["removed"].update({"a.__class__": {"0": [1]}}), "tensor: a.__class__"),
    "module as a name": (lambda plan: plan["removed"].update({"bn": {"0": [1]}}), "no such tensor: bn"),
    "typing error": (lambda plan: plan["removed"].update({"a.weihgt": {"0": [1]}}), "did you mean 'a.weight'"),
    "orders to a terminal": (lambda plan: plan["removed"].update({"\x1b[2J\0": {"0": [1]}}), r"tensor: '\\x1b\[2J"),
    "half a character": (lambda plan: plan["removed"].update({"\udfff": {"0": [1]}}), r"no such tensor: '\\udfff'"),
    "endless name": (lambda plan: plan["removed"].update({"a" * 10**5: {"0": [1]}}), "no such tensor: aaaa"),
    "many names": (
        lambda plan: plan["removed"].update({f"a.weight{i}": {"0": [1]} for i in range(3000)}), "and 2995 more"
    ),
    "shape of nothing": (lambda plan: plan["shapes"].update({"ghost": [4]}), "no such tensor: ghost"),
    "shape of terabytes": (
        lambda plan: plan["shapes"].update({"a.weight": [10**15, 3, 1, 1]}), "the plan was made for .10000000000"
    ),
    "shape of a wider network": (
        lambda plan: plan["shapes"].update({"a.weight": [8, 3, 1, 1]}), "the plan was made for .8, 3"
    ),
    "shape of many dimensions": (
        lambda plan: plan["shapes"].update({"a.weight": [4] * 20000}), "the plan was made for .4, 4"
    ),
    "no shapes": (lambda plan: plan.pop("shapes"), "the plan was made for None"),
    "kernel cut": (removing(0, name="a.bias"), "of another shape: a.bias|a.bias would be"),
    "one side of a coupling only": (lambda plan: plan["removed"].pop("bn.weight"), "bn.weight would be of shape"),
    "no reader of the channels": (
        lambda plan: (plan["removed"].pop("b.weight"), plan["numbers"].pop("b")), "of another shape: b.weight"
    ),
    "another number of channels": (removing(1), "a.weight would be of shape .3, 3"),
    "nothing removed": (instead('{"removed": {}}'), "of another shape"),
    "no numbers": (lambda plan: plan.pop("numbers"), "would be of shape .2, 3, 1, 1., but"),
    "numbers that lie": (lambda plan: plan["numbers"]["a"].update(out_channels=3), "a.out_channels: 4 in"),
    "number that grows": (lambda plan: plan["numbers"]["a"].update(out_channels=10**15), "a.out_channels: 4 .* become"),
    "number zero": (lambda plan: plan["numbers"]["a"].update(groups=0), "a.groups: 1 in this network can't become 0"),
    "number negative": (lambda plan: plan["numbers"]["a"].update(groups=-1), "a.groups: 1 .* can't become -1"),
    "number of nowhere": (lambda plan: plan["numbers"].update(ghost={"groups": 1}), "ghost.groups: None"),
    "training switched": (lambda plan: plan["numbers"].update({"": {"training": 1}}), "training: True"),
    "statistics switched": (lambda plan: plan["numbers"]["bn"].update(track_running_stats=1), "bn.track_running"),
    "the network's own number": (lambda plan: plan["numbers"].update({"": {"depth": 4}}), r"\.depth: 5 in this"),
    "class exchanged": (lambda plan: plan["numbers"].update({"": {"__class__": 1}}), "__class__: None"),
    "method exchanged": (lambda plan: plan["numbers"].update({"a": {"forward": 1}}), "a.forward: None"),
    "orders in a number": (lambda plan: plan["numbers"].update({"\x1b[2J": {"groups": 1}}), r"'\\x1b\[2J.groups'"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*TEXTS, *(f"misfit: {name}" for name in MISFITS)])
def test_plans_of_strangers_are_refused(name: str, tmp_path: Path, pruned: bytes) -> None:
    change, words = {**TEXTS, **{f"misfit: {name}": case for name, case in MISFITS.items()}}[name]
    header, data = split(pruned)
    metadata = header["__metadata__"]
    metadata.pop(DIGEST)
    plan = json.loads(metadata["plan"])
    text = change(plan)
    metadata["plan"] = text if isinstance(text, str) else json.dumps(plan)
    (tmp_path / "bad").write_bytes(joined(header, data))
    refused(tmp_path / "bad", words)
    if name in TEXTS:
        with pytest.raises(PlanError, match=words) as caught:
            secateur.Plan.from_json(metadata["plan"])
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b'{"removed": {"\xe9": {}}}', '{"removed": {}}'.encode("utf-16")])
def test_plans_that_are_no_utf_8_are_refused(text: bytes) -> None:
    with pytest.raises(PlanError, match="utf-8"):
        secateur.Plan.from_json(text)


def test_plans_without_end_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(PlanError, match="16,777,217 characters"):
        secateur.Plan.from_json("[" * (2**24 + 1))


def test_an_inconsistent_layer_is_refused_even_if_the_tensors_follow_the_plan(tmp_path: Path, pruned: bytes) -> None:
    plan = json.loads(split(pruned)[0]["__metadata__"]["plan"])
    plan["removed"].pop("bn.running_var")
    tensors = {**RESULT.model.state_dict(), "bn.running_var": torch.ones(4)}
    write_tensors(tmp_path / "bad", tensors, {"secateur": "1", "plan": json.dumps(plan)})
    refused(tmp_path / "bad", r"bn.running_var would be of shape \(4,\), but .* BatchNorm2d ask for \(2,\)")


# -- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "without a plan"),
        ({}, "without a plan"),
        ({"secateur": "1"}, "without a plan"),
        ({"plan": "{}"}, "format None; this release reads format 1"),
        ({"plan": "{}", "secateur": "2"}, "format 2; this release reads format 1"),
        ({"plan": "{}", "secateur": "1.0"}, "format 1.0"),
        ({"plan": "{}", "secateur": "\x1b[2J" * 999}, r"format '\\x1b\[2J"),
        ({"plan": "{}", "secateur": ""}, "format ;"),
        ({"format": "pt", "plan ": "{}"}, "without a plan"),
    ],
)
def test_metadata_of_others_are_refused(metadata: dict[str, str] | None, words: str, tmp_path: Path) -> None:
    save_file(RESULT.model.state_dict(), tmp_path / "bad", metadata)
    refused(tmp_path / "bad", words)


# -- what is no file --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="pipes have no names")
@pytest.mark.parametrize("load", [secateur.load, parent_load], ids=["load", "load_weights"])
def test_what_is_no_file_is_refused(load: Callable[[Path, nn.Module], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path, "a folder; a safetensors file was expected", load)
    refused(tmp_path / "nowhere", "no such file", load)
    refused(tmp_path / "pipe", "no such file", load)
    refused(tmp_path / "loop", "no such file|can't be read", load)
    refused(tmp_path / ("n" * 300), "can't be read|no such file", load)
    refused(Path("/dev/zero"), "no such file", load)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, pruned: bytes) -> None:
    (tmp_path / "bad").write_bytes(pruned)
    (tmp_path / "bad").chmod(0)
    refused(tmp_path / "bad", "can't be read")


CHANGES: dict[str, tuple[Callable[[Path, bytes], Any], str]] = {
    "cut short": (lambda path, good: os.truncate(path, len(good) - 20), LIBRARY),
    "written to": (lambda path, good: path.write_bytes(good), "changed while it was read"),
    "longer": (lambda path, good: path.write_bytes(good + b"x"), "changed while it was read"),
    "exchanged": (lambda path, good: _written(path.parent, good).replace(path), "changed while it was read"),
    "removed": (lambda path, good: path.unlink(), "can't be read"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_refused(name: str, tmp_path: Path, parent: bytes) -> None:
    change, words = CHANGES[name]
    bad, expected = tmp_path / "bad", mini().state_dict()
    bad.write_bytes(parent)
    os.utime(bad, (1, 1))
    with pytest.raises(CheckpointError, match=words), opened(bad, expected) as file:
        file.check({name: form_of(tensor) for name, tensor in expected.items()}, "Mini")
        change(bad, parent)
        assert [file.tensor(name) for name in expected]


# -- nothing is executed ----------------------------------------------------------------------------------------------


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_nothing_is_executed(tmp_path: Path, pruned: bytes) -> None:
    mark, bad = tmp_path / "executed", tmp_path / "bad"
    payload = Payload(mark)
    pickle.loads(pickle.dumps(payload))
    assert mark.is_dir()  # the payload works
    mark.rmdir()
    header, data = split(pruned)
    files = {f"pickle {protocol}": pickle.dumps(payload, protocol) for protocol in range(6)}
    for zipped in (True, False):
        torch.save({"a.weight": payload}, bad, _use_new_zipfile_serialization=zipped)
        files[f"torch.save {zipped}"] = bad.read_bytes()
    files["in the data"] = joined(header, pickle.dumps(payload).ljust(len(data), b"\0")[: len(data)])
    files["behind the data"] = pruned + pickle.dumps(payload)
    files["in the header"] = joined(pickle.dumps(payload), data)
    header["__metadata__"]["plan"] = pickle.dumps(payload, 0).decode("latin-1")
    files["as the plan"] = joined(header, data)
    for name, content in files.items():
        bad.write_bytes(content)
        words = "never opened" if name.startswith("torch") or name in ("pickle 2", "pickle 5") else str(bad)
        refused(bad, words)
        refused(bad, words, parent_load)
        assert not mark.exists(), name


# -- flips and truncations: refused, or of no effect ------------------------------------------------------------------


def survives(path: Path) -> None:
    """A damaged file is refused, or the damage has no effect."""
    try:
        found = secateur.load(path, mini(9))
    except CheckpointError as error:
        assert str(path) in str(error) and str(error).isprintable()
        return
    same = {name: torch.equal(tensor, RESULT.model.state_dict()[name]) for name, tensor in found.state_dict().items()}
    assert all(same.values()) and len(same) == len(RESULT.model.state_dict())
    assert torch.equal(found.eval()(EXAMPLE), RESULT.model.eval()(EXAMPLE))


def test_truncations_are_refused(folder: Path, pruned: bytes) -> None:
    fresh = mini(9)
    for length in range(0, len(pruned), 11):
        (folder / "bad").write_bytes(pruned[:length])
        with pytest.raises(CheckpointError, match="damaged, truncated or no safetensors file"):
            secateur.load(folder / "bad", fresh)


def test_flips_in_the_data_and_in_the_header_length_are_refused(folder: Path, pruned: bytes, parent: bytes) -> None:
    fresh = mini(9)
    for good, load in ((pruned, secateur.load), (parent, parent_load)):
        start = 8 * (len(good) - len(split(good)[1]))
        for bit in [*range(64), *range(start, 8 * len(good), 25)]:
            (folder / "bad").write_bytes(flipped(good, bit))
            with pytest.raises(CheckpointError):
                load(folder / "bad", fresh)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_flips_anywhere_are_refused_or_have_no_effect(data: st.DataObject, folder: Path, pruned: bytes) -> None:
    changed = pruned
    for bit in data.draw(st.lists(st.integers(0, 8 * len(pruned) - 1), min_size=1, max_size=3, unique=True)):
        changed = flipped(changed, bit)
    (folder / "bad").write_bytes(changed)
    survives(folder / "bad")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_pieces_of_a_file_are_refused(data: st.DataObject, folder: Path, pruned: bytes) -> None:
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(pruned))] * 2)))
    (folder / "bad").write_bytes(pruned[:begin] + data.draw(st.binary(max_size=20)) + pruned[end:])
    survives(folder / "bad")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([0, 1, 4, "a.weight", "0"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text() | st.sampled_from(["removed", "shapes", "numbers", "secateur_plan", "a.weight", "0", "bn"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(content=ANY_JSON)
def test_any_json_is_a_plan_or_refused(content: Any, folder: Path, pruned: bytes) -> None:
    try:
        secateur.Plan.from_json(json.dumps({"removed": {}, **content} if isinstance(content, dict) else content))
    except PlanError as error:
        assert str(error).isprintable()
    header, data = split(pruned)
    header["__metadata__"]["plan"] = json.dumps(content)
    (folder / "bad").write_bytes(joined(header, data))
    with pytest.raises(CheckpointError):
        secateur.load(folder / "bad", mini(9))


# -- good files -------------------------------------------------------------------------------------------------------


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


def test_files_of_earlier_versions_still_load(tmp_path: Path) -> None:
    metadata = {"secateur": "1", "plan": RESULT.plan.to_json()}
    save_file(RESULT.model.state_dict(), tmp_path / "old", metadata)
    save_file(mini().state_dict(), tmp_path / "parent")
    assert same(secateur.load(tmp_path / "old", mini(9)), RESULT.model)
    model = mini(9)
    load_weights(model, tmp_path / "parent")
    assert same(model, mini())


def test_files_of_other_layouts_with_our_checksum_still_load(tmp_path: Path) -> None:
    tensors, header, data = mini().state_dict(), {}, b""
    for name in reversed(tensors):
        raw = tensors[name].numpy().tobytes()
        dtype = "I64" if name == "bn.num_batches_tracked" else "F32"
        header[name] = {"dtype": dtype, "shape": [*tensors[name].shape], "data_offsets": [len(data), len(data + raw)]}
        data += raw
    listed = {name: [[e["dtype"], e["shape"]], *e["data_offsets"]] for name, e in header.items()}
    digest = hashlib.sha256(json.dumps([None, listed], sort_keys=True).encode() + data).hexdigest()
    (tmp_path / "parent").write_bytes(joined({"__metadata__": {DIGEST: digest}, **header}, data))
    model = mini(9)
    load_weights(model, tmp_path / "parent")
    assert same(model, mini())


def test_tensors_that_share_memory_or_are_strided_are_written_whole(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            memory = torch.randn(64, generator=torch.Generator().manual_seed(seed))
            for name, view in {
                "whole": memory, "part": memory[8:16], "strided": memory[::2], "turned": memory.view(8, 8).T,
                "one": memory[3], "last": memory.view(1, 2, 4, 8).contiguous(memory_format=torch.channels_last),
            }.items():  # fmt: skip
                self.register_buffer(name, view)

    save_weights(tmp_path / "views", Views(1))
    secateur.save(tmp_path / "saved", Views(1), secateur.Plan({}))
    with safe_open(tmp_path / "views", framework="pt") as file:
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in Views(1).state_dict().items())
    assert same(secateur.load(tmp_path / "saved", Views(2)), Views(1))


def test_other_programs_open_the_files(folder: Path) -> None:
    for name, model in (("pruned", RESULT.model), ("parent", mini())):
        found = load_as_numpy(folder / name)
        assert set(found) == set(model.state_dict())
        assert all(np.array_equal(found[key], tensor.numpy()) for key, tensor in model.state_dict().items())
        with safe_open(folder / name, framework="pt") as file:
            assert len(file.metadata()[DIGEST]) == 64
            assert all(torch.equal(file.get_tensor(key), tensor) for key, tensor in model.state_dict().items())


def test_metadata_that_other_programs_add_do_no_harm(tmp_path: Path, pruned: bytes) -> None:
    header, data = split(pruned)
    header["__metadata__"]["format"] = "pt"
    (tmp_path / "good").write_bytes(joined(dict(reversed(header.items())), data))
    assert same(secateur.load(tmp_path / "good", mini(9)), RESULT.model)


def test_equal_content_makes_equal_bytes(tmp_path: Path, pruned: bytes) -> None:
    plan = RESULT.plan
    shuffled = secateur.Plan(
        dict(reversed(plan.removed.items())), dict(reversed(plan.shapes.items())), dict(reversed(plan.numbers.items()))
    )
    secateur.save(tmp_path / "again", secateur.load(_written(tmp_path, pruned), mini(9)), shuffled)
    assert (tmp_path / "again").read_bytes() == pruned


def _written(folder: Path, data: bytes) -> Path:
    (folder / "pruned").write_bytes(data)
    return folder / "pruned"


class Odd(nn.Module):
    """Every type of tensor that a file can hold, scalars, empty ones, and a name that needs escaping."""

    TYPES = (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
        torch.bool,
    )  # fmt: skip

    def __init__(self, value: int = 0) -> None:
        super().__init__()
        for i, dtype in enumerate(self.TYPES):
            self.register_buffer(f'{i} "é\n', torch.full((3, 1), value).to(dtype))
        self.register_buffer("scalar", torch.tensor(float(value)))
        self.register_buffer("empty", torch.zeros(0, 3))


def test_all_types_and_names_survive(tmp_path: Path) -> None:
    plan = secateur.Plan({})
    secateur.save(tmp_path / "odd", Odd(1), plan)
    found, expected = secateur.load(tmp_path / "odd", Odd()).state_dict(), Odd(1).state_dict()
    assert all(t.dtype == expected[k].dtype and t.tolist() == expected[k].tolist() for k, t in found.items())
    with safe_open(tmp_path / "odd", framework="pt") as file:
        assert set(file.keys()) == set(expected)
    model = Odd()
    save_weights(tmp_path / "odd", Odd(1))
    load_weights(model, tmp_path / "odd")
    assert all(t.tolist() == expected[k].tolist() for k, t in model.state_dict().items())


def test_bools_are_bools(tmp_path: Path) -> None:
    class Mask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([True, False]))

    save_file(Mask().state_dict(), tmp_path / "mask")
    (tmp_path / "mask").write_bytes((tmp_path / "mask").read_bytes()[:-2] + b"\xfe\x00")
    model = Mask()
    load_weights(model, tmp_path / "mask")
    assert model.mask.view(torch.uint8).tolist() == [1, 0]


def test_a_type_that_files_can_not_hold_is_named(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("odd", torch.zeros(1, dtype=torch.complex128))
    with pytest.raises(CheckpointError, match=r"file: odd is of type torch.complex128"):
        secateur.save(tmp_path / "file", model, secateur.Plan({}))
    assert not any(tmp_path.iterdir())
