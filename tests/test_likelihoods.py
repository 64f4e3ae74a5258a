"""Likelihoods: the distribution of the targets, and what they refuse."""

from __future__ import annotations

import copy
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from models import within

from pyro_bnn import BNN, likelihoods
from pyro_bnn.likelihoods import (
    Bernoulli,
    Categorical,
    HeteroscedasticNormal,
    NegativeBinomial,
    Normal,
    Ordinal,
    Poisson,
    StudentT,
)

N = 6
D = torch.double


def normal(y, loc, scale):
    return -0.5 * ((y - loc) / scale) ** 2 - torch.log(scale) - 0.5 * math.log(2 * math.pi)


def student(y, loc, scale, df):
    constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    return constant - scale.log() - (df + 1) / 2 * (1 + ((y - loc) / scale) ** 2 / df).log()


def binomial(y, f, r):
    mean = f.exp()
    constant = torch.lgamma(y + r) - torch.lgamma(y + 1) - math.lgamma(r)
    return constant + r * (r / (r + mean)).log() + y * (mean / (r + mean)).log()


def ordinal(y, f):
    cut = torch.tensor([-math.inf, math.log(1 / 2), math.log(2), math.inf], dtype=D)
    below = torch.sigmoid(cut - f.unsqueeze(-1))
    return (below[..., 1:] - below[..., :-1]).gather(-1, y.unsqueeze(-1)).squeeze(-1).log()


HALF = torch.tensor(0.5, dtype=D)
CLASSES = torch.tensor([0, 2, 1, 1, 0, 2])
COUNTS = torch.tensor([0.0, 3, 1, 7, 2, 0], dtype=D)
REALS = torch.linspace(-1, 2, N, dtype=D)
LABELS = torch.tensor([1.0, 0, 0, 1, 1, 0], dtype=D)

# Likelihood, number of outputs, targets, and the logarithmic density of each.
KINDS = {
    "Categorical": (
        Categorical(),
        3,
        CLASSES,
        lambda y, f: -F.cross_entropy(f, y, reduction="none"),
    ),
    "Bernoulli": (
        Bernoulli(),
        1,
        LABELS,
        lambda y, f: -F.binary_cross_entropy_with_logits(f[:, 0], y, reduction="none"),
    ),
    "Normal": (Normal(scale=0.5), 1, REALS, lambda y, f: normal(y, f[:, 0], HALF)),
    "HeteroscedasticNormal": (
        HeteroscedasticNormal(min_scale=0.1),
        2,
        REALS,
        lambda y, f: normal(y, f[:, 0], 0.1 + F.softplus(f[:, 1])),
    ),
    "StudentT": (StudentT(3.0, 0.5), 1, REALS, lambda y, f: student(y, f[:, 0], HALF, 3.0)),
    "Poisson": (
        Poisson(),
        1,
        COUNTS,
        lambda y, f: y * f[:, 0] - f[:, 0].exp() - torch.lgamma(y + 1),
    ),
    "NegativeBinomial": (
        NegativeBinomial(2.5),
        1,
        COUNTS,
        lambda y, f: binomial(y, f[:, 0], 2.5),
    ),
    "Ordinal": (Ordinal(3), 1, CLASSES, lambda y, f: ordinal(y, f[:, 0])),
}
each = pytest.mark.parametrize("name", KINDS)


def outputs(num: int, *shape: int) -> torch.Tensor:
    return torch.randn(N, *shape, num, dtype=D)


def test_every_likelihood_has_a_row():
    assert set(KINDS) == set(likelihoods.__all__) - {"Likelihood"}


@each
def test_density_is_that_of_the_formula(name):
    likelihood, num, y, log_prob = KINDS[name]
    f = outputs(num)
    made = likelihood(f)
    assert made.batch_shape == (N,)
    assert made.event_shape == ()
    expected = log_prob(y, f)
    torch.testing.assert_close(made.log_prob(likelihood.target(y, made)), expected)
    # Several targets for each row are independent.
    g = outputs(num, 4)
    many = likelihood(g)
    assert (many.batch_shape, many.event_shape) == ((N,), (4,))
    several = y.unsqueeze(-1).expand(N, 4)
    total = sum(log_prob(y, g[:, i]) for i in range(4))
    torch.testing.assert_close(many.log_prob(likelihood.target(several, many)), total)


