"""What a batch's forward pass gives up to the first operator that some tensors change, kept and played back.

The network's own code runs every time, under a dispatch mode that sees every ATen operator. The first pass writes down
which operator was called with what. In later passes, in which only the given tensors have other values or fewer
channels, an operator that these tensors do not reach is not computed: what it returns is a stand-in of the same shape,
and the operators that are reached get the kept tensors in place of stand-ins. So any network will do, whatever Python
its forward is made of.

By induction over the operators this is equal to a full pass: an operator that is not reached, called with the same
arguments, gives the same. That the calls are the same is checked at each of them; `Unlike` says that they were not.
What can't be kept raises `Unlike` in the first pass: random numbers, parameters that forward changes, and sums in place
into a part of a tensor that was kept. Python that reads a tensor's memory without calling an operator (numpy, tolist)
is not seen; callers compare one pass that was played back with a full one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

_Key = tuple[int, int]  # of a value: number of the call and of its output


class Unlike(Exception):
    """This pass can't be kept, or is another one than the kept one. Caught where a full pass can be made instead."""


@dataclass(slots=True)
class _Call:
    """One operator as it was called.

    Attributes:
        func: the ATen operator.
        arguments: with tensors replaced by their origins.
        origins: of its tensors, in their order; None of those that no call made.
        reached: the changed tensors reach it.
        kept: of a reached one, place among its tensors -> the value that no change reaches.
        outputs: of every output how to make a stand-in: (shape, strides, type, device), the place of the argument that
            it is, or the value itself where it is no tensor.
        single: it returned one thing, not several.
    """

    func: Any
    arguments: Any
    origins: list[_Key | None]
    reached: bool
    kept: dict[int, Tensor] = field(default_factory=dict)
    outputs: tuple[Any, ...] = ()
    single: bool = True


@dataclass(frozen=True, slots=True)
class _Form:
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def extent(self) -> int:
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)) if self.numel else 0

    @property
    def numel(self) -> int:
        return 0 if 0 in self.shape else 1


@dataclass(frozen=True, slots=True)
class _Argument:
    """The place of the argument that an output is."""

    place: int


class Prefix:
    """One batch's calls.

    Attributes:
        bytes: memory of what is kept.
    """

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.bytes = 0


class _Watching(TorchDispatchMode):
    """Knows every tensor's origin: the call and output that made it, or a name."""

    def __init__(self, prefix: Prefix, state: Iterable[Tensor], changed: Iterable[Tensor], given: Iterable[Tensor]):
        super().__init__()
        self.calls = prefix.calls
        self.origin: Any = WeakIdKeyDictionary()
        self.reached: Any = WeakIdKeyDictionary()  # tensors that the changed ones reach
        self.state: Any = WeakIdKeyDictionary()
        for number, tensor in enumerate(state):
            self.state[tensor] = True
            self.origin[tensor] = (-1, number)
        for number, tensor in enumerate(given):
            self.origin[tensor] = (-2, number)
        for tensor in changed:
            self.reached[tensor] = True

    def arguments_of(self, args: Any, tensors: list[Tensor]) -> Any:
        """The arguments with tensors replaced by their origin, which are put into `tensors`."""
        if isinstance(args, Tensor):
            tensors.append(args)
            return _Key, self.origin.get(args)
        if isinstance(args, (tuple, list)):
            return tuple([self.arguments_of(item, tensors) for item in args])
        if isinstance(args, dict):
            return tuple([(key, self.arguments_of(item, tensors)) for key, item in args.items()])
        return args


