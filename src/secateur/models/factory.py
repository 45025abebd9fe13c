"""Finds a user's own network: `package.module:factory` or `path/to/file.py:factory`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from torch import nn

from secateur.errors import ModelError, nearest


def load_factory(name: str) -> Callable[..., nn.Module]:
    """The callable that `name` stands for.

    Raises:
        ModelError: the module or file can't be imported, or has no such callable.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise ModelError(f"network {name!r}: expected 'package.module:factory' or 'path/to/file.py:factory'")
    if where.endswith(".py"):
        path = Path(where).expanduser().resolve()
        if not path.is_file():
            raise ModelError(f"network {name!r}: there is no file {path}")
        module = _file_module(name, path, path.stat().st_mtime_ns)
    else:
        module = _named_module(name, where)
    factory = getattr(module, attribute, None)
    if factory is None:
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = f"; {nearest(attribute, callables)}" if callables else ", nor any other callable"
        raise ModelError(f"network {name!r}: {where} has no {attribute!r}{hint}")
    if isinstance(factory, nn.Module):
        raise ModelError(f"network {name!r}: {attribute} is a network already; name what makes one")
    if not callable(factory):
        raise ModelError(
            f"network {name!r}: {attribute} is a {type(factory).__name__}; expected a function or class that makes one"
        )
    return factory


def _named_module(name: str, module_name: str) -> ModuleType:
    with _importable(Path.cwd()):
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
                raise ModelError(
                    f"network {name!r}: no module {module_name!r} is installed, nor is it in {Path.cwd()}"
                ) from error
            raise ModelError(f"network {name!r}: importing {module_name} failed: {error}") from error
        except Exception as error:
            raise ModelError(
                f"network {name!r}: importing {module_name} failed: {type(error).__name__}: {error}"
            ) from error


@functools.cache
def _file_module(name: str, path: Path, modified_ns: int) -> ModuleType:
    """The module made of one file; executed again only when the file has changed: its classes stay the same objects."""
    module_name = f"secateur_user_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up by name
    with _importable(path.parent):
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ModelError(f"network {name!r}: running {path} failed: {type(error).__name__}: {error}") from error
    return module


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the imported code may have removed it
            sys.path.remove(str(folder))
