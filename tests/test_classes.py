"""Classes of modules that have a say in their subclasses, or other arguments than torch's."""

import abc
import copy
import inspect
import pickle
from typing import Generic, TypeVar

import pytest
import torch
from kinds import GUIDES
from pyro.nn import PyroModule
from torch import nn

import pyro_bnn
from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import Predictive
from pyro_bnn.nn import BayesianLinear


class Keywords(nn.Linear):
    def __init__(self, in_features=3, **kwargs):
        super().__init__(in_features, 2, **kwargs)


class Abstract(nn.Linear, abc.ABC):
    pass


class AbstractNetwork(nn.Module, abc.ABC):
    def __init__(self):
        super().__init__()
        self.hidden = Abstract(3, 4)
        self.head = nn.Linear(4, 2)

    @abc.abstractmethod
    def activation(self, x): ...

    def forward(self, x):
        return self.head(self.activation(self.hidden(x)))


class Concrete(AbstractNetwork):
    def activation(self, x):
        return x.tanh()


class Meta(type):
    def __getitem__(cls, key):
        return key


class WithMeta(nn.Linear, metaclass=Meta):
    pass


class Tagged(nn.Linear):
    registry: list[str] = []

    def __init_subclass__(cls, tag, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.tag = tag
        cls.registry.append(tag)


class TaggedOnce(Tagged, tag="once"):
    pass


class Slotted(nn.Linear):
    __slots__ = ("note",)

    def __init__(self, *args):
        super().__init__(*args)
        self.note = ["kept"]


T = TypeVar("T")


class Typed(nn.Linear, Generic[T]):
    pass


NETWORKS = {
    "keywords": Keywords,
    "abstract": lambda: Abstract(3, 2),
    "abstract network": Concrete,
    "metaclass": lambda: WithMeta(3, 2),
    "arguments of subclasses": lambda: TaggedOnce(3, 2),
    "slots": lambda: Slotted(3, 2),
    "generic": lambda: Typed(3, 2),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
class TestClasses:
    @pytest.mark.parametrize("guide", GUIDES, ids=lambda row: row.name)
    def test_a_converted_network_computes_what_torchs_does(self, make, guide):
        net = make()
        converted = pyro_bnn.bayesianize(net)
        assert isinstance(converted, type(net))
        x = torch.randn(5, 3)
        guide = guide.make(converted, init_scale=1e-7)
        torch.testing.assert_close(Standalone(converted, guide)(x)[0], net(x))
        samples = Predictive(converted, guide=guide, num_samples=2, return_sites=["_RETURN"])(x)
        torch.testing.assert_close(samples["_RETURN"][1], net(x))

    def test_it_need_not_be_selected(self, make):
        net = nn.Sequential(make(), nn.Linear(2, 1))
        converted = pyro_bnn.bayesianize(net, where="last_layer")
        guide = AutoLRT(converted, init_scale=1e-7)
        assert set(guide) == {"1.weight", "1.bias"}
        x = torch.randn(5, 3)
        torch.testing.assert_close(Standalone(converted, guide)(x)[0], net(x))

    @pytest.mark.parametrize("where", [None, "last_layer"])
    def test_copies_pickles_and_plain_networks(self, make, where):
        net = nn.Sequential(make(), nn.Linear(2, 1))
        converted = pyro_bnn.bayesianize(net, where=where)
        x = torch.randn(5, 3)
        for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
            assert [type(m) for m in other.modules()] == [type(m) for m in converted.modules()]
            plain = pyro_bnn.to_deterministic(other, AutoLRT(other))
            assert [type(m) for m in plain.modules()] == [type(m) for m in net.modules()]
            torch.testing.assert_close(plain(x), net(x))


def test_pyros_class_of_an_abstract_one_is_that_of_a_conversion():
    converted = pyro_bnn.bayesianize(Concrete())
    assert type(converted) is PyroModule[Concrete]
    assert isinstance(converted, AbstractNetwork)
    assert not isinstance(converted, Abstract)
    assert isinstance(converted.hidden, Abstract)
    assert not isinstance(Concrete(), PyroModule[Concrete])


def test_conversion_does_not_run_what_a_class_does_to_its_subclasses():
    assert pyro_bnn.bayesianize(TaggedOnce(3, 2)).tag == "once"
    assert Tagged.registry == ["once"]


@pytest.mark.parametrize("inplace", [True, False])
def test_slots_are_kept(inplace):
    net = Slotted(3, 2)
    converted = pyro_bnn.bayesianize(net, inplace=inplace)
    assert converted.note == ["kept"]
    assert (converted.note is net.note) == inplace
    assert pyro_bnn.to_deterministic(converted, AutoLRT(converted)).note == ["kept"]


def test_subclasses_of_layers_take_arguments():
    class Base(BayesianLinear):
        def __init_subclass__(cls, tag, **kwargs):
            super().__init_subclass__(**kwargs)
            cls.tag = tag

    class Layer(Base, tag=3):
        def __init__(self, in_features=3, **kwargs):
            super().__init__(in_features, 2, **kwargs)

    assert Layer.tag == 3
    shown = inspect.signature(Layer)
    assert list(shown.parameters) == [
        "in_features",
        "prior",
        "bias_prior",
        "out_features",
        "bias",
        "device",
        "dtype",
    ]
    # Only what is passed on by place has one.
    assert [p.name for p in shown.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        "in_features"
    ]
    assert shown.bind(4, bias=False, out_features=2)


def test_arguments_in_front_of_torchs_are_shown_in_front():
    class Layer(BayesianLinear):
        def __init__(self, note, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.note = note

    assert list(inspect.signature(Layer).parameters)[:3] == ["note", "in_features", "out_features"]
    assert inspect.signature(Layer).bind("a", 3, 2).arguments["out_features"] == 2
    assert Layer("a", 3, 2).note == "a"
