"""Training: the recipe, what it reports, and what it refuses."""

from __future__ import annotations

import copy
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import Regression, bayesian_mlp, within
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyro_bnn import BNN, bayesianize, fit
from pyro_bnn._tensors import map_tensors
from pyro_bnn.guides import AutoLRT, AutoRadial, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.likelihoods import Categorical, Normal
from pyro_bnn.models._batches import batches
from pyro_bnn.models._contexts import unchanged_on_error
from pyro_bnn.models._held_out import EarlyStopping, log_density
from pyro_bnn.models._optimizer import Clipping, schedule

matplotlib.use("Agg")
N = 24


def data(num: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(num, 3)
    return x, x.sum(-1) + 0.1 * torch.randn(num)


DATA = data()


def bnn(**kwargs) -> tuple[BNN, AutoLRT]:
    model = BNN(nn.Linear(3, 1), Normal(0.5), **kwargs)
    return model, AutoLRT(model)


def state(*modules: nn.Module) -> list[torch.Tensor]:
    return [x.clone() for module in modules for x in module.state_dict().values()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# The recipe.


def test_reaches_the_optimum_of_a_conjugate_model():
    """Orthogonal inputs, so that the posterior is exact and the bound the log evidence."""
    x = math.sqrt(N) * torch.linalg.qr(torch.randn(N, 3))[0]
    y = x @ torch.tensor([1.0, -0.5, 0.2]) + 0.5 * torch.randn(N)
    model = BNN(bayesianize(nn.Linear(3, 1, bias=False)), Normal(0.5))
    guide = AutoReparameterization(model)
    settings = {"batch_size": N, "num_particles": 2, "scale_lr": 0.01}
    history = fit(model, guide, (x, y), epochs=1000, **settings)
    precision = N / 0.25 + 1
    posterior = guide["weight" if "weight" in guide else "net.weight"].base()
    torch.testing.assert_close(posterior.mean[0], x.T @ y / 0.25 / precision, rtol=0, atol=5e-3)
    torch.testing.assert_close(
        posterior.stddev, torch.full((1, 3), precision**-0.5), rtol=0.03, atol=0
    )
    evidence = dist.MultivariateNormal(torch.zeros(N), x @ x.T + 0.25 * torch.eye(N)).log_prob(y)
    bound = torch.tensor(history["bound"][-300:])
    assert within(bound, evidence / N - 5e-4, 10)


def list_of_guides() -> tuple[BNN, AutoGuideList]:
    pyro.clear_param_store()  # where Pyro's guides find what others of their name have learned
    torch.manual_seed(0)
    model = BNN(nn.Linear(3, 1), Normal(0.5))
    guide = AutoGuideList(model)
    guide.append(AutoReparameterization(poutine.block(model, hide=["net.bias"])))
    guide.append(AutoNormal(poutine.block(model, expose=["net.bias"]), init_scale=0.1))
    return model, guide


def test_a_list_of_guides_takes_the_steps_of_a_loop_by_hand():
    model, guide = list_of_guides()
    stop = lambda run: run.num_steps == 4
    settings = {"warmup": 0, "seed": 1, "callbacks": [stop], "clip_factor": None}
    fit(model, guide, DATA, 8, lr=0.01, scale_lr=0.03, **settings)

    twin, twin_guide = list_of_guides()
    twin_guide(*DATA)
    scales = [twin_guide[0]["net.weight"].scale_unconstrained]
    others = [p for p in twin_guide.parameters() if p is not scales[0]]
    assert len(others) == 3
    groups = [{"params": others}, {"params": scales, "lr": 0.03}]
    optimizer = torch.optim.Adam(groups, 0.01, betas=(0.9, 0.99))
    loss = TraceKL_ELBO()(twin, twin_guide)
    torch.manual_seed(1)
    for _ in range(4):
        optimizer.zero_grad()
        loss(*DATA).backward()
        optimizer.step()
    torch.testing.assert_close(state(guide), state(twin_guide))


def test_a_list_of_guides_is_validated_and_resumed(tmp_path):
    results = []
    for path, ends in (("a", [None]), ("b", [5, None])):
        for end in ends:
            pyro.set_rng_seed(0)
            model, guide = list_of_guides()

            def interrupt(run, end=end):
                if run.num_steps == end:
                    raise KeyboardInterrupt

            settings = {"checkpoint": tmp_path / path, "checkpoint_every": 1, "resume": True}
            with nullcontext() if end is None else pytest.raises(KeyboardInterrupt):
                fit(model, guide, DATA, 8, validation=DATA, callbacks=[interrupt], **settings)
        results.append([*state(model, guide), guide.median()["net.bias"]])
    assert equal(*results)


def test_history_has_the_terms_of_the_bound():
    model, guide = bnn()
    x, y = data()
    seen, pairs = [], []

    def callback(run):
        torch.manual_seed(run.num_steps)
        pairs.append(copy.deepcopy((model, guide)))

    history = fit(model, guide, (x, y), epochs=8, callbacks=[callback, seen.append])
    assert [len(column) for column in history.values()] == [8] * len(history)
    assert history["step"] == list(range(1, 9))
    assert history["epoch"] == history["step"]
    assert history["kl_weight"] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0])
    rates = [0.01 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(1, 5)]
    assert history["lr"] == pytest.approx([0.01] * 4 + rates)
    for bound, likelihood, kl in list(zip(*map(history.get, KEYS), strict=True)):
        assert bound == likelihood - kl
        assert kl > 0
    assert seen == [seen[0]] * 8
    # A step reports the bound before it moves.
    for step in (4, 7):
        torch.manual_seed(step)
        bound = -TraceKL_ELBO().loss(*pairs[step - 1], x, y) / N
        assert bound == pytest.approx(history["bound"][step])


