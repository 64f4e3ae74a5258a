"""The properties of every layer, under every posterior."""

from __future__ import annotations

import copy
import pickle

import pyro
import pytest
import torch
from kinds import GUIDES, LAYERS
from models import Regression, within
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoFlipout, AutoLRT
from pyro_bnn.infer import Predictive, TraceKL_ELBO
from pyro_bnn.testing import check_layer

ROWS = pytest.mark.parametrize("row", LAYERS, ids=lambda row: row.name)
EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
LINEAR = [row for row in LAYERS if not row.is_recurrent]
LINEAR_ROWS = pytest.mark.parametrize("row", LINEAR, ids=lambda row: row.name)


class Total(PyroModule):
    """A layer, and the mean of what it returns for each example, also with sample dimensions."""

    def __init__(self, row, **kwargs):
        super().__init__()
        self.row = row
        self.layer = row.make(**row.args | kwargs)

    def forward(self, x):
        output = self.row.output(self.layer(x))
        scale = torch.arange(1, output.shape[-1] + 1, dtype=output.dtype)
        return (output * scale).mean(tuple(range(-self.row.output_dim, 0))).tanh()


def problem(row, size=5, dtype=torch.float, **kwargs):
    x = row.x(size, dtype=dtype)
    return Regression(Total(row, dtype=dtype, **kwargs)), x, torch.randn(size, dtype=dtype)


def conditioned(row, layer, values, x):
    return row.output(poutine.condition(layer, values)(x))


@ROWS
@EACH
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TraceKL_ELBO])
def test_trains(row, kind, elbo):
    model, x, y = problem(row)
    guide = kind.make(model)
    before = copy.deepcopy(guide.state_dict())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo())
    for _ in range(3):
        assert torch.isfinite(torch.tensor(svi.step(x, y)))
    after = guide.state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[n], after[n]) for n, _ in guide.named_parameters())


@ROWS
@EACH
def test_contract(row, kind):
    check_layer(lambda: Total(row), row.x(4), guides=(kind.make,))


@ROWS
@EACH
def test_several_forward_passes_before_one_backward(row, kind):
    net = Total(row, dtype=torch.float64)
    module = Standalone(net, kind.make(net, init_scale=0.1))
    xs = [row.x(size, dtype=torch.float64) for size in (5, 1, 3)]

    def losses():
        for seed, x in enumerate(xs):
            torch.manual_seed(seed)
            out, kl = module(x)
            yield out.square().sum() + kl

    together = torch.autograd.grad(sum(list(losses())), list(module.parameters()))
    one_by_one = [torch.autograd.grad(loss, list(module.parameters())) for loss in losses()]
    for i, gradient in enumerate(together):
        torch.testing.assert_close(gradient, sum(g[i] for g in one_by_one))


@ROWS
@EACH
def test_gradients_against_finite_differences(row, kind):
    if kind.name == "AutoMixture":
        return  # its draws are not smooth in the parameters, only their distribution is
    net = Total(row, dtype=torch.float64)
    module = Standalone(net, kind.make(net, init_scale=0.1))
    x = row.x(2, dtype=torch.float64)
    parameters = dict(module.named_parameters())
    directions = [torch.randn_like(p) for p in parameters.values()]

    def along(step):
        torch.manual_seed(0)
        moved = [p + step * d for p, d in zip(parameters.values(), directions, strict=True)]
        by_name = dict(zip(parameters, moved, strict=True))
        return torch.stack([v.sum() for v in torch.func.functional_call(module, by_name, (x,))])

    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, (zero,))