class Recording(_Watching):
    """The first pass: writes down every call in `prefix` and keeps the values that reached operators take from it.

    Args:
        prefix: empty.
        state: the network's parameters and buffers, in the same order in every pass.
        changed: those of them that have other values in later passes.
        given: the tensors of the batch, which forward may change.
    """

    def __init__(self, prefix: Prefix, state: Iterable[Tensor], changed: Iterable[Tensor], given: Iterable[Tensor]):
        super().__init__(prefix, state, changed, given)
        self.prefix = prefix
        self.dirty: dict[int, bool] = {}  # storage -> a changed tensor reaches it
        self.objects: dict[int, int] = {}  # storage -> how many tensors were made on it
        self.kept_in: dict[int, list[tuple[_Call, int]]] = {}  # storage -> the places where it is kept
        self.counted: dict[int, int] = {}  # storage -> bytes that are kept of it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unlike(f"{func} draws random numbers")
        tensors: list[Tensor] = []
        arguments = self.arguments_of((args, kwargs), tensors)
        reached = any(self._reached(t) for t in tensors)
        call = _Call(func, arguments, [self.origin.get(tensor) for tensor in tensors], reached)
        before = {_storage(t) for t in tensors}
        if func._schema.is_mutable:
            self._about_to_write(func, args, kwargs, reached)
        if reached:
            for place, tensor in enumerate(tensors):
                if tensor not in self.state and not self._reached(tensor):
                    self._keep(call, place, tensor)
        out = func(*args, **kwargs)
        call.single = not isinstance(out, (tuple, list))
        outputs = (out,) if call.single else tuple(out)
        call.outputs = tuple([self._noted(item, i, tensors, before, reached) for i, item in enumerate(outputs)])
        for tensor in _written(func, args, kwargs):
            self.origin[tensor] = _written_key(len(self.calls), tensor, tensors)
            if reached:
                self.dirty[_storage(tensor)] = True
        self.calls.append(call)
        return out

    def _reached(self, tensor: Tensor) -> bool:
        unknown = tensor not in self.origin  # made on the fly: it is made again in every pass
        return unknown or tensor in self.reached or self.dirty.get(_storage(tensor), False)

    def _noted(self, item: Any, number: int, tensors: list[Tensor], before: set[int], reached: bool) -> Any:
        if not isinstance(item, Tensor):
            return item
        storage = _storage(item)
        place = next((i for i, t in enumerate(tensors) if t is item), None)
        if storage not in before:  # new memory, perhaps where other has been freed
            self.dirty[storage], self.objects[storage] = False, 0
        if place is None:
            if reached and storage in self.kept_in:
                raise Unlike("a part of a kept tensor is handed on")
            self.objects[storage] = self.objects.get(storage, 1) + 1
        if reached:
            self.dirty[storage] = True
            self.reached[item] = True
        self.origin[item] = (len(self.calls), number)
        return _Argument(place) if place is not None else _form(item)

    def _about_to_write(self, func: Any, args: Any, kwargs: Any, reached: bool) -> None:
        for tensor in _written(func, args, kwargs):
            if tensor in self.state:
                raise Unlike(f"{func} changes a parameter or buffer in forward")
            storage = _storage(tensor)
            for call, place in self.kept_in.pop(storage, []):
                call.kept[place] = call.kept[place].clone()
                self._count(call.kept[place])
            if reached and not self._reached(tensor) and self.objects.get(storage, 1) > 1:
                raise Unlike(f"{func} writes into a part of a tensor")

    def _keep(self, call: _Call, place: int, tensor: Tensor) -> None:
        call.kept[place] = tensor.detach()
        self.kept_in.setdefault(_storage(tensor), []).append((call, place))
        self._count(tensor)

    def _count(self, tensor: Tensor) -> None:
        storage, size = _storage(tensor), tensor.untyped_storage().nbytes()
        if storage not in self.counted:
            self.counted[storage] = size
            self.prefix.bytes += size