KEYS = ("bound", "log_likelihood", "kl")


@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_tempering_leaves_the_reported_bound_alone(weight):
    """Without steps that matter, the terms do not depend on the weight."""
    histories = []
    for kl_weight in (1.0, weight):
        torch.manual_seed(0)
        model, guide = bnn()
        histories.append(
            fit(model, guide, data(), 3, lr=1e-12, scale_lr=1e-12, kl_weight=kl_weight, warmup=0)
        )
    for key in KEYS:
        assert histories[0][key] == pytest.approx(histories[1][key], rel=1e-4)
    assert histories[1]["kl_weight"] == [weight] * 3


def test_default_number_of_epochs_makes_20_000_steps():
    model, guide = bnn()
    stop = lambda run: 20_000 <= run.total_steps < 20_003 or pytest.fail(str(run.total_steps))
    assert fit(model, guide, data(300), callbacks=[stop])["step"] == [1]


def test_schedules_count_the_steps_of_all_batches():
    """Three batches are two steps of two batches, of which the last has one."""
    model, guide = bnn()
    history = fit(model, guide, data(), epochs=3, batch_size=10, accumulate=2)
    assert history["step"] == list(range(1, 7))
    assert history["epoch"] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    assert history["kl_weight"] == pytest.approx([0.5, 0.75, 1.0, 1.0, 1.0, 1.0])
    assert history["lr"] == pytest.approx([0.01, 0.01, 0.01, 0.0075, 0.0025, 0.0])


@pytest.mark.parametrize("vectorize_particles", [False, True])
def test_particles_leave_the_reported_bound_alone(vectorize_particles):
    histories = []
    for num_particles in (1, 3):
        torch.manual_seed(0)
        model = BNN(nn.Linear(3, 1), Normal(0.5))
        guide = AutoLRT(model, init_scale=1e-6)
        settings = {"num_particles": num_particles, "vectorize_particles": vectorize_particles}
        histories.append(fit(model, guide, data(), 2, lr=1e-12, scale_lr=1e-12, **settings))
    for key in KEYS:
        assert histories[0][key] == pytest.approx(histories[1][key], rel=1e-4)


def test_vectorized_particles_are_all_drawn_in_one_call_of_the_network():
    shapes = []
    model, guide = bnn()
    model.net.register_forward_hook(lambda net, args, output: shapes.append(output.shape))
    settings = {"num_particles": 5, "vectorize_particles": True, "batch_size": 8}
    run_all = lambda run: shapes.append("step")
    fit(model, guide, data(), 1, callbacks=[run_all], **settings)
    steps = shapes[shapes.index("step") - 1 :]
    assert steps == [(5, 8, 1), "step"] * 3


@pytest.mark.parametrize("layer", [nn.Softmax(1), nn.BatchNorm1d(2), nn.Flatten()])
def test_a_network_that_cannot_take_vectorized_particles_is_refused(layer):
    model = BNN(nn.Sequential(nn.Linear(3, 2), layer, nn.Linear(2, 1)), Normal(0.5))
    guide = AutoReparameterization(model)
    before = state(model, guide)
    with pytest.raises(ValueError, match="`vectorize_particles`"):
        fit(model, guide, data(), 1, num_particles=2, vectorize_particles=True)
    assert equal(before, state(model, guide))


# Any model with a guide of ours.


