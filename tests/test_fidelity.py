"""A converted network computes what the network did, whatever torch module it is made of."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from constructions import EXAMPLES, MODULES
from hypothesis import assume, given
from hypothesis import strategies as st
from pyro import poutine
from pyro.nn import PyroModule
from test_constructors import attempt, same
from torch import nn

from pyro_bnn import bayesianize, to_deterministic
from pyro_bnn.compat import Standalone
from pyro_bnn.conversion._weights import copied
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoReparameterization

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:dropout option adds dropout"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated"),
    pytest.mark.filterwarnings("ignore:Lazy modules are a new feature"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:.*mismatched (src_)?key_padding_mask"),
    pytest.mark.filterwarnings("ignore:the first run of the model did not read"),
]
#: What torch.nn has besides: bases without a forward, and wrappers of a module.
OTHERS = {"Module", "Container", "RNNBase", "RNNCellBase", "DataParallel"}


def everything(name, module):
    return True


def test_every_module_with_parameters_is_here():
    for name, kind in inspect.getmembers(nn, inspect.isclass):
        if not issubclass(kind, nn.Module) or name in OTHERS or name in MODULES:
            continue
        made = None
        for args in [(), (2,), (2, 2), ([nn.ReLU()],), (None, [2])]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = attempt(kind, *args)
            if isinstance(made, nn.Module):
                break
        assert isinstance(made, nn.Module), name
        assert not list(made.parameters()), name


class Around(nn.Module):
    """A network with the module in it, twice."""

    def __init__(self, module):
        super().__init__()
        self.first = module
        self.again = module

    def forward(self, *inputs, **options):
        return self.again(*inputs, **options)


def runs(net, case):
    """What a network returns for the same random numbers each time, and its buffers then."""
    torch.manual_seed(1)
    result = net(*case.inputs, **case.options)
    outputs = result if isinstance(result, tuple) and type(result) is tuple else (result,)
    return outputs


def buffers(net):
    return tuple(b for n, b in net.named_buffers() if "_prior." not in n and "padding_row" not in n)


def compare(result, expected):
    if isinstance(expected, type):
        assert isinstance(result, type)
    else:
        assert not isinstance(result, type), result
        same(result, expected)


@pytest.mark.parametrize("draw", MODULES.values(), ids=MODULES)
@given(data=st.data())
@EXAMPLES
def test_fidelity(draw, data):
    case = draw(data)
    train, nested, inplace = (data.draw(st.booleans()) for _ in range(3))

    def make():
        torch.manual_seed(0)
        module = case.kind(*case.args, **case.kwargs)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.uniform_(-1, 1)
        module.train(train and module.training)
        return Around(module) if nested else module

    assume(isinstance(attempt(make), nn.Module))
    old, net = make(), make()
    values = {name: p.detach().clone() for name, p in old.named_parameters()}
    assume(values)
    if getattr(old, "first", old).__dict__.get("sparse") or (
        isinstance(getattr(old, "first", old), nn.EmbeddingBag) and case.kwargs["max_norm"]
    ):
        with pytest.raises(TypeError, match="`first`.*where=" if nested else "`net`.*where="):
            bayesianize(net, where=everything)
        return
    net = bayesianize(net, where=everything, inplace=inplace)
    assert not list(net.parameters())
    guide = AutoReparameterization(net)
    assert set(guide) == set(values)
    assert all(torch.equal(guide[name].median(), value) for name, value in values.items())

    plain = to_deterministic(net, guide)
    assert not any(isinstance(m, PyroModule) for m in plain.modules())
    assert [type(m).__name__ for m in plain.modules()] == [type(m).__name__ for m in old.modules()]
    assert plain.state_dict().keys() == old.state_dict().keys()

    expected = attempt(runs, old, case)
    compare(attempt(runs, plain, case), expected)
    same(buffers(plain), buffers(old))
    mean, other = Standalone(net, guide, sample=False), copied(net)
    compare(attempt(runs, lambda *args, **kwargs: mean(*args, **kwargs)[0], case), expected)
    same(buffers(net), buffers(old))
    compare(attempt(runs, poutine.condition(other, values), case), expected)
    same(buffers(other), buffers(old))


@pytest.mark.parametrize("make", [AutoFlipout, AutoLRT], ids=lambda make: make.__name__)
@pytest.mark.parametrize("draw", MODULES.values(), ids=MODULES)
@given(data=st.data())
@EXAMPLES
def test_draws_without_noise(draw, make, data):
    case = draw(data)
    old = attempt(case.kind, *case.args, **case.kwargs)
    assume(isinstance(old, nn.Module))
    old.eval()
    net = attempt(bayesianize, old, where=everything)
    assume(isinstance(net, nn.Module) and not list(net.parameters()))
    network = Standalone(net, make(net, init_scale=1e-20))
    result = attempt(runs, lambda *args, **kwargs: network(*args, **kwargs)[0], case)
    compare(result, attempt(runs, old, case))