@each
def test_moments_are_those_of_samples(name):
    likelihood, num, _, _ = KINDS[name]
    made = likelihood(outputs(num))
    samples = made.sample((20_000,)).double()
    if name in ("Categorical", "Ordinal"):
        assert within(F.one_hot(samples.long(), 3).double(), made.probs)
        return
    assert within(samples, made.mean)
    if name != "StudentT":  # whose fourth moment is infinite
        assert within((samples - made.mean).square(), made.variance)


@each
@pytest.mark.parametrize("as_given", ["(N, 1)", "numpy", "list", "integers", "(N,) outputs"])
def test_targets_may_have_other_shapes_and_types(name, as_given):
    likelihood, num, y, log_prob = KINDS[name]
    f = outputs(num)
    made = likelihood(f)
    if as_given == "(N,) outputs" and num == 1:
        made = likelihood(f[:, 0])
    whole = y if name in ("Categorical", "Ordinal", "Poisson") else y.round()
    given = {
        "(N, 1)": y.unsqueeze(-1),
        "numpy": y.numpy(),
        "list": y.tolist(),
        "integers": whole.int(),
        "(N,) outputs": y,
    }[as_given]
    target = likelihood.target(given, made)
    expected = log_prob(whole if as_given == "integers" else y, f)
    torch.testing.assert_close(made.log_prob(target), expected)


@pytest.mark.parametrize(
    "given",
    [
        lambda y: pd.Series(y, index=range(9, 9 + N)),
        lambda y: pd.DataFrame({"y": y}, index=range(9, 9 + N)),
        lambda y: y[::-1].copy()[::-1],
        lambda y: y.astype(">f4"),
        lambda y: pd.array(y),
        lambda y: np.broadcast_to(y, (1, N))[0],
    ],
    ids=["Series", "DataFrame", "negative stride", "byte order", "pandas array", "read-only"],
)
def test_targets_are_whatever_numpy_makes_an_array_of(given):
    made = Normal(0.5)(outputs(1))
    y = np.arange(float(N))
    assert Normal(0.5).target(given(y), made).tolist() == y.tolist()


@each
@pytest.mark.parametrize("shape", [(N + 1,), (N, 7), (), (1,)])
def test_wrong_shapes_are_refused(name, shape):
    likelihood, num, y, _ = KINDS[name]
    made = likelihood(outputs(num))
    with pytest.raises(ValueError, match="`y` has the shape"):
        likelihood.target(torch.zeros(shape, dtype=y.dtype), made)


@pytest.mark.parametrize(
    ("likelihood", "num", "values", "message"),
    [
        (Categorical(), 3, [0, 1, 2, 3], "classes from 0 to 3, but the network has 3 outputs"),
        (Categorical(), 3, [1, 1, 2, 3], "number the classes from 0"),
        (Categorical(), 3, [0, 1, 2, -100], "mask rows"),
        (Categorical(), 3, [0, 1, 2, 0.5], "fractions"),
        (Categorical(), 3, [0, 1, 2, math.nan], "fractions"),
        (Categorical(), 3, [0, 1, 2, math.inf], "infinities"),
        (Ordinal(3), 1, [0, 1, 2, 3], "classes from 0 to 3"),
        (Bernoulli(), 1, [-1, 1, 1, -1], "0 and 1"),
        (Bernoulli(), 1, [0, 1, 0.5, 1], "0 and 1, such as 0.5"),
        (Normal(0.1), 1, [0, 1, math.nan, 1], "such as nan"),
        (StudentT(), 1, [0, 1, math.nan, 1], "such as nan"),
        (HeteroscedasticNormal(), 2, [0, 1, math.nan, 1], "such as nan"),
        (Poisson(), 1, [0, 1, -1, 1], "counts 0, 1, 2, ..., such as -1"),
        (NegativeBinomial(), 1, [0, 1, 0.5, 1], "such as 0.5"),
    ],
)
def test_values_outside_of_the_support_are_refused(likelihood, num, values, message):
    for shape in [(4,), (2, 2)]:
        made = likelihood(torch.zeros(*shape, num))
        with pytest.raises(ValueError, match=message):
            likelihood.target(torch.tensor(values).reshape(shape), made)