def function(x, y=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    bias = pyro.param("bias", torch.tensor(0.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("obs", dist.Normal(x @ weight + bias, noise), obs=y)


def test_trains_a_function_with_parameters():
    guide = AutoReparameterization(function)
    x, y = data()
    history = fit(function, guide, (x, y + 3), epochs=70, batch_size=8, seed=1, lr=0.1)
    assert pyro.param("bias").item() == pytest.approx(3, abs=0.5)
    assert set(guide) == {"weight", "noise"}
    assert history["bound"][-1] > history["bound"][1] + 1


@pytest.mark.parametrize("guide_class", [AutoLRT, AutoRadial])
def test_trains_a_users_module(guide_class):
    model = Regression(bayesian_mlp(3, 1), None, N)
    guide = guide_class(model)
    history = fit(model, guide, data(), epochs=50, batch_size=8)
    assert history["bound"][-1] > history["bound"][5]


def test_models_that_do_not_scale_a_batch_are_warned_about():
    model = Regression(bayesian_mlp(3, 1), 0.5)
    with pytest.warns(UserWarning, match="counts a mini-batch as all data"):
        fit(model, AutoLRT(model), data(), 1, batch_size=8)


def test_trains_all_there_is():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = BNN(net, Normal(), num_data=N)
    guide = AutoLRT(model)
    before = state(model, guide)
    fit(model, guide, data(), 2, batch_size=8)
    changed = [not torch.equal(a, b) for a, b in zip(before, state(model, guide), strict=True)]
    trained = [n for part in (model, guide) for n, _ in part.named_parameters()]
    names = [n for part in (model, guide) for n in part.state_dict()]
    assert {n for n, c in zip(names, changed, strict=True) if c} >= set(trained)
    assert model.net[1].num_batches_tracked == 6  # the trial run counts none
    assert not model.training


# Data.


@pytest.mark.parametrize("form", ["tuple", "numpy", "dictionary", "loader", "list", "double"])
def test_forms_of_data(form):
    model, guide = bnn()
    x, y = data()
    given = {
        "tuple": (x, y),
        "list": [x, y],
        "numpy": (x.numpy().astype(np.float64), y.numpy().astype(int)),
        "dictionary": {"x": x, "y": y, "weight": torch.ones(N), "mask": y > 0},
        "loader": DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True),
        "double": (x.double().numpy(), y.double()),
    }[form]
    history = fit(model, guide, given, epochs=3)
    assert history["bound"][-1] < 0
    assert model.num_data == N


@pytest.mark.parametrize(
    ("sampler", "number"),
    [
        (None, N),
        (SubsetRandomSampler(range(10)), 10),
        (WeightedRandomSampler(torch.ones(N), 50), N),
    ],
)
def test_number_of_data_is_read_off_the_loader(sampler, number):
    model, guide = bnn()
    fit(model, guide, DataLoader(TensorDataset(*data()), 5, sampler=sampler), 1)
    assert model.num_data == number


@pytest.mark.parametrize(
    "batch_sampler",
    [
        lambda order: {"batch_sampler": BatchSampler(order, 5, False)},
        lambda order: {"sampler": BatchSampler(order, 5, False), "batch_size": None},
    ],
    ids=["batch_sampler", "sampler of lists"],
)
def test_number_of_data_is_that_of_what_is_in_a_sampler_of_batches(batch_sampler):
    x, y = data()
    generator = torch.Generator().manual_seed(2)
    order = SubsetRandomSampler(range(10), generator)
    loader = DataLoader(TensorDataset(x, y), **batch_sampler(order))
    model, guide = bnn()
    before = generator.get_state()
    batches(loader).first()
    assert torch.equal(generator.get_state(), before)
    history = fit(model, guide, loader, 1)
    assert model.num_data == 10
    assert history["step"][-1] == 2


class Chunks(Dataset):
    """Whose entries are batches."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return tuple(x[8 * index : 8 * index + 8] for x in DATA)


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(Chunks(), batch_size=None),
        lambda: DataLoader(TensorDataset(*DATA), batch_sampler=[[0, 1], [2, 3]]),
    ],
    ids=["entries may be batches", "list of batches"],
)
def test_number_of_data_is_not_guessed(loader):
    model, guide = bnn()
    with pytest.raises(ValueError, match="give it as `num_data`"):
        fit(model, guide, loader(), 1)
    fit(model, guide, loader(), 1, num_data=N)
    assert model.num_data == N


def test_the_order_of_a_distributed_sampler_in_batches_is_that_of_the_epoch():
    sampler = DistributedSampler(TensorDataset(*DATA), num_replicas=2, rank=0)
    loader = DataLoader(TensorDataset(*DATA), batch_sampler=BatchSampler(sampler, 4, False))
    one = batches(loader)
    first, second = (torch.cat([x for x, _ in one.epoch()]) for _ in range(2))
    assert not torch.equal(first, second)


class Datum(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_named_tuples_are_batches():
    model, guide = bnn()
    rows = [Datum(x, y) for x, y in zip(*DATA, strict=True)]
    fit(model, guide, DataLoader(rows, 5), 1)
    plain = DataLoader(TensorDataset(*DATA), 5)
    for one, other in zip(
        batches(DataLoader(rows, 5)).epoch(), batches(plain).epoch(), strict=True
    ):
        moved = map_tensors(lambda x: x.double(), one)
        assert isinstance(moved, Datum)
        assert torch.equal(moved.y, other[1].double())


def test_packed_sequences_are_one_input():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(self.lstm(x)[1][0][0])

    lengths = torch.tensor([3, 1, 2])
    rows = [(torch.randn(int(n), 2), float(n)) for n in lengths]

    def collate(rows):
        xs, ys = zip(*rows, strict=True)
        return pack_sequence(xs, enforce_sorted=False), torch.tensor(ys)

    model = BNN(Sums(), Normal(0.5))
    guide = AutoReparameterization(model)
    loader = DataLoader(rows, 3, collate_fn=collate)
    history = fit(model, guide, loader, 3)
    assert model.num_data == 3
    assert math.isfinite(history["bound"][-1])
    with pytest.raises(TypeError, match="has a PackedSequence in it"):
        fit(model, guide, collate(rows), 1)


class Odd(Sampler):
    def __iter__(self):
        return iter(range(10))

    def __len__(self):
        return 10


def test_unknown_or_contradicting_numbers_are_refused():
    dataset = TensorDataset(*data())
    odd = DataLoader(dataset, 5, sampler=Odd())
    model, guide = bnn()
    with pytest.raises(ValueError, match="give it as `num_data`"):
        fit(model, guide, odd, 1)
    assert model.num_data is None
    fit(model, guide, odd, 1, num_data=10)
    assert model.num_data == 10
    fit(model, guide, odd, 1)
    with pytest.raises(ValueError, match=r"`num_data` \(=10\), but there are 24 data"):
        fit(model, guide, data(), 1)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(dataset)

    with pytest.raises(ValueError, match="__len__"):
        fit(model, guide, DataLoader(Stream(), 5), 1)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.zeros(N, 3), TypeError, "must be a tuple"),
        ((torch.zeros(N, 3), torch.zeros(N + 1)), ValueError, "the same number"),
        ((torch.zeros(0, 3), torch.zeros(0)), ValueError, "at least one"),
        ((torch.zeros(N, 3), "y"), TypeError, "has a str in it"),
        ((torch.zeros(N, 3), torch.zeros(N, 2)), ValueError, "`y` has the shape"),
        ((torch.zeros(N, 3), torch.full((N,), math.nan)), ValueError, "(?i)nan"),
        ((torch.zeros(N, 3).double(), torch.zeros(N)), ValueError, r"x.to\(torch.float32\)"),
        ((torch.zeros(N, 3),), ValueError, "observes nothing"),
    ],
)
@pytest.mark.parametrize("as_validation", [False, True])
def test_bad_data_change_nothing(given, error, message, as_validation):
    model, guide = bnn()
    guide(*DATA)
    before, random = state(model, guide), torch.get_rng_state()
    arguments = (DATA, {"validation": given}) if as_validation else (given, {})
    with pytest.raises(error, match=message):
        fit(model, guide, arguments[0], 1, seed=1, **arguments[1])
    assert equal(before, state(model, guide))
    assert model.num_data is None
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("as_validation", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("y", 3, "classes from 0 to 3"), ("weight", -1.0, "`weight` must be finite and not negative")],
)
def test_bad_rows_after_the_first_batch_change_nothing(name, value, message, as_validation):
    model = BNN(nn.Linear(3, 3), Categorical())
    guide = AutoLRT(model)
    good = {"x": torch.randn(N, 3), "y": torch.arange(N) % 3, "weight": torch.ones(N)}
    bad = good | {name: good[name].index_fill(0, torch.tensor(N - 2), value)}
    before = state(model, guide)
    train, rest = (good, {"validation": bad}) if as_validation else (bad, {})
    with pytest.raises(ValueError, match=message):
        fit(model, guide, train, 3, batch_size=5, **rest)
    assert equal(before, state(model, guide))


def test_supports_that_depend_on_outputs_are_those_of_their_rows():
    class Limits(nn.Linear):
        def forward(self, x):
            return x + 0 * super().forward(x)

    model = BNN(Limits(1, 1), lambda limit: dist.Uniform(0 * limit, limit))
    x = torch.tensor([1.0, 1, 9, 9]).unsqueeze(-1)
    history = fit(model, AutoLRT(model), (x, 0.9 * x), 1, batch_size=2)
    assert np.mean(history["log_likelihood"]) == pytest.approx(-math.log(9) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("lr", 0.0),
        ("scale_lr", -1.0),
        ("kl_weight", -1.0),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("num_particles", 0),
        ("clip_norm", 0.0),
        ("clip_factor", 1.0),
        ("clip_factor", math.inf),
        ("accumulate", 0),
        ("autocast", torch.double),
        ("patience", 0),
        ("checkpoint_every", 0),
        ("num_particles", None),
        ("accumulate", None),
        ("checkpoint_every", None),
        ("num_data", 0),
        ("resume", True),
        ("epochs", math.inf),
        ("num_data", "24"),
        ("device", "meta"),
        ("device", "foo"),
        ("device", f"cuda:{torch.cuda.device_count()}"),
        ("seed", -1),
        ("seed", 2**32),
        ("checkpoint", "no/such/folder/a.pt"),
        ("checkpoint", "."),
    ],
)
def test_bad_arguments_are_refused(argument, value):
    model, guide = bnn()
    before = state(model, guide)
    with pytest.raises(ValueError, match=f"`{argument}`"):
        fit(model, guide, data(), **({"epochs": 1} | {argument: value}))
    assert equal(before, state(model, guide))
    assert model.num_data is None


@pytest.mark.parametrize(
    ("argument", "value"),
    [("lr", "1e-2"), ("warmup", None), ("clip_norm", "1"), ("clip_factor", "2"),
     ("kl_weight", "1"), ("vectorize_particles", 1), ("vectorize_particles", None),
     ("callbacks", print), ("callbacks", ["print"]), ("lr", True), ("lr", torch.ones(2)),
     ("kl_weight", torch.ones(2)), ("seed", 1.5), ("seed", "a"), ("checkpoint", 3),
     ("optimizer", torch.optim.Adam([torch.ones(1)])), ("optimizer", lambda groups: None),
     ("optimizer", lambda groups: torch.optim.LBFGS(groups[0]["params"])), ("optimizer", "Adam"),
     ("optimizer", torch.optim.LBFGS)],
)  # fmt: skip
def test_arguments_of_a_wrong_type_are_refused(argument, value):
    model, guide = bnn()
    before = state(model, guide)
    with pytest.raises(TypeError, match=f"`{argument}`"):
        fit(model, guide, data(), 1, **{argument: value})
    assert equal(before, state(model, guide))


def test_more_data_may_be_held_out_than_are_trained_on():
    model, guide = bnn()
    history = fit(model, guide, data(), 5, validation=data(5 * N))
    assert math.isfinite(history["held_out"][-1])
    assert model.num_data == N


def test_networks_train_in_several_threads():
    """Pyro's handlers are one stack for all threads."""

    def train(seed):
        model, guide = bnn()
        return fit(model, guide, data(), 20, validation=data(50))["step"][-1]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(train, range(12))) == [20] * 12


def test_parameters_that_training_cannot_find_are_named():
    parts = {"body": nn.Linear(3, 4), "head": bayesianize(nn.Linear(4, 1))}

    def model(x, y=None):
        mean = parts["head"](parts["body"](x)).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.1), obs=y)

    x, y = data()
    guide = AutoLRT(model)
    guide(x, y)
    with pytest.warns(UserWarning, match=r"2 parameters .*\(4, 3\).* not trained.*attribute"):
        fit(model, guide, (x, y), 1)
    parts["body"].requires_grad_(False)
    fit(model, guide, (x, y), 1)  # warnings are errors


