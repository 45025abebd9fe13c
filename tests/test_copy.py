"""A copy of a network is what `copy.deepcopy` gives, by a shorter way; the original never shows through."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from secateur.surgery.cut import _deep_copy, copy_of
from secateur.surgery.verify import _Normal


class Marked(nn.Module):
    """Attributes of many kinds, some shared, one of them itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.tied = self.conv
        self.also = [self.conv, {"weight": self.conv.weight}]
        self.sizes, self.pair, self.names = {1, 2}, ([1], self.conv), OrderedDict(a=[1])
        self.names.meta = [1]
        self.hidden = (lambda: 1,)
        self.register_buffer("scale", torch.ones(2))
        object.__setattr__(self, "me", self)


class Own(nn.Linear):
    def __deepcopy__(self, memo):
        new = Own(self.in_features, self.out_features)
        new.how = "own"
        return new


class Restored(nn.Linear):
    def __setstate__(self, state):
        super().__setstate__(state)
        self.how = "restored"


class Listed(nn.Module, list):
    __hash__ = nn.Module.__hash__


def test_structure_is_kept_and_nothing_is_shared():
    net = Marked()
    new = _deep_copy(net, {})
    assert new.me is new and new.tied is new.conv and new.also[0] is new.conv and new.pair[1] is new.conv
    assert new.also[1]["weight"] is new.conv.weight and new.conv.weight is not net.conv.weight
    assert isinstance(new.conv.weight, nn.Parameter) and torch.equal(new.conv.weight, net.conv.weight)
    assert new.names == net.names and new.names["a"] is not net.names["a"]
    assert new.names.meta == [1] and new.names.meta is not net.names.meta
    assert new.sizes == {1, 2} and new.sizes is not net.sizes and new.pair[0] is not net.pair[0]
    assert new._forward_hooks is not net._forward_hooks and new.scale is not net.scale
    assert list(vars(new)) == list(vars(copy.deepcopy(net)))


def test_classes_with_a_way_of_their_own_are_copied_in_it():
    listed = Listed()
    listed.extend([[1]])
    net = nn.ModuleList([Own(2, 2), Restored(2, 2), listed, nn.LSTM(2, 2)])
    own, restored, items, lstm = _deep_copy(net, {})
    assert own.how == "own" and restored.how == "restored"
    assert list.__getitem__(items, 0) == [1] and list.__getitem__(items, 0) is not list.__getitem__(listed, 0)
    assert all(a is b for a, b in zip(lstm._flat_weights, lstm.parameters(), strict=True))


def test_buffers_that_share_memory_do_so_in_the_copy():
    net = nn.Module()
    net.register_buffer("whole", torch.arange(6.0))
    net.register_buffer("part", net.whole[2:4])
    net.register_buffer("turned", net.whole.view(2, 3).t())
    net.register_buffer("again", net.whole.view(3, 2))
    net.alone, net.marked = torch.ones(2), torch.ones(2)
    net.marked.mark = "kept"
    new = _deep_copy(net, {})
    new.whole.fill_(7)
    assert new.part.tolist() == [7, 7] and new.again.eq(7).all()
    assert new.turned.eq(7).all() and new.turned.stride() == (1, 3)
    assert net.whole.tolist() == [0, 1, 2, 3, 4, 5]
    assert new.alone is not net.alone and new.marked.mark == "kept"


def test_tensors_given_stand_in_for_those_of_the_network():
    net = Marked()
    given = nn.Parameter(torch.zeros(2, 3, 3, 3))
    new = copy_of(net, {id(net.conv.weight): given})
    assert new.conv.weight is given and new.also[1]["weight"] is given


@pytest.mark.parametrize("shape", [(7, 5), (300, 300), (64, 65_537 // 64, 3)])
def test_random_weights_have_no_two_channels_alike(shape):
    drawn = _Normal(torch.Generator().manual_seed(0))(shape)
    assert abs(drawn.mean()) < 0.5 and abs(drawn.std() - 1) < 0.5
    for dim in range(len(shape)):
        channels = drawn.transpose(0, dim).reshape(shape[dim], -1)
        assert len(torch.unique(channels, dim=0)) == shape[dim]