@ROWS
@EACH
def test_gradient_of_the_input(row, kind):
    if row.num_embeddings:
        return
    net = Total(row, dtype=torch.float64)
    module = Standalone(net, kind.make(net, init_scale=0.1))

    def output(x):
        torch.manual_seed(0)
        return module(x)[0]

    x = row.x(2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(output, (x,), fast_mode=True)


@ROWS
@EACH
def test_batch_equals_loop_under_one_weight(row, kind):
    layer = row.make(**row.args)
    guide = kind.make(layer, init_scale=0.1)
    x = row.x(4)
    with guide.shared_draws():
        weights = guide(x)
    batch = conditioned(row, layer, weights, x)
    each = [conditioned(row, layer, weights, one.unsqueeze(0)) for one in x]
    torch.testing.assert_close(batch, torch.cat(each))


@ROWS
@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odd_batches(row, kind, dtype):
    layer = row.make(**row.args, dtype=dtype)
    module = Standalone(layer, kind.make(layer))
    out = row.output(module(row.x(4, dtype=dtype))[0])
    assert out.dtype == dtype
    assert row.output(module(row.x(1, dtype=dtype))[0]).shape == (1, *out.shape[1:])
    assert row.output(module(row.x(dtype=dtype))[0]).shape == out.shape[1:]
    zero, _ = module(torch.zeros_like(row.x(4, dtype=dtype)))
    gradients = torch.autograd.grad(row.output(zero).sum(), list(module.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)
    if row.is_recurrent:
        return  # torch refuses an empty batch there
    out, kl = module(row.x(0, dtype=dtype))
    assert row.output(out).shape[0] == 0
    (row.output(out).sum() + kl).backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


@ROWS
@EACH
def test_nan_is_refused(row, kind):
    if row.num_embeddings:
        return
    model, x, y = problem(row)
    guide = kind.make(model)
    x[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        SVI(model, guide, pyro.optim.Adam({}), TraceKL_ELBO()).step(x, y)


@ROWS
@EACH
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_pickles_and_states(row, kind, copied):
    net = Total(row)
    module = Standalone(net, kind.make(net))
    fresh = Total(row)
    loaded = Standalone(fresh, kind.make(fresh))  # which never ran
    loaded.load_state_dict(module.state_dict())
    x = row.x(4)
    results = []
    for each in (module, copied(module), loaded):
        torch.manual_seed(1)
        results.append(each(x))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
    layer = copied(row.make(**row.args))
    assert type(layer) is row.make
    assert row.output(layer(x)).shape == row.output(net.layer(x)).shape


@ROWS
@EACH
def test_converts_to_another_type(row, kind):
    net = Total(row)
    module = Standalone(net, kind.make(net)).double()
    out, kl = module(row.x(3, dtype=torch.float64))
    assert out.dtype == kl.dtype == torch.float64


@ROWS
@EACH
def test_shared_layer_has_one_weight(row, kind):
    """Used twice in a forward pass, on the same input, a layer gives the same output."""
    layer = row.make(**row.args)
    draws = kind.make(layer, init_scale=0.3)(x := row.x(4))
    first, second = (conditioned(row, layer, draws, x) for _ in range(2))
    if kind.name != "AutoLRT" or not row.is_recurrent:
        torch.testing.assert_close(first, second)
    else:  # whose noise belongs to the step
        assert not torch.equal(first, second)


@ROWS
@EACH
def test_predictive_equals_the_loop(row, kind):
    model, x, y = problem(row)
    guide = kind.make(model)
    guide(x, y)
    kwargs = {"guide": guide, "num_samples": 6}
    expected = pyro.infer.Predictive(model, **kwargs)(x)
    samples = Predictive(model, **kwargs)(x)
    assert {n: s.shape for n, s in samples.items()} == {n: s.shape for n, s in expected.items()}
    draws = {name: samples[name].reshape(6, *guide[name].median().shape) for name in guide}
    expected = pyro.infer.Predictive(model.net, draws, return_sites=["_RETURN"])(x)["_RETURN"]
    assert expected.shape == (6, 5)
    for kwargs in ({}, {"parallel": True}, {"parallel": False}, {"chunk_size": 4}):
        result = Predictive(model.net, draws, return_sites=["_RETURN"], **kwargs)(x)
        torch.testing.assert_close(result["_RETURN"], expected)
    as_returned = {name: samples[name] for name in guide}  # Pyro gives them dimensions for plates
    result = Predictive(model.net, as_returned, return_sites=["_RETURN"])(x)
    torch.testing.assert_close(result["_RETURN"], expected)


@LINEAR_ROWS
@EACH
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceKL_ELBO])
def test_vectorized_particles(row, kind, elbo):
    """Their loss has the mean of that of looped ones; the shared weights give the same output."""
    model, x, y = problem(row)
    guide = kind.make(model, init_scale=0.3)
    many = elbo(num_particles=4, vectorize_particles=True)(model, guide)
    many(x, y).backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.parameters())
    with pyro.plate("samples", 6, dim=-2):
        draws = guide(x, y)
        with poutine.condition(data=draws):
            net = model.net(x)
    assert net.shape == (6, 5)
    if kind.is_shared:
        for i in range(6):
            weights = {name: draw[i, 0] for name, draw in draws.items()}
            torch.testing.assert_close(net[i], poutine.condition(model.net, weights)(x))


@ROWS
@EACH
def test_pyros_predictive_in_parallel(row, kind):
    model, x, y = problem(row)
    guide = kind.make(model)
    guide(x, y)
    predictive = pyro.infer.Predictive(model, guide=guide, num_samples=6, parallel=True)
    if row.is_recurrent:
        with pytest.raises(ValueError, match=r"pyro_bnn\.infer\.Predictive"):
            predictive(x)
        return
    samples = predictive(x)
    assert samples["obs"].shape == (6, 5)
    weights = {name: samples[name] for name in guide}
    returned = {"posterior_samples": weights, "return_sites": ["_RETURN"]}
    looped = pyro.infer.Predictive(model.net, **returned)(x)["_RETURN"]
    together = pyro.infer.Predictive(model.net, **returned, parallel=True)(x)["_RETURN"]
    torch.testing.assert_close(together.reshape(6, 5), looped)