def test_a_weight_of_0_needs_no_warm_up():
    model, guide = bnn()
    with pytest.raises(ValueError, match=r"`kl_weight` .*`warmup=0`"):
        fit(model, guide, data(), 1, kl_weight=0.0)
    fit(model, guide, data(), 1, kl_weight=0.0, warmup=0)


def test_whole_numbers_may_be_floats():
    settings = {"num_particles": 2.0, "accumulate": 2.0, "patience": 3.0, "num_data": 24.0}
    model, guide = bnn()
    assert fit(model, guide, data(), 4.0, batch_size=6, **settings)["step"][-1] == 8


@pytest.mark.parametrize(("bad", "where"), [(math.nan, "x"), (math.nan, "y"), (math.inf, "y")])
@pytest.mark.parametrize("given", ["data", "validation"])
def test_values_of_a_later_batch_are_refused_before_the_first_step(bad, where, given):
    x, y = data()
    {"x": x, "y": y}[where][-1] = bad
    model, guide = bnn()
    before = state(model, guide)
    settings = {"validation": (x, y)} if given == "validation" else {}
    with pytest.raises(ValueError, match="in `validation`.*`" if settings else f"`{where}`"):
        fit(model, guide, data() if settings else (x, y), 1, batch_size=5, **settings)
    assert equal(before, state(model, guide))
    assert model.num_data is None


