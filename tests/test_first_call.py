"""What the first call of a guide takes for latent variables, and where these start."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from models import bayesian_mlp, within
from pyro import poutine
from pyro.contrib.forecast import Forecaster, ForecastingModel
from pyro.infer.autoguide import init_to_feasible, init_to_median, init_to_sample, init_to_value
from pyro.infer.reparam import DiscreteCosineReparam, HaarReparam, LatentStableReparam
from pyro.nn import PyroModule

from pyro_bnn.guides import AutoLRT, AutoReparameterization

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda k: k.name)


def observe(name, fn, value):
    return pyro.sample(name, fn, obs=value)


def by_default(y=None):
    pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def required(y):
    by_default(y)


def by_keyword(**data):
    pyro.sample("y", dist.Normal(0.0, 1.0), infer={}, obs=data.get("y"))


def in_a_mapping(batch):
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=batch.get("y"))


def by_a_helper(y=None):
    with pyro.plate("data", 3):
        observe("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), y)


def in_a_comprehension(ys=(None, None)):
    [pyro.sample(f"y{i}", dist.Normal(0.0, 1.0), obs=y) for i, y in enumerate(ys)]


class AsAttribute(PyroModule):
    y = None

    def forward(self):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=self.y)


@pytest.mark.parametrize(
    ("model", "args"),
    [
        (by_default, ()),
        (by_default, (None,)),
        (required, (None,)),
        (by_keyword, ()),
        (in_a_mapping, ({},)),
        (by_a_helper, ()),
        (in_a_comprehension, ()),
        (partial(by_default, y=None), ()),
        (partial(by_default, None), ()),
        (AsAttribute(), ()),
    ],
)
def test_a_site_that_could_be_data_is_refused(model, args):
    guide = AutoReparameterization(model)
    with pytest.raises(ValueError, match=r"observes nothing.*'y.*`obs` is None"):
        guide(*args)
    assert not list(guide)
    assert guide.prototype_trace is None


@EACH
def test_a_model_without_observed_arguments_needs_no_data(kind):
    net = bayesian_mlp(3, 2)

    def model(x=None, hidden=None):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        mean = net(torch.ones(2, 3)).sum(-1)
        with pyro.plate("plate", 2):
            pyro.sample("z", dist.Normal(mean, scale))

    guide = kind.make(model)
    found = guide()
    assert set(found) == {"0.weight", "0.bias", "scale", "z"} == set(guide)
    assert found["z"].shape == (2,)


def test_a_latent_variable_beside_known_data():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    guide = AutoReparameterization(model)
    assert set(guide(torch.tensor(1.0))) == {"z"}


INITIAL = [None, init_to_feasible, init_to_median, init_to_sample]


@pytest.mark.parametrize("init_loc_fn", INITIAL)
def test_default_values_give_way_to_reparameterizers(init_loc_fn):
    """Pyro warns where it drops a value that was chosen, and warnings are errors here."""

    def model():
        pyro.sample("x", dist.Stable(1.5, 0.0, torch.ones(()), 0.0))

    model = poutine.reparam(model, {"x": LatentStableReparam()})
    guide = AutoReparameterization(model, init_loc_fn=init_loc_fn)
    assert set(guide()) == {"x_uniform", "x_exponential"}


def test_chosen_values_that_a_reparameterizer_drops_are_told():
    def model():
        pyro.sample("x", dist.Stable(1.5, 0.0, torch.ones(()), 0.0))

    chosen = init_to_value(values={"x": torch.tensor(2.0)})
    model = poutine.reparam(model, {"x": LatentStableReparam()})
    with pytest.warns(RuntimeWarning, match="does not commute"):
        AutoReparameterization(model, init_loc_fn=chosen)()


@pytest.mark.parametrize("transform", [DiscreteCosineReparam, HaarReparam])
@pytest.mark.parametrize("shape", [(8,), (4, 8)])
def test_values_go_through_reparameterizers(transform, shape):
    """The posterior starts at the transform of the chosen value, without a gradient of it."""

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))

    reparam = transform()
    value = torch.randn(shape).requires_grad_()
    guide = AutoLRT(
        poutine.reparam(model, {"x": reparam}),
        init_loc_fn=init_to_value(values={"x": value}),
        init_scale=1e-6,
    )
    guide()
    (name,) = guide
    expected = reparam.transform(value).detach()
    torch.testing.assert_close(guide[name].median(), expected)


def test_the_weights_of_a_network_under_a_reparameterizer():
    net = bayesian_mlp(4, 3)
    model = poutine.reparam(net, {"0.weight": DiscreteCosineReparam()})
    guide = AutoLRT(model)
    assert set(guide) == {"0.weight_dct", "0.bias"}
    guide_trace = poutine.trace(guide).get_trace(torch.ones(2, 4))
    trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(torch.ones(2, 4))
    drawn = guide_trace.nodes["0.weight_dct"]["value"] + 0
    expected = DiscreteCosineReparam().transform.inv(drawn)
    torch.testing.assert_close(trace.nodes["0.weight"]["value"], expected)


class Walk(ForecastingModel):
    """A random walk, whose steps beyond the data are drawn from the prior."""

    def model(self, zero_data, covariates):
        scale = pyro.sample("scale", dist.LogNormal(-3.0, 0.1))
        with self.time_plate:
            steps = pyro.sample("steps", dist.Normal(0.0, scale))
        self.predict(dist.Normal(zero_data, 1e-3), steps.cumsum(-1).unsqueeze(-1))


def test_forecasts():
    data = torch.full((8, 1), 0.5)
    model = Walk()
    guide = AutoReparameterization(model, init_scale=1e-4)
    kwargs = {"guide": guide, "num_steps": 1, "learning_rate": 1e-6, "log_every": 0}
    forecaster = Forecaster(model, data, torch.zeros(8, 0), **kwargs)
    assert set(guide) == {"scale", "steps"}
    samples = forecaster(data, torch.zeros(11, 0), num_samples=500)
    assert samples.shape == (500, 3, 1)
    # It goes on from the mean of its steps so far, by steps of the scale that was learned.
    last, scale = guide["steps"].median().sum(), guide["scale"].median()
    variance = scale.square() * torch.arange(1, 4).unsqueeze(-1)
    assert within(samples, last.expand(3, 1))
    assert within((samples - last).square(), variance)