def weights_of_examples(draw, size):
    """The shared perturbation with a sign for each output and each input channel flipped."""
    sample = draw.sample
    rows = sample.signs(size, 0, pytest.fail).expand(size, -1)
    if draw.dim() == 1:
        return sample.loc + sample.noise * rows
    columns = sample.signs(size, 1, pytest.fail).expand(size, -1)
    flips = rows.unsqueeze(-1) * columns.unsqueeze(-2)
    return sample.loc + sample.noise * flips.reshape(*flips.shape, *(1,) * (draw.dim() - 2))


VARIANTS = pytest.mark.parametrize(
    ("row", "variant"),
    [
        pytest.param(row, v, id=f"{row.name}-{v}")
        for row in LAYERS
        for v in [{}, *row.variants]
        if "proj_size" not in v and "dtype" not in v
    ],
)


@VARIANTS
def test_flipout_one_example_one_weight(row, variant):
    layer = row.make(**row.args | variant, dtype=torch.float64)
    guide = AutoFlipout(layer, init_scale=0.3)
    x = row.x(6, dtype=torch.float64)
    draws = guide(x)
    output = conditioned(row, layer, draws, x)
    each = {name: weights_of_examples(draw, 6) for name, draw in draws.items()}
    for n in range(6):
        weights = {name: w[n] for name, w in each.items()}
        expected = conditioned(row, layer, weights, x[n : n + 1])
        torch.testing.assert_close(output[n : n + 1], expected)
    for name, weights in each.items():
        flips = (weights - guide[name].loc) / torch.Tensor(draws[name].sample.noise)
        torch.testing.assert_close(flips.abs(), torch.ones_like(flips))
        signs = flips.reshape(6, -1).sign()
        assert len(signs.unique(dim=0)) > 1, "all examples have the same weight"


@pytest.mark.parametrize("row", [r for r in LAYERS if r.is_recurrent], ids=lambda r: r.name)
def test_flipout_one_example_one_weight_in_packed_sequences(row):
    layer = row.make(**row.args, num_layers=2, bidirectional=True, dtype=torch.float64)
    lengths = torch.tensor([2, 5, 1, 4, 5])
    x = torch.randn(5, 5, 3, dtype=torch.float64)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    draws = AutoFlipout(layer, init_scale=0.3)(packed)
    output, _ = pad_packed_sequence(conditioned(row, layer, draws, packed), batch_first=True)
    each = {name: weights_of_examples(draw, 5) for name, draw in draws.items()}
    for position, n in enumerate(packed.sorted_indices):
        weights = {name: w[position] for name, w in each.items()}
        expected = conditioned(row, layer, weights, x[n : n + 1, : lengths[n]])
        torch.testing.assert_close(output[n : n + 1, : lengths[n]], expected)


@VARIANTS
def test_lrt_moments_are_those_of_the_weights(row, variant):
    """Exact for maps that are linear in their weights, and for the first step of a sequence."""
    layer = row.make(**row.args | variant, dtype=torch.float64)
    guide = AutoLRT(layer, init_scale=0.2)
    x = row.x(2, dtype=torch.float64)
    if row.is_recurrent:
        if variant.get("num_layers") == 2 or variant.get("bidirectional"):
            return
        x = x[:, :1]
    size = 20_000 if row.output_dim < 4 else 4_000
    repeated = x.repeat_interleave(size, 0)
    noisy = row.output(poutine.condition(layer, guide(x))(repeated)).detach()
    noisy = noisy.unflatten(0, (2, size)).transpose(0, 1)
    if not row.is_recurrent and not variant.keys() & {"max_norm", "scale_grad_by_freq"}:
        means = guide.median()
        mean = conditioned(row, layer, means, x)
        variance = torch.zeros_like(mean)
        for name in means:
            jacobian = torch.func.jacrev(
                lambda w, name=name: conditioned(row, layer, {**means, name: w}, x)
            )(means[name])
            variance += (
                (jacobian.square() * guide[name].scale.detach().square())
                .flatten(mean.dim())
                .sum(-1)
            )
        assert within(noisy, mean)
        assert within((noisy - mean).square(), variance)
        return
    draws = Predictive(layer, guide=guide, num_samples=4_000)
    draws.return_sites = list(guide)
    weights = draws(x)
    shared = torch.vmap(lambda w: conditioned(row, layer, w, x))
    if row.is_recurrent:
        shared = lambda weights: torch.stack(
            [
                conditioned(row, layer, {n: w[i] for n, w in weights.items()}, x)
                for i in range(4_000)
            ]
        )
    exact = shared(weights).detach()
    for power in (1, 2):
        a, b = noisy**power, exact**power
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 5 * error + 1e-9).all()


