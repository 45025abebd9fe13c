"""Run a network once and write down every ATen operator that it calls.

The network runs on *meta* tensors (shapes without data), with its parameters and buffers swapped by
`torch.func.functional_call`, so the real network is neither computed nor touched, whatever Python its forward is made
of. Where a network needs real values (`.item()`, constants made on a device), the same recording is made on real
tensors.
"""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

from secateur.errors import ModelError
from secateur.graph.inside import distinct_modules, holders_of, inside_of, modules_of, state_of
from secateur.graph.keep import attributes_kept
from secateur.graph.meta import Answers, Mode, call

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"  # not torchvision beside it
_OURS = tuple(str(path) for path in Path(__file__).parents[1].iterdir() if path.name != "models")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor in a node's arguments: the number of its value in the capture."""

    value: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a network something happens.

    Attributes:
        operator: the ATen operator, "" where only the line is known.
        module: dotted name of the innermost module that was running, "" for the network itself.
        source: file:line of the calling code outside torch, "" if there is none.
    """

    operator: str
    module: str
    source: str

    @property
    def where(self) -> str:
        """The place without the operator, to stand behind other words."""
        return (f" in {self.module}" if self.module else "") + (f" ({self.source})" if self.source else "")

    def __str__(self) -> str:
        return f"{self.operator}{self.where}"


@dataclass(slots=True)
class Node:
    """One ATen operator as it was called."""

    op: str  # without namespace and overload: "convolution", "add_"
    target: Any  # the OpOverload itself
    args: tuple[Any, ...]  # tensors replaced by Ref
    kwargs: dict[str, Any]
    refs: tuple[Ref, ...]  # every tensor argument, in order, those inside lists included
    outputs: tuple[Ref | None, ...]
    module: str  # dotted name of the innermost module that was running
    source: str  # file:line of the calling code outside torch

    def inputs(self) -> Iterator[Ref]:
        """Every tensor argument, in order, those inside lists included."""
        return iter(self.refs)

    @property
    def place(self) -> Place:
        return Place(self.op, self.module, self.source)

    def __str__(self) -> str:
        return str(self.place)


@dataclass(slots=True)
class Capture:
    """What one run of a network did."""

    nodes: list[Node] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # by value
    names: dict[str, int] = field(default_factory=dict)  # parameter or buffer -> value
    calls: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)  # (module, values it returned), in time
    outputs: tuple[int, ...] = ()
    training: bool = False
    meta: bool = True  # on meta tensors, or on copies of the real ones


class _Recorder(Mode):
    def __init__(self, capture: Capture, modules: Mapping[int, str], known: Answers) -> None:
        super().__init__()
        self.known = known
        self.capture = capture
        self.modules = modules
        self.stack: list[str] = []
        self.refs: dict[int, Ref] = {}  # by id
        self.alive: list[Tensor] = []  # keeps ids unique while recording
        self.lines = _Lines()

    def ref(self, tensor: Tensor) -> Ref:
        ref, shapes, shape = self.refs.get(id(tensor)), self.capture.shapes, tensor.shape
        if ref is None or shapes[ref.value] != shape:  # in place, a tensor gets another shape
            ref = self.refs[id(tensor)] = Ref(len(shapes))
            shapes.append(tuple(shape))
            self.alive.append(tensor)
        return ref

    def _recorded(self, argument: Any, inputs: list[Ref]) -> Any:
        if isinstance(argument, Tensor):
            ref = self.ref(argument)
            inputs.append(ref)
            return ref
        if isinstance(argument, (list, tuple)):
            return [item if type(item) is int else self._recorded(item, inputs) for item in argument]
        return argument

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():  # composites arrive whole there
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        inputs: list[Ref] = []
        recorded = tuple([item if type(item) in _PLAIN else self._recorded(item, inputs) for item in args])
        named = {key: self._recorded(argument, inputs) for key, argument in kwargs.items()} if kwargs else {}
        out = call(func, args, kwargs, self.known)
        outputs: tuple[Ref | None, ...]
        if type(out) is Tensor:
            outputs = (self.ref(out),)
        else:
            results = out if isinstance(out, (list, tuple)) else (out,)
            outputs = tuple([self.ref(item) if isinstance(item, Tensor) else None for item in results])
        module = self.stack[-1] if self.stack else ""
        source = self.lines.caller()
        self.capture.nodes.append(Node(_name(func), func, recorded, named, tuple(inputs), outputs, module, source))
        return out

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Know which module is running, without touching the network: torch's global hooks."""
        names, stack, refs, calls = self.modules, self.stack, self.refs, self.capture.calls

        def enter(module: nn.Module, args: Any) -> None:
            name = names.get(id(module))
            stack.append(name if name is not None else (stack[-1] if stack else ""))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            stack.pop()
            name = names.get(id(module))
            if name is not None:
                returned = (output,) if type(output) is Tensor else tensors_in(output)
                calls.append((name, tuple([refs[id(t)].value for t in returned if id(t) in refs])))

        hooks = (
            nn_module.register_module_forward_pre_hook(enter),
            # Always: also where forward catches the error of a module that it called.
            nn_module.register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


_PLAIN = frozenset((int, float, bool, type(None)))


class _Lines:
    """The lines of the network's own code."""

    def __init__(self) -> None:
        self.files: dict[int, str] = {}  # code by id -> its file, "" for torch and what is in here
        self.known: dict[tuple[int, int], str] = {}  # code by id, place in it -> file:line
        self.alive: list[CodeType] = []

    def caller(self) -> str:
        """file:line of the nearest frame outside torch and this package's recorder."""
        files = self.files
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            file = files.get(id(code))
            if file is None:
                path = code.co_filename
                file = files[id(code)] = "" if path.startswith((_TORCH, *_OURS, "<")) else Path(path).name
                self.alive.append(code)
            if file:
                place = (id(code), frame.f_lasti)
                line = self.known.get(place)
                if line is None:
                    line = self.known[place] = f"{file}:{frame.f_lineno}"
                return line
            frame = frame.f_back
        return ""


@cache
def _name(func: Any) -> str:
    """An operator's name without namespace and overload."""
    return func._schema.name.rpartition("::")[2]


def place_of(error: Exception, modules: Mapping[int, str]) -> Place:
    """Where in a network's code an error arose; `modules` are the names of its modules by id."""
    module = source = ""
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_filename == nn_module.__file__ and code.co_name == "_call_impl":
            module = modules.get(id(step.tb_frame.f_locals["self"]), module)
        elif not code.co_filename.startswith((_TORCH, *_OURS, "<")):
            source = f"{Path(code.co_filename).name}:{step.tb_lineno}"
        step = step.tb_next
    return Place("", module, source)


def first_line(error: Exception, limit: int = 200) -> str:
    """What an error says, in one line."""
    line = (str(error).strip().splitlines() or [""])[0]
    return line if len(line) <= limit else line[: limit - 3] + "..."


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor in nested lists, tuples, dicts, dataclasses and plain objects, in order."""
    found: list[Tensor] = []
    stack: list[Any] = [tree]
    seen: set[int] = set()
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, Mapping):
            stack.extend(reversed(list(item.values())))
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack.extend(reversed(list(item)))
        elif hasattr(item, "__dict__") and not isinstance(item, (type, nn.Module)) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(reversed(list(vars(item).values())))
    return found


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from a tensor, a tuple or list, or a dict of example inputs."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, without what spreads it over devices, averages its weights, or compiles it."""
    while True:
        wraps = isinstance(model, _WRAPPERS) or type(model).__name__ == "_FabricModule"
        inner = model.module if wraps else getattr(model, "_orig_mod", None)  # torch.compile's
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def run(model: nn.Module, state: Mapping[str, Tensor], example_inputs: Any) -> Any:
    """The network's output on the example inputs, with `state` in place of its own tensors; nothing stays in it."""
    args, kwargs = as_call(example_inputs)
    with attributes_kept(model), _eagerly(), _same_chances(), warnings.catch_warnings():
        # The network's own habits (deprecated calls, values read from tensors) are not our news.
        warnings.simplefilter("ignore")
        holders = holders_of(model)
        for name, tensor in state.items():
            _, held, key = holders[name]
            held[key] = tensor  # put back together with the attributes
        return model(*args, **kwargs)


@contextmanager
def _same_chances() -> Iterator[None]:
    """Python's and NumPy's generators start alike in every run, and go on afterwards where they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 -- the network's habits, not ours
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _eagerly() -> AbstractContextManager[Any]:
    """Compiled parts run as plain Python."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and loading the compiler takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def mode_of(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the network into train or eval mode; every module's own mode comes back afterwards."""
    modules = distinct_modules(model)
    before = [(module, module.training) for module in modules]
    try:
        if _train_plainly(modules):
            for module in modules:
                vars(module)["training"] = training
        else:
            try:
                model.train(training)  # the network's own: some keep layers frozen, and that is respected
            except Exception as error:
                raise ModelError(
                    f"{type(model).__name__} can't be put into {'train' if training else 'eval'} mode "
                    f"({first_line(error)}); of an exported network, prune the original and export the result"
                ) from error
        yield
    finally:
        for module, mode in before:
            if module.training is not mode:
                module.training = mode


def _train_plainly(modules: Sequence[nn.Module]) -> bool:
    """`train` does nothing but set these modules' flags."""
    names = ("train", "children", "named_children", "__setattr__")
    return all(
        all(getattr(kind, name) is getattr(nn.Module, name) for name in names) and not hasattr(kind, "training")
        for kind in {type(module) for module in modules}
    ) and all("training" in (own := vars(module)) and names[0] not in own and names[1] not in own for module in modules)


def twice(example_inputs: Any) -> Any:
    """The example inputs with a batch of one doubled, since BatchNorm needs two values per channel to train.

    The second sample is the first one mirrored: the same once more would leave BatchNorm few distinct values, whose
    rounding errors it multiplies.
    """

    def repeat(item: Any) -> Any:
        if isinstance(item, Tensor) and item.dim() >= 2 and item.shape[0] == 1:
            return torch.cat([item, item.flip(-1) if item.is_floating_point() else item])
        return item

    return pytree.tree_map(repeat, example_inputs)


def mapped_state(model: nn.Module, change: Any) -> dict[str, Tensor]:
    """The state with `change(name, tensor)` applied once per distinct tensor; tied names keep sharing."""
    made: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in state_of(model).items():
        if id(tensor) not in made:
            made[id(tensor)] = change(name, tensor)
        state[name] = made[id(tensor)]
    return state


def to_meta(name: str, tensor: Tensor) -> Tensor:
    """A tensor's shape and type without its data."""
    return torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)