def test_bad_validation_data_are_named():
    model, guide = bnn()
    empty = DataLoader(TensorDataset(*DATA), N + 1, drop_last=True)
    for given in (empty, (DATA[0][:0], DATA[1][:0])):
        with pytest.raises(ValueError, match="`validation`"):
            fit(model, guide, DATA, 1, validation=given)


def test_a_refused_optimizer_or_checkpoint_changes_nothing(tmp_path):
    def refuse(groups):
        raise ValueError("no")

    other = BNN(nn.Linear(3, 1), Normal(0.5))
    fit(other, AutoRadial(other), DATA, 1, checkpoint=tmp_path / "a.pt")
    for argument in ({"optimizer": refuse}, {"checkpoint": tmp_path / "a.pt", "resume": True}):
        model, guide = bnn()
        before, random = state(model, guide), torch.get_rng_state()
        with pytest.raises(ValueError, match="no"):
            fit(model, guide, DATA, 1, seed=1, **argument)
        assert equal(before, state(model, guide))
        assert model.num_data is None
        assert model.training
        assert torch.equal(random, torch.get_rng_state())


def test_what_a_refused_run_has_moved_is_moved_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net(torch.ones(2, 2)).sum().backward()
    before = [*net.parameters(), *net.buffers()]
    dtypes, grad = [x.dtype for x in before], net[0].weight.grad

    def moved_and_refused():
        with unchanged_on_error(net):
            net.to(torch.double)  # which replaces tensors as a move to a GPU does
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        moved_and_refused()
    after = [*net.parameters(), *net.buffers()]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert [x.dtype for x in after] == dtypes
    assert net[0].weight.grad is grad
    assert grad.dtype == torch.float


