"""Reads the pickled batches of CIFAR without executing anything that they say.

A pickle is a program for a small stack machine, and may call any function of Python. CIFAR's batches, which Python 2
wrote, hold a dictionary of texts, lists of numbers and of texts, and one NumPy array of bytes. To build it they need
the instructions below and three names of NumPy. Here no name is ever looked up: it stays a text, the array is put
together from its parts, and a file that holds anything else is refused.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import DataError

RECONSTRUCT, ARRAY, TYPE = NAMES = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")
VALUES = {"BININT", "BININT1", "BININT2", "BINSTRING", "SHORT_BINSTRING"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class _Name:
    """A function or class that the file names."""

    name: str


@dataclass
class _Called:
    """What the file makes of calling one: its arguments and, later, its state."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


_MARK = object()


def read_pickled(path: Path) -> dict[str, Any]:
    """The dictionary in a pickled batch of CIFAR: texts (latin-1), lists, and arrays of uint8.

    Raises:
        DataError: the file can't be read, is damaged, or holds something that such a batch does not need.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"batch {path} can't be read: {error.strerror or error}") from error
    try:
        content = _run(data)
    except _Refused as error:
        raise DataError(
            f"batch {path} {error}, which a batch of CIFAR does not need; pickled files may run programs, so this one "
            "is not read. Take the files of the official archive, or its binary version"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"batch {path} is damaged ({error}); copy or download it again") from error
    if not isinstance(content, dict):
        raise DataError(f"batch {path} holds no dictionary; expected a batch of CIFAR's python version")
    return {key: _array(value, path) if isinstance(value, _Called) else value for key, value in content.items()}


class _Refused(Exception):
    """An instruction or a name that is not needed."""


def _run(data: bytes) -> Any:
    """What the pickle's instructions leave on the stack."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        at = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    argument: Any
    for instruction, argument, _ in pickletools.genops(data):
        kind = instruction.name
        if kind in VALUES:
            stack.append(argument)
        elif kind in CONSTANTS:
            stack.append(CONSTANTS[kind])
        elif kind in TUPLES:
            count = TUPLES[kind]
            items = stack[len(stack) - count :]
            del stack[len(stack) - count :]
            stack.append(tuple(items))
        elif kind == "MARK":
            stack.append(_MARK)
        elif kind == "TUPLE":
            stack.append(tuple(since_mark()))
        elif kind == "EMPTY_LIST":
            stack.append([])
        elif kind == "EMPTY_DICT":
            stack.append({})
        elif kind == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif kind == "APPENDS":
            values = since_mark()
            stack[-1].extend(values)
        elif kind == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif kind == "SETITEMS":
            items = since_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif kind in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif kind in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif kind == "GLOBAL":
            if argument not in NAMES:
                raise _Refused(f"names {argument.replace(' ', '.')}")
            stack.append(_Name(argument))
        elif kind == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            stack.append(_Called(called.name, arguments))
        elif kind == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif kind == "STOP":
            return stack.pop()
        elif kind != "PROTO":
            raise _Refused(f"holds the instruction {kind}")
    raise ValueError("no end")


def _array(called: _Called, path: Path) -> np.ndarray:
    """The array of bytes that `_reconstruct(ndarray, (0,), 'b')` with a state means."""
    try:
        _, shape, kind, by_columns, raw = called.state
        right = called.name == RECONSTRUCT and kind.name == TYPE and kind.arguments[0] in ("u1", "|u1")
        array = np.frombuffer(raw.encode("latin-1"), np.uint8).reshape(shape, order="F" if by_columns else "C")
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"batch {path} holds an array that can't be read: {error}") from error
    if not right:
        raise DataError(f"batch {path} holds an array of another type; expected 8-bit numbers")
    return array