def test_one_hot_targets_are_refused_with_the_way_out():
    likelihood = Categorical()
    with pytest.raises(ValueError, match=r"y.argmax\(-1\)"):
        likelihood.target(F.one_hot(CLASSES), likelihood(outputs(3)))


def test_targets_on_another_device_are_refused():
    likelihood = Normal(0.1)
    with pytest.raises(ValueError, match=r"`y.to\('cpu'\)`"):
        likelihood.target(torch.zeros(N, device="meta"), likelihood(outputs(1)))


def test_strange_targets_are_refused():
    likelihood = Normal(0.1)
    with pytest.raises(TypeError, match="numbers"):
        likelihood.target(["a"] * N, likelihood(outputs(1)))
    with pytest.raises(TypeError, match="real"):
        likelihood.target(torch.zeros(N, dtype=torch.cfloat), likelihood(outputs(1)))
    with pytest.raises(TypeError, match="real"):
        likelihood.target(np.full(N, 1j), likelihood(outputs(1)))
    with pytest.raises(TypeError, match=r"y.to_dense\(\)"):
        likelihood.target(torch.zeros(N).to_sparse(), likelihood(outputs(1)))
    with pytest.raises(ValueError, match="NaN or fractions"):
        Categorical().target([math.nan] * N, Categorical()(outputs(3)))


@pytest.mark.parametrize(
    ("likelihood", "shape", "message"),
    [
        (Categorical(), (N, 1), "Bernoulli"),
        (Categorical(), (N,), "nn.Linear"),
        (Categorical(class_dim=-3), (N, 3), "one for each class"),
        (HeteroscedasticNormal(), (N, 3), "2 \\* targets"),
        (HeteroscedasticNormal(), (N,), "2 \\* targets"),
        (Normal(torch.ones(3)), (N, 4), "`scale` has the shape"),
        (Normal(torch.ones(3)), (N, 1), "`scale` has the shape"),
        (Poisson(), (), "scalar"),
        (Normal(), (), "scalar"),
    ],
)
def test_wrong_outputs_are_refused(likelihood, shape, message):
    with pytest.raises(ValueError, match=message):
        likelihood(torch.zeros(shape))


def test_outputs_that_are_no_tensor_are_refused():
    with pytest.raises(TypeError, match="function from outputs to a distribution"):
        Normal()((torch.zeros(3), torch.zeros(3)))


@pytest.mark.parametrize("make", [Normal, NegativeBinomial, StudentT])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, dist.Normal(0.0, 1.0)])
def test_quantities_are_positive(make, value):
    with pytest.raises(ValueError, match=r"positive"):
        make(value)


def test_strange_arguments_are_refused():
    with pytest.raises(TypeError, match="a prior, or None"):
        Normal("learned")
    with pytest.raises(ValueError, match="class_dim"):
        Categorical(class_dim=1)
    with pytest.raises(ValueError, match="num_classes"):
        Ordinal(1)
    with pytest.raises(ValueError, match="min_scale"):
        HeteroscedasticNormal(min_scale=0.0)


def test_image_classes_are_in_the_second_dimension():
    likelihood = Categorical(class_dim=-3)
    f, y = torch.randn(N, 3, 4, 5), torch.randint(3, (N, 4, 5))
    made = likelihood(f)
    expected = -F.cross_entropy(f, y, reduction="none").sum((1, 2))
    torch.testing.assert_close(made.log_prob(likelihood.target(y, made)), expected)


