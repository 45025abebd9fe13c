"""What the engine tells about results on meta tensors is what PyTorch says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.graph import meta

aten = torch.ops.aten
FEW = settings(max_examples=150, deadline=None)

sizes = st.integers(1, 5)
kinds = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16])
layouts = st.sampled_from(["plain", "plain", "plain", "last", "turned", "sliced", "odd"])


def empty(shape, dtype, layout="plain"):
    shape = tuple(shape)
    new = torch.empty(shape, dtype=dtype, device="meta")
    if layout == "last" and len(shape) in (4, 5):
        return new.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    if layout == "turned" and len(shape) > 1:
        return torch.empty(shape[::-1], dtype=dtype, device="meta").permute(*range(len(shape))[::-1])
    if layout == "sliced" and shape:
        return torch.empty((*shape[:-1], shape[-1] + 1), dtype=dtype, device="meta")[..., 1:]
    if layout == "odd" and 1 in shape:  # contiguous, with a stride for an index that is never stepped along
        return new.as_strided(shape, [7 if n == 1 else s for n, s in zip(shape, new.stride(), strict=True)])
    return new


@st.composite
def tensors(draw, rank=None, shape=None):
    if shape is None:
        shape = draw(st.lists(sizes, min_size=rank or 1, max_size=rank or 5))
    return empty(shape, draw(kinds), draw(layouts))


def told(out):
    return [(o.shape, o.stride(), o.dtype, o.device) for o in (out if isinstance(out, (tuple, list)) else (out,))]


def agree(func, *args, **kwargs):
    """Where anything is told, PyTorch says the same; where PyTorch refuses, nothing is told."""
    answer = meta.RULES[func](*args)
    try:
        truth = func(*args)
    except Exception as error:
        assert answer is None, f"{func} was answered, but PyTorch says {error}"
        return False
    if answer is None:
        return False
    assert told(answer) == told(truth), f"{func} on {[told(a) if isinstance(a, Tensor) else a for a in args]}"
    mine, its = (o if isinstance(o, (tuple, list)) else [o] for o in (answer, truth))
    given_ = [id(a) for a in args if isinstance(a, Tensor)]
    assert [id(o) in given_ for o in mine] == [id(o) in given_ for o in its]  # in place, or not
    return True


@st.composite
def vectors(draw, size, like):
    """None, one that fits, or one that does not."""
    which = draw(st.integers(0, 9))
    if which == 0:
        return None
    return empty((size + (which == 1),), like.dtype if which != 2 else draw(kinds))


@FEW
@given(st.data())
def test_batch_norms(data):
    x = data.draw(tensors())
    size = x.shape[1] if x.dim() > 1 else 1
    weight, bias, mean, var = (data.draw(vectors(size, x)) for _ in range(4))
    training = data.draw(st.booleans())
    agree(aten.native_batch_norm.default, x, weight, bias, mean, var, training, 0.1, 1e-5)
    agree(aten._native_batch_norm_legit.no_stats, x, weight, bias, training, 0.1, 1e-5)
    if mean is not None and var is not None:
        agree(aten._native_batch_norm_legit.default, x, weight, bias, mean, var, training, 0.1, 1e-5)
        agree(aten._native_batch_norm_legit_no_training.default, x, weight, bias, mean, var, 0.1, 1e-5)


@FEW
@given(st.data())
def test_layer_and_group_norm(data):
    x = data.draw(tensors())
    count = data.draw(st.integers(0, x.dim()))
    shape = list(x.shape[x.dim() - count :])
    if shape and data.draw(st.integers(0, 5)) == 0:
        shape[0] += 1
    some = st.sampled_from([None, empty(shape, x.dtype), empty(shape, torch.float32)])
    weight, bias = data.draw(some), data.draw(some)
    agree(aten.native_layer_norm.default, x, shape, weight, bias, 1e-5)
    if x.dim() > 1:
        n, c = x.shape[:2]
        weight, bias = data.draw(vectors(c, x)), data.draw(vectors(c, x))
        groups = data.draw(st.integers(1, 5))
        agree(aten.native_group_norm.default, x, weight, bias, n, c, math.prod(x.shape[2:]), groups, 1e-5)


@FEW
@given(st.data())
def test_convolutions(data):
    dims = data.draw(st.integers(1, 3))
    x = data.draw(tensors(rank=dims + 2))
    groups = data.draw(st.integers(1, 3))
    into = max(1, x.shape[1] // groups) + data.draw(st.sampled_from([0, 0, 0, 1]))
    kernel = data.draw(st.tuples(*[st.integers(1, 3)] * dims))
    weight = data.draw(tensors(shape=[groups * data.draw(sizes), into, *kernel]))
    bias = data.draw(vectors(weight.shape[0], x))
    many = st.lists(st.integers(1, 3), min_size=dims, max_size=dims)
    padding = data.draw(st.lists(st.integers(0, 2), min_size=dims, max_size=dims))
    transposed = data.draw(st.sampled_from([False, False, False, True]))
    agree(
        aten.convolution.default, x, weight, bias, data.draw(many), padding, data.draw(many), transposed,
        [0] * dims, groups,
    )  # fmt: skip


@FEW
@given(st.data())
def test_matrix_products_with_a_summand(data):
    a, b = data.draw(tensors(rank=2)), data.draw(tensors(rank=2))
    if data.draw(st.booleans()):
        b = empty((a.shape[1], b.shape[1]), a.dtype, data.draw(layouts))
    bias = data.draw(st.sampled_from([empty((b.shape[1],), a.dtype), b, empty((1,), a.dtype)]))
    agree(aten.addmm.default, bias, a, b)


@FEW
@given(st.data())
def test_concatenations(data):
    x = data.draw(tensors())
    dim = data.draw(st.integers(-x.dim() - 1, x.dim()))
    others = []
    for _ in range(data.draw(st.integers(0, 3))):
        shape = list(x.shape)
        if -len(shape) <= dim < len(shape):
            shape[dim] = data.draw(st.integers(0, 3))
        others.append(empty(shape, data.draw(st.sampled_from([x.dtype, x.dtype, torch.float32])), data.draw(layouts)))
    agree(aten.cat.default, [x, *others], dim)
    agree(aten.cat.default, [x, *others])
    agree(aten.cat.default, [x, *others, data.draw(tensors())], dim)


PAIRS = [func for func, rule in meta.RULES.items() if rule in (meta._pair, meta._pair_in_place)]
ALONE = [func for func, rule in meta.RULES.items() if rule in (meta._same, meta._in_place)]


@FEW
@given(st.data(), st.sampled_from(PAIRS))
def test_pairs_of_operands(data, func):
    x = data.draw(tensors())
    spread = [data.draw(st.sampled_from([1, n, n])) for n in x.shape][data.draw(st.integers(0, x.dim())) :]
    y = data.draw(
        st.one_of(
            st.just(empty(spread, x.dtype, data.draw(layouts))), tensors(), st.sampled_from([2, 1.5, 0, True, 2j])
        )
    )
    x = data.draw(st.sampled_from([x, x, x, torch.empty((), dtype=torch.int64, device="meta")]))
    if not (func in (aten.div.Tensor, aten.sub.Tensor) and isinstance(y, (int, float, complex))):
        agree(func, x, y)
    if isinstance(y, Tensor):
        agree(func, y, x)


@pytest.mark.parametrize("func", ALONE, ids=str)
@FEW
@given(data=st.data())
def test_operators_on_one_tensor(func, data):
    x = data.draw(tensors())
    agree(func, x, *([0.5] if func is aten.mul.Scalar else []))
    agree(func, torch.empty(3, dtype=torch.int64, device="meta"), *([0.5] if func is aten.mul.Scalar else []))


@FEW
@given(st.data())
def test_means_and_softmax(data):
    x = data.draw(tensors())
    dims = st.integers(-x.dim() - 1, x.dim())
    agree(aten.mean.dim, x, data.draw(st.lists(dims, max_size=3)), data.draw(st.booleans()))
    agree(aten._softmax.default, x, data.draw(dims), data.draw(st.sampled_from([False, False, True])))


@FEW
@given(st.data())
def test_resizing(data):
    x = data.draw(tensors())
    size = data.draw(st.lists(st.integers(0, 6), min_size=2, max_size=2))
    agree(aten.upsample_nearest2d.default, x, size, None, None)
    agree(aten.upsample_bilinear2d.default, x, size, data.draw(st.booleans()), None, None)
    agree(aten._adaptive_avg_pool2d.default, x, size)


@FEW
@given(st.data())
def test_pooling(data):
    x = data.draw(tensors(rank=4))
    numbers = st.lists(st.integers(0, 4), min_size=1, max_size=2)
    kernel, stride, padding, dilation = (data.draw(numbers) for _ in range(4))
    stride, ceil = data.draw(st.sampled_from([[], stride])), data.draw(st.booleans())
    agree(aten.max_pool2d_with_indices.default, x, kernel, stride, padding, dilation, ceil)
    agree(aten.max_pool2d_with_indices.default, x, kernel, stride)
    agree(aten.avg_pool2d.default, x, kernel, stride, padding, ceil, True, data.draw(st.sampled_from([None, 0, 3])))
    agree(aten.avg_pool2d.default, x, kernel)


def test_what_networks_call_most_is_answered():
    x, v = empty((2, 6, 8, 8), torch.float32), empty((6,), torch.float32)
    assert agree(aten.native_batch_norm.default, x, v, v, v, v, True, 0.1, 1e-5)
    assert agree(aten.native_batch_norm.default, x, None, None, v, v, False, 0.1, 1e-5)
    assert agree(aten.native_layer_norm.default, x, [8], None, None, 1e-5)
    assert agree(aten.native_group_norm.default, x, v, v, 2, 6, 64, 3, 1e-5)
    kernel = empty((4, 3, 3, 3), torch.float32)
    assert agree(aten.convolution.default, x, kernel, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 2)
    assert agree(aten.cat.default, [x, x], 1)
    assert agree(aten.add.Tensor, x, x) and agree(aten.mul.Tensor, x, empty((2, 6, 1, 1), torch.float32))
    assert agree(aten.mean.dim, x, [-1, -2], True) and agree(aten.upsample_bilinear2d.default, x, [9, 9], False)
    assert agree(aten.max_pool2d_with_indices.default, x, [3, 3], [2, 2], [1, 1], [1, 1], True)
    assert agree(aten.avg_pool2d.default, x, [2, 2]) and agree(aten._adaptive_avg_pool2d.default, x, [1, 1])
    assert all(agree(func, x, *([2] if func is aten.mul.Scalar else [])) for func in ALONE)


def test_no_answer_is_for_tensors_with_data():
    assert meta.call(aten.add.Tensor, (torch.ones(2), torch.ones(2)), {}).tolist() == [2, 2]


def test_batch_norm_changes_no_statistics_and_gives_tensors_of_its_own():
    x, v = empty((2, 6, 8, 8), torch.float32), empty((6,), torch.float32)
    assert all(out is not v and out is not x for out in meta.RULES[aten.native_batch_norm.default](
        x, v, v, v, v, False, 0.1, 1e-5))  # fmt: skip


REMEMBERED = [
    lambda x: (aten.native_layer_norm.default, (x, x.shape[-1:], None, None, 1e-5)),
    lambda x: (aten.add.Tensor, (x, 1)),
    lambda x: (aten.mul.Tensor, (x, x)),
    lambda x: (aten.mul.Tensor, (x, empty(x.shape[-1:], x.dtype))),
    lambda x: (aten.mean.dim, (x, [-1], True)),
    lambda x: (aten.mean.dim, (x, [-1], True), {"dtype": torch.float64}),
    lambda x: (aten.cat.default, ([x, x], -1)),
    lambda x: (aten.max.dim, (x, -1)),
    lambda x: (aten.var_mean.correction, (x, [0])),
]


@FEW
@given(st.data())
def test_what_is_remembered_is_what_pytorch_says(data):
    """Several calls with one memory, so that the answer to one is not taken for another's."""
    known = {}
    integers = empty((2, 3), torch.int64)
    for x in (*(data.draw(tensors()) for _ in range(3)), integers):
        for make in REMEMBERED:
            func, args, kwargs = (*make(x), {})[:3]
            try:
                truth = func(*args, **kwargs)
            except Exception:
                continue
            for _ in range(2):
                assert told(meta.call(func, args, kwargs, known)) == told(truth)
    assert meta.call(aten.add.Tensor, (integers, 1.0), {}, known).dtype == torch.float32
    assert meta.call(aten.add.Tensor, (integers, 1), {}, known).dtype == torch.int64


def test_only_new_tensors_are_remembered():
    known, x = {}, empty((4, 6), torch.float32, "turned")
    for func, args in ((aten.view.default, (x.t(), [24])), (aten.relu_.default, (x,)), (aten.lift.default, (x,))):
        made = meta.call(func, args, {}, known)
        assert made.untyped_storage()._cdata == x.untyped_storage()._cdata
    assert meta.call(aten.add.Tensor, (torch.ones(2), 1), {}, known).tolist() == [2, 2]
    assert not known
    first = meta.call(aten.add.Tensor, (x, 1), {}, known)
    assert known and meta.call(aten.add.Tensor, (x, 1), {}, known) is not first