def detached(name: str, tensor: Tensor) -> Tensor:
    """A copy that a run may change in place."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def fresh_inputs(example_inputs: Any, meta: bool) -> Any:
    """The example inputs as meta tensors, or copied: some networks write into their inputs."""
    return pytree.tree_map(
        lambda t: (t.detach().to("meta") if meta else t.detach().clone()) if isinstance(t, Tensor) else t,
        example_inputs,
    )


def capture(model: nn.Module, example_inputs: Any, *, training: bool, meta: bool = True) -> Capture:
    """Record one run of the network.

    Args:
        model: any network; its tensors, modes and hooks are left as they were.
        example_inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.
        training: run in train mode (a batch of one is repeated to two) or in eval mode.
        meta: run on meta tensors, computing nothing; otherwise on copies of the real ones.

    Raises:
        ModelError: the network itself fails on the example inputs.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"{type(model).__name__} is TorchScript, whose tensors can't be changed; "
            "prune the Python network that it was made of"
        )
    lazy = [name for name, tensor in state_of(model).items() if nn.parameter.is_lazy(tensor)]
    if lazy:
        raise ModelError(f"{type(model).__name__}: {lazy[0]} has no shape yet; run the network once before tracing it")
    record = Capture(training=training, meta=meta)
    names = {id(module): name for name, module in reversed(modules_of(model))}
    recorder = _Recorder(record, names, inside_of(model).known)
    inputs = fresh_inputs(twice(example_inputs) if training else example_inputs, meta)
    state = mapped_state(model, to_meta if meta else detached)
    for name, tensor in state.items():
        record.names[name] = recorder.ref(tensor).value
    with mode_of(model, training), recorder.following_modules(), torch.random.fork_rng(devices=[]):
        # With gradients on: some modules take a fused kernel without them, which would hide the plain operators.
        with torch.enable_grad(), recorder:
            try:
                output = run(model, state, inputs)
            except Exception as error:
                shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(example_inputs))
                mode = "train" if training else "eval"
                raise ModelError(
                    f"{type(model).__name__} fails in {mode} mode on example inputs of shape {shapes}: "
                    f"{type(error).__name__}: {first_line(error)}"
                ) from error
    record.outputs = tuple(recorder.ref(tensor).value for tensor in tensors_in(output))
    return record