def test_an_error_during_training_leaves_evaluation_mode():
    def fail(run):
        raise RuntimeError("callback")

    model, guide = bnn()
    with pytest.raises(RuntimeError, match="callback"):
        fit(model, guide, DATA, 1, callbacks=[fail])
    assert not any(part.training for part in (*model.modules(), *guide.modules()))


def test_bad_guides_are_refused():
    model, _ = bnn()
    with pytest.raises(TypeError, match="AutoLRT"):
        fit(model, AutoNormal(model), data(), 1)
    with pytest.raises(TypeError, match=r"`guide` \(=AutoGuideList\).*with one of them"):
        fit(model, AutoGuideList(model), data(), 1)
    guide = AutoLRT(model)
    loader = DataLoader(TensorDataset(*data()), 5)
    with pytest.raises(ValueError, match="`batch_size`"):
        fit(model, guide, loader, 1, batch_size=5)


@pytest.mark.parametrize("size", [1, 5, N, 100])
def test_batches_have_each_row_once(size):
    rows = torch.arange(N)
    made = batches((rows, {"a": rows}), size)
    seen = [list(made.epoch()) for _ in range(2)]
    for epoch in seen:
        assert len(epoch) == len(made)
        assert torch.cat([x for x, _ in epoch]).sort().values.tolist() == rows.tolist()
        assert all(torch.equal(x, other["a"]) for x, other in epoch)
    if size < N:
        assert not equal([x for x, _ in seen[0]], [x for x, _ in seen[1]])


# Options.


def test_accumulated_gradients_are_those_of_a_large_batch():
    """Where rows are alike, a mean over batches is that over all data, given the same weights."""
    x, y = torch.ones(N, 3), torch.ones(N)
    results = []
    for size, accumulate in ((N, 1), (6, 4)):
        torch.manual_seed(0)
        model = BNN(nn.Linear(3, 1), Normal(0.5), num_data=N)
        guide = AutoReparameterization(model, init_scale=1e-6)
        # Unlike Adam, SGD takes other steps if gradients are multiplied.
        rates = {"lr": 1e-3, "scale_lr": 1e-3, "optimizer": torch.optim.SGD}
        fit(model, guide, (x, y), 3, batch_size=size, accumulate=accumulate, **rates)
        results.append(guide["net.weight"].median())
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_gradients_are_clipped_per_datum(autocast):
    norms = []

    def callback(run):
        gradients = [p.grad for group in run.optimizer.param_groups for p in group["params"]]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item() / run.num_data)

    model, guide = bnn()
    settings = {"clip_norm": 0.01, "accumulate": 2, "autocast": autocast}
    fit(model, guide, data(), 3, batch_size=12, callbacks=[callback], **settings)
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def norms_of_steps(end: int | None = None, **settings) -> list[float]:
    """Norms of the gradients that steps too small to change anything get; some rows are far off."""
    norms: list[float] = []

    def callback(run):
        gradients = [p.grad for group in run.optimizer.param_groups for p in group["params"]]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item() / N)
        if run.num_steps == end:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    x, y = data()
    y[::7] *= 100
    model, guide = bnn()
    rates = {"lr": 1e-12, "scale_lr": 1e-12, "optimizer": torch.optim.SGD, "warmup": 0, "seed": 1}
    with nullcontext() if end is None else pytest.raises(KeyboardInterrupt):
        fit(model, guide, (x, y), 2, batch_size=1, callbacks=[callback], **rates, **settings)
    return norms


def test_gradients_that_jump_are_clipped_to_a_multiple_of_the_mean_before():
    given = norms_of_steps(clip_factor=None)
    assert max(given) > 10 * sorted(given)[N]
    for settings, factor, most in (
        ({}, 2.0, math.inf),
        ({"clip_factor": 1.5}, 1.5, math.inf),
        ({"clip_norm": 20.0}, 2.0, 20.0),
    ):
        expected, mean = [], math.inf
        for i, norm in enumerate(given, start=1):
            expected.append(min(norm, factor * mean, most))
            mean = sum(expected) / i
        assert norms_of_steps(**settings) == pytest.approx(expected, rel=1e-4)


def test_a_run_that_is_resumed_clips_what_the_whole_one_clips(tmp_path):
    settings = {"checkpoint": tmp_path / "run", "checkpoint_every": 1, "resume": True}
    first = norms_of_steps(end=11, **settings)  # whose last step is not in the file
    assert first[:10] + norms_of_steps(**settings) == norms_of_steps()


