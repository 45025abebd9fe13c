"""The rules that every method in the table obeys."""

from __future__ import annotations

import dataclasses

import methods
import numpy as np
import own_networks
import pytest
import torch
import zoo
from torch import nn

import secateur
from secateur.errors import MethodError
from secateur.methods import METHODS, get_method, list_methods

OWN = {"squeezed": own_networks.Squeezed, "residual": own_networks.Residual}


@pytest.mark.parametrize("name", ["unet", "segnet", "residual", "squeezed"])
@pytest.mark.parametrize("method", methods.PRUNING)
def test_every_method_prunes_exactly_to_a_budget(method: str, name: str) -> None:
    torch.manual_seed(0)
    model, x = (OWN[name]() if name in OWN else zoo.build(name)).train(), zoo.example()
    result = methods.pruned_to(method, model, x, {"params": 0.6})
    assert result.report.ok and result.after.params <= 0.6 * result.before.params
    assert result.budget["achieved"]["params"] <= 0.6
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in result.model.modules())
    assert result.model.train()(x) is not None


@pytest.mark.parametrize("method", methods.PRUNING)
def test_interrupted_and_resumed_equals_uninterrupted(method: str) -> None:
    x = zoo.example()

    def fresh() -> tuple[nn.Module, secateur.Pruner, torch.optim.Optimizer]:
        model = zoo.build("unet").train()
        pruner = methods.attach(method, model, x)
        if pruner.method.decides:
            pruner.aim(pruning_ratio=0.4)
        pruner.begin(steps=8, lr_sum=0.8, epochs=4)
        return model, pruner, torch.optim.SGD(model.parameters(), 0.1)

    def finish(pruner: secateur.Pruner) -> secateur.Result:
        return pruner.finish(**({} if pruner.method.decides else {"pruning_ratio": 0.4}))

    model, pruner, optimizer = fresh()
    methods.train(model, pruner, x, optimizer, range(4))
    whole = finish(pruner)

    model, pruner, optimizer = fresh()
    methods.train(model, pruner, x, optimizer, range(2))
    saved = pruner.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    model, pruner, optimizer = fresh()
    pruner.load_state_dict(saved[0])
    model.load_state_dict(saved[1])
    methods.train(model, pruner, x, optimizer, range(2, 4))
    again = finish(pruner)
    assert whole.plan == again.plan
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("method", list_methods())
def test_what_is_logged_is_finite(method: str) -> None:
    model, x = zoo.build("unet").train(), zoo.example()
    pruner = methods.attach(method, model, x)
    pruner.begin(steps=2, lr_sum=0.2, epochs=1)
    methods.train(model, pruner, x, torch.optim.SGD(model.parameters(), 0.1), range(1))
    assert all(np.isfinite(value) for value in pruner.log().values())
    pruner.close()


@pytest.mark.parametrize("method", list_methods())
def test_methods_describe_themselves(method: str) -> None:
    kind = get_method(method)
    assert kind.name == method and kind.summary and METHODS[method] is kind
    assert all(text for _, text in kind.options_help().values())
    if kind.needs_training:
        assert kind.paper
    if kind.needs_labels:
        assert kind.needs_data
    assert dataclasses.is_dataclass(kind)


@pytest.mark.parametrize("method", [name for name in list_methods() if get_method(name).needs_data])
def test_data_that_is_missing_is_asked_for(method: str) -> None:
    with pytest.raises(MethodError, match=r"give data= .*loss="):
        secateur.Pruner(zoo.build("unet"), zoo.example(), method=method)
    with pytest.raises(MethodError, match="generator"):
        secateur.Pruner(zoo.build("unet"), zoo.example(), method=method, data=iter([]), loss=methods.loss_of, classes=5)


DECIDING = [name for name in list_methods() if get_method(name).decides]


@pytest.mark.parametrize("method", [name for name in DECIDING if not get_method(name).needs_training])
def test_methods_that_search_at_the_cut_say_so(method: str) -> None:
    model, x = zoo.build("unet"), zoo.example()
    with pytest.raises(MethodError, match="at the cut"):
        secateur.score(secateur.trace(model, x), method, **methods.material(method, model, x))
    pruner = methods.attach(method, model, x)
    with pytest.raises(MethodError, match="chooses once"):
        pruner.step(pruning_ratio=0.5)


@pytest.mark.parametrize("method", [name for name in DECIDING if get_method(name).needs_training])
def test_methods_that_choose_while_training_say_so(method: str) -> None:
    model, x = zoo.build("unet"), zoo.example()
    with pytest.raises(MethodError, match="while training"):
        secateur.score(secateur.trace(model, x), method, **methods.material(method, model, x))
    pruner = methods.attach(method, model, x)
    with pytest.raises(MethodError, match="chooses once"):
        pruner.step(pruning_ratio=0.5)
    with pytest.raises(MethodError):  # nothing was trained, so nothing was chosen
        pruner.finish()
    with pytest.raises(MethodError, match="chooses nothing while training"):
        secateur.Pruner(model, x, method="l1").aim(pruning_ratio=0.5)