def test_a_scale_for_each_target():
    scale = torch.tensor([0.1, 0.5, 2.0], dtype=D)
    f, y = outputs(3), outputs(3)
    expected = normal(y, f, scale).sum(-1)
    torch.testing.assert_close(Normal(scale)(f).log_prob(y), expected)
    learned = Normal(shape=(3,))
    with torch.no_grad():
        learned.scale_unconstrained.copy_(scale.log())
    torch.testing.assert_close(learned(f).log_prob(y), expected)
    # ... also where rows have several steps.
    g = outputs(3, 4)
    torch.testing.assert_close(Normal(scale)(g).log_prob(g), normal(g, g, scale).sum((1, 2)))


def test_half_precision_is_computed_in_single():
    made = Poisson()(torch.full((N, 1), 3.0, dtype=torch.bfloat16))
    assert made.mean.dtype is torch.float
    assert Poisson().target(torch.tensor([257] * N), made).tolist() == [257] * N


@pytest.mark.parametrize("event", [0, 1])
def test_random_scales_line_up_with_plates_of_samples(event):
    shape = (3,)[:event]
    likelihood = Normal(dist.HalfNormal(torch.ones(shape)))

    def model():
        with pyro.plate("particles", 5, dim=-2):
            made = likelihood(torch.zeros(5, N, 3))
        with pyro.plate("data", N):
            return pyro.sample("obs", made)

    trace = pyro.poutine.trace(model).get_trace()
    scale = trace.nodes["scale"]["value"]
    assert scale.shape == (5, 1, *shape)
    made = trace.nodes["obs"]["fn"]
    assert (made.batch_shape, made.event_shape) == ((5, N), (3,))
    assert (made.stddev == scale.reshape(5, 1, -1).float()).all()


@each
def test_copies_are_equal(name):
    likelihood, num, y, log_prob = KINDS[name]
    f = outputs(num)
    made = copy.deepcopy(likelihood)(f)
    torch.testing.assert_close(made.log_prob(likelihood.target(y, made)), log_prob(y, f))


@pytest.mark.parametrize(
    ("function", "y"),
    [
        (lambda f: dist.Laplace(f, 1.0), np.zeros((N, 3))),
        (lambda f: dist.Laplace(f, 1.0).to_event(1), np.zeros((N, 3))),
        (lambda f: dist.Gamma(f.exp(), 1.0), np.ones((N, 3), dtype=int)),
        (lambda f: dist.OneHotCategorical(logits=f), np.eye(3)[[0, 1, 2, 0, 1, 2]]),
        (lambda f: dist.Categorical(logits=f), CLASSES.unsqueeze(-1)),
        (lambda f: dist.MultivariateNormal(f, torch.eye(3, dtype=D)), np.zeros((N, 3))),
        (lambda f: dist.Laplace(f[:, :1], 1.0), np.zeros(N)),
        (lambda f: dist.Beta(f[:, 0].exp(), 1.0), [0.5] * N),
    ],
)
def test_functions_are_likelihoods(function, y):
    f = outputs(3)
    likelihood = BNN(torch.nn.Linear(1, 1), function).likelihood
    made = likelihood(f)
    target = likelihood.target(y, made)
    assert made.log_prob(target).shape == (N,)
    log_prob = function(f).log_prob(target.to(D))
    torch.testing.assert_close(made.log_prob(target), log_prob.reshape(N, -1).sum(-1))


def test_wrong_functions_are_refused():
    likelihood = BNN(torch.nn.Linear(1, 1), lambda f: f).likelihood
    with pytest.raises(TypeError, match=r"returned a torch.Tensor"):
        likelihood(outputs(1))
    of_torch = BNN(torch.nn.Linear(1, 1), lambda f: torch.distributions.Normal(f, 1.0)).likelihood
    with pytest.raises(TypeError, match=r"`pyro.distributions`"):
        of_torch(outputs(1))
    likelihood = BNN(torch.nn.Linear(1, 1), lambda f: dist.Normal(f.mean(), 1.0)).likelihood
    with pytest.raises(ValueError, match="one for each row"):
        likelihood(outputs(1))
    likelihood = BNN(torch.nn.Linear(1, 1), lambda f: dist.Beta(f.exp(), 1.0)).likelihood
    with pytest.raises(ValueError, match="such as 2"):
        likelihood.target(torch.full((N,), 2.0), likelihood(outputs(1)))