class Playback(_Watching):
    """A later pass: computes only what the changed tensors reach. Arguments as of `Recording`."""

    def __init__(
        self,
        prefix: Prefix,
        state: Iterable[Tensor],
        changed: Iterable[Tensor],
        given: Iterable[Tensor],
        room: dict[Any, Tensor],
    ) -> None:
        super().__init__(prefix, state, changed, given)
        self.number = 0
        self.room = room  # memory that stand-ins share: nobody reads them
        self.became: Any = WeakIdKeyDictionary()  # stand-in -> the value that a reached operator wrote into it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors: list[Tensor] = []
        arguments = self.arguments_of((args, kwargs), tensors)
        number, self.number = self.number, self.number + 1
        call = self.calls[number] if number < len(self.calls) else None
        if call is None or call.func is not func or not self._same(call, arguments, tensors):
            raise Unlike(f"{func} is called instead of {call.func if call is not None else 'nothing'}")
        if call.reached:
            outputs = self._computed(call, func, args, kwargs, tensors)
        else:
            outputs = [self._stand_in(form, tensors) for form in call.outputs]
        for i, item in enumerate(outputs):
            if isinstance(item, Tensor):
                self.origin[item] = (number, i)
        for tensor in _written(func, args, kwargs):
            self.origin[tensor] = _written_key(number, tensor, tensors)
        return outputs[0] if call.single else outputs

    def _same(self, call: _Call, arguments: Any, tensors: Sequence[Tensor]) -> bool:
        """What is reached may be of other sizes, but comes from the same calls."""
        if call.reached:
            return call.origins == [self.origin.get(tensor) for tensor in tensors]
        return bool(call.arguments == arguments)

    def _computed(self, call: _Call, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> list[Any]:
        written = {id(t) for t in _written(func, args, kwargs)}
        values: dict[int, Tensor] = {}  # by the id of what the network holds
        for place, tensor in enumerate(tensors):
            if place in call.kept:
                kept = call.kept[place]
                values[id(tensor)] = kept.clone() if id(tensor) in written else kept
            elif tensor in self.became:
                values[id(tensor)] = self.became[tensor]
        if not values:
            out = func(*args, **kwargs)
        else:
            out = func(*_swapped(args, values), **_swapped(kwargs, values))
        by_value = {id(value): t for t in tensors if (value := values.get(id(t))) is not None}
        for tensor in tensors:
            if id(tensor) in written and id(tensor) in values:
                self.became[tensor] = values[id(tensor)]
        outputs = [out] if call.single else list(out)
        # what was written in place is the object that the network holds
        return [by_value.get(id(item), item) if isinstance(item, Tensor) else item for item in outputs]

    def _stand_in(self, form: Any, tensors: Sequence[Tensor]) -> Any:
        if isinstance(form, _Argument):
            return tensors[form.place]
        if not isinstance(form, _Form):
            return form
        key, extent = (form.dtype, form.device), form.extent
        room = self.room.get(key)
        if room is None or room.numel() < extent:
            room = self.room[key] = torch.empty(extent, dtype=form.dtype, device=form.device)
        return torch.as_strided(room, form.shape, form.strides)


def _form(tensor: Tensor) -> _Form:
    return _Form(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError as error:  # sparse and the like
        raise Unlike(f"a tensor of layout {tensor.layout}") from error


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operator changes in place."""
    if not func._schema.is_mutable:
        return []
    out: list[Tensor] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = kwargs.get(argument.name) if argument.name in kwargs else (args[number : number + 1] or (None,))[0]
            out.extend(t for t in (given if isinstance(given, (tuple, list)) else (given,)) if isinstance(t, Tensor))
    return out


def _written_key(number: int, tensor: Tensor, tensors: Sequence[Tensor]) -> _Key:
    return number, -1 - next(i for i, t in enumerate(tensors) if t is tensor)


def _swapped(tree: Any, values: dict[int, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return values.get(id(tree), tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)([_swapped(item, values) for item in tree])
    if isinstance(tree, dict):
        return {key: _swapped(item, values) for key, item in tree.items()}
    return tree


def played(
    prefix: Prefix | None,
    work: Callable[[], Any],
    state: Sequence[Tensor],
    changed: Sequence[Tensor],
    given: Sequence[Tensor],
    room: dict[Any, Tensor],
) -> tuple[Any, Prefix]:
    """What `work` gives, and its prefix: recorded if there is none yet, else played back.

    Raises:
        Unlike: it can't be kept, or did something else than the recorded pass.
    """
    if prefix is None:
        prefix = Prefix()
        with Recording(prefix, state, changed, given):
            return work(), prefix
    with Playback(prefix, state, changed, given, room):
        return work(), prefix