def clipped(clipping: Clipping, *values: float) -> list[float]:
    gradients = []
    for value in values:
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([0.6, 0.8]) * value
        clipping([parameter, nn.Parameter(torch.zeros(1))])  # one without a gradient
        gradients.append(parameter.grad.norm().item())
    return gradients


def test_the_mean_norm_forgets_and_counts_nothing_but_steps():
    clipping = Clipping(None, 2.0)
    # Zeros, before the likelihood plays a part, would forbid all others.
    assert clipped(clipping, 0, 0, 5, 0) == pytest.approx([0, 0, 5, 0])
    assert math.isnan(*clipped(clipping, math.inf))  # of float16, whose scaler leaves the step out
    assert clipped(clipping, 20) == pytest.approx([10])
    clipped(clipping, *[1.0] * 1000)
    other = Clipping(None, 2.0)
    other.load_state_dict(clipping.state_dict())
    # 100 jumps on end are no jumps.
    expected = [min(50.0, 2 * 1.01**k) for k in range(400)]
    assert clipped(other, *[50.0] * 400) == pytest.approx(expected, rel=1e-3)
    assert clipped(Clipping(None, None), 1, 100) == pytest.approx([1, 100])


def test_sparse_gradients_are_clipped():
    embedding = nn.Embedding(4, 2, sparse=True)
    clipping = Clipping(1.0, None)
    embedding(torch.tensor([1, 1])).sum().backward()
    clipping(embedding.parameters())
    expected = torch.zeros(4, 2)
    expected[1] = 0.5**0.5
    torch.testing.assert_close(embedding.weight.grad.to_dense(), expected)


def test_autocast_computes_networks_in_half_precision():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.dtype)
            return x

    histories = []
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(0)
        model = BNN(nn.Sequential(nn.Linear(3, 1), Spy()), Normal(0.5))
        guide = AutoReparameterization(model)
        histories.append(fit(model, guide, data(), 2, autocast=dtype, seed=1))
    assert seen[-1] is torch.bfloat16
    assert histories[0]["kl"][1] == pytest.approx(histories[1]["kl"][1], rel=1e-3)
    assert histories[0]["bound"][1] == pytest.approx(histories[1]["bound"][1], rel=0.02)


def test_half_precision_learns_as_single_does():
    """Gradients of sums over many data, which the usual scale of a mean would let overflow."""
    x = torch.randn(2000, 3)
    y = x.sum(-1) + 3
    losses = []
    for dtype in (None, torch.float16):
        torch.manual_seed(0)
        model = BNN(nn.Linear(3, 1), Normal(0.5))
        guide = AutoReparameterization(model)
        history = fit(model, guide, (x, y), 5, batch_size=500, lr=0.05, autocast=dtype, seed=1)
        losses.append(-history["bound"][-1])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] < 0.8 * -history["bound"][0]


def test_other_optimizers():
    model, guide = bnn()
    made = []
    fit(model, guide, data(), 2, optimizer=lambda groups: made.append(SGD(groups)) or made[0])
    assert [group["initial_lr"] for group in made[0].param_groups] == [0.01, 0.03]


SGD = torch.optim.SGD


def test_a_seed_decides_all():
    results = []
    for i in range(2):
        torch.manual_seed(0)
        model, guide = bnn()
        torch.manual_seed(i)
        fit(model, guide, DATA, 2, batch_size=5, seed=3)
        results.append(state(guide))
    assert equal(*results)


def test_callbacks_end_the_training():
    model, guide = bnn()
    history = fit(model, guide, data(), 10, callbacks=[lambda run: run.num_steps == 4])
    assert history["step"][-1] == 4


def _set_stopped(run):
    run.stopped = True


@pytest.mark.parametrize(
    "stop", [_set_stopped, lambda run: np.bool_(True), lambda run: torch.tensor(2.0) > 1]
)
def test_a_callback_ends_training_by_any_truth_value_and_by_the_run(stop):
    model, guide = bnn()
    assert fit(model, guide, data(), 5, callbacks=[stop])["step"] == [1]


@pytest.mark.parametrize("answer", [None, 1, 2.5, torch.tensor(1.0), False])
def test_other_answers_of_callbacks_end_nothing(answer):
    model, guide = bnn()
    history = fit(model, guide, data(), 5, callbacks=[lambda run: answer])
    assert history["step"][-1] == 5


# Validation.