@LINEAR_ROWS
def test_lrt_weight_used_twice(row):
    layer = row.make(**row.args, dtype=torch.float64)
    guide = AutoLRT(layer, init_scale=0.2)
    xs = [row.x(1, dtype=torch.float64) for _ in range(2)]
    if row.num_embeddings:
        xs = [torch.tensor([[1, 2]]), torch.tensor([[1, 3]])]
    size = 20_000 if row.output_dim < 4 else 4_000
    draws, means = guide(xs[0]), guide.median()
    noises, covariance = [], 0.0
    for x in xs:
        output = conditioned(row, layer, draws, x.expand(size, *x.shape[1:]))
        noises.append((output - conditioned(row, layer, means, x)).detach())
    for name in means:
        first, second = (
            torch.func.jacrev(
                lambda w, name=name, x=x: conditioned(row, layer, {**means, name: w}, x)
            )(means[name])
            for x in xs
        )
        variance = guide[name].scale.detach().square()
        covariance = covariance + (first * second * variance).flatten(noises[0].dim()).sum(-1)
    assert within(noises[0] * noises[1], covariance[0])


@ROWS
@pytest.mark.parametrize("kind", [k for k in GUIDES if k.is_shared], ids=lambda k: k.name)
def test_shared_posteriors_have_one_draw_for_a_forward_pass(row, kind):
    layer = row.make(**row.args)
    module = Standalone(layer, kind.make(layer, init_scale=0.3))
    x = row.x(1).expand(4, *row.input)
    out = row.output(module(x)[0])
    torch.testing.assert_close(out, out[:1].expand_as(out))
    assert not torch.equal(out, row.output(module(x)[0]))


@ROWS
@pytest.mark.parametrize("kind", [k for k in GUIDES if not k.is_shared], ids=lambda k: k.name)
def test_examples_have_weights_of_their_own(row, kind):
    layer = row.make(**row.args)
    module = Standalone(layer, kind.make(layer, init_scale=0.3))
    out = row.output(module(row.x(1).expand(12, *row.input))[0]).flatten(1)
    assert len(out.unique(dim=0)) > 6


COMPILED = ("BayesianConv2d", "BayesianConvTranspose1d", "BayesianEmbedding")


@pytest.mark.parametrize("row", [r for r in LAYERS if r.name in COMPILED], ids=lambda r: r.name)
@EACH
def test_compiles_in_one_graph(row, kind):
    torch._dynamo.reset()
    net = Total(row)
    module = Standalone(net, kind.make(net))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = row.x(4)
    compiled(x)
    torch.testing.assert_close(compiled(x)[1], module(x)[1])


@pytest.mark.parametrize("row", [r for r in LAYERS if r.is_recurrent], ids=lambda r: r.name)
@EACH
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiles_around_recurrent_layers(row, kind):
    """As around torch's own, which are left as they are."""
    torch._dynamo.reset()
    net = Total(row)
    module = Standalone(net, kind.make(net))
    compiled = torch.compile(module, backend="aot_eager")
    x = row.x(4)
    compiled(x)
    torch.testing.assert_close(compiled(x)[1], module(x)[1])


@EACH
def test_a_network_of_all_of_them(kind):
    net = PyroModule[nn.Sequential](
        *(
            make(**args)
            for make, args in [
                (LAYERS[2].make, {"in_channels": 1, "out_channels": 4, "kernel_size": 3}),
                (nn.ReLU, {}),
                (nn.MaxPool2d, {"kernel_size": 2}),
                (LAYERS[5].make, {"in_channels": 4, "out_channels": 2, "kernel_size": 2}),
                (nn.Flatten, {}),
                (LAYERS[0].make, {"in_features": 50, "out_features": 1}),
            ]
        )
    )
    model, x = Regression(net), torch.randn(3, 1, 10, 10)
    guide = kind.make(model)
    for elbo in (Trace_ELBO, TraceKL_ELBO):
        with pytest.raises(ValueError, match=r"pool.*pyro_bnn\.infer\.Predictive"):
            elbo(num_particles=2, vectorize_particles=True).loss(model, guide, x, torch.ones(3))
    with pytest.raises(ValueError, match=r"pool.*pyro_bnn\.infer\.Predictive"):
        pyro.infer.Predictive(model, guide=guide, num_samples=2, parallel=True)(x)
    for parallel in (None, True, False):
        samples = Predictive(model, guide=guide, num_samples=2, parallel=parallel)(x)
        assert samples["obs"].shape == (2, 3)