def test_log_density_of_held_out_data():
    """Against the predictive density in closed form."""
    model = BNN(nn.Linear(3, 1, bias=False), Normal(0.5), num_data=2)
    guide = AutoReparameterization(model, init_scale=0.05)
    x, y = data()
    weight = guide["net.weight"].median()[0]
    scale = (0.25 + 0.0025 * x.square().sum(-1)).sqrt()
    expected = dist.Normal(x @ weight, scale).log_prob(y).mean()
    random = torch.get_rng_state()
    found = log_density(model, guide, [(x[:7], y[:7]), (x[7:], y[7:])], num_samples=600)
    assert found == pytest.approx(expected.item(), abs=0.02)
    assert torch.equal(random, torch.get_rng_state())
    # Rows count as often as their weights say, or not at all.
    times, mask = torch.arange(N) % 3, torch.arange(N) % 5 > 0
    batch = {"x": x, "y": y, "weight": times, "mask": mask}
    repeated = [a.repeat_interleave(times * mask, 0) for a in (x, y)]
    settings = {"num_samples": 5}
    assert log_density(model, guide, [batch], **settings) == pytest.approx(
        log_density(model, guide, [repeated], **settings), rel=1e-4
    )


def test_the_best_parameters_are_kept():
    """Held-out targets that the network has to unlearn are predicted best at the start."""
    model, guide = bnn()
    x, y = data()
    states = {}

    def callback(run):
        states[run.num_steps] = state(model, guide)

    history = fit(
        model, guide, (x, y), 400, validation=(x, -y), patience=3, warmup=0.1,
        callbacks=[callback], lr=0.01,
    )  # fmt: skip
    scores = dict(zip(history["step"], history["held_out"], strict=True))
    counted = {step: score for step, score in scores.items() if score == score and step >= 40}
    best = max(counted, key=counted.get)
    assert equal(state(model, guide), states[best])
    assert history["step"][-1] == best + 3 * 10 < 400


def test_the_best_parameters_are_kept_in_the_store_too():
    net, (x, y) = bayesianize(nn.Linear(3, 1)), data()
    scales = {}

    def model(x, y=None):
        scale = pyro.param("noise", torch.tensor(1.0), constraint=dist.constraints.positive)
        mean = net(x).squeeze(-1)
        with pyro.plate("data", N, subsample_size=len(x)):
            pyro.sample("obs", dist.Normal(mean, scale), obs=y)

    def callback(run):
        scales[run.num_steps] = pyro.param("noise").item()

    history = fit(
        model, AutoLRT(model), (x, y), 60, validation=(x, y + 3), patience=2, warmup=0,
        callbacks=[callback], lr=0.05,
    )  # fmt: skip
    scores = dict(zip(history["step"], history["held_out"], strict=True))
    best = max((step for step, score in scores.items() if score == score), key=scores.get)
    assert best < history["step"][-1]
    assert pyro.param("noise").item() == scales[best]


def test_without_patience_training_goes_on():
    model, guide = bnn()
    x, y = data()
    history = fit(model, guide, (x, y), 100, validation=(x, -y), patience=None)
    assert history["step"][-1] == 100


def test_dropout_rests_during_validation():
    net = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    model = BNN(net, Normal(0.5))
    guide = AutoLRT(model)
    modes = []
    model.net[1].register_forward_hook(lambda module, *_: modes.append(module.training))
    fit(model, guide, data(), 2, validation=data())
    assert modes[-20:] == [False] * 20
    assert True in modes


# Reports.


def test_history_plots_and_converts():
    model, guide = bnn()
    history = fit(model, guide, data(), 30, validation=data())
    ax = history.plot()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [
        "bound (ELBO)",
        "expected log-likelihood",
        "KL divergence",
        "held-out log density",
    ]
    assert list(ax.lines[1].get_ydata()) == history["log_likelihood"]
    assert history.plot(ax) is ax
    plt.close("all")
    frame = history.to_dataframe()
    assert isinstance(frame, pd.DataFrame)
    assert frame["bound"].tolist() == history["bound"]
    assert len(frame) == 30
    assert "bound=" in repr(history)


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_progress_is_shown_on_a_terminal(capsys, monkeypatch, has_tqdm):
    model, guide = bnn()
    fit(model, guide, data(), 3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    if not has_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    fit(model, guide, data(), 3)
    shown = capsys.readouterr().err
    assert "bound" in shown
    assert "log_likelihood" in shown
    assert ("step 3 of 3" in shown) is not has_tqdm
    fit(model, guide, data(), 3, progress=False)
    assert capsys.readouterr().err == ""


def test_classes_are_learned():
    x = torch.randn(180, 2)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0)
    model = BNN(nn.Sequential(nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 3)), Categorical())
    guide = AutoLRT(model)
    history = fit(model, guide, (x, y), epochs=100, batch_size=30, lr=0.03, scale_lr=0.03)
    assert history["bound"][-1] > -math.log(3) + 0.2  # the trivial bound


def test_rates_fall_as_a_cosine_in_the_second_half():
    assert [schedule(done) for done in (0.0, 0.5, 0.75, 1.0)] == pytest.approx([1, 1, 0.5, 0])


def test_patience_is_counted_from_the_last_best():
    stopping = EarlyStopping([], patience=2)
    assert [stopping.update(score) for score in (1.0, 0.0, 2.0, 1.0, 1.0)] == [False] * 4 + [True]
