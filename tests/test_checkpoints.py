"""Checkpoints: a run that was killed and resumed equals one that was not."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bnn import BNN, fit, resume, save
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoMixture, AutoRadial
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.likelihoods import Categorical, Normal
from pyro_bnn.models._batches import batches

ROOT = Path(__file__).parent.parent


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.Dropout(0.1), nn.ReLU(), nn.Linear(width, 1))


def make(guide_class=AutoLRT, likelihood=None, net=None, **kwargs):
    model = BNN(net or network(), likelihood or Normal(), num_data=20)
    guide = guide_class(model, **kwargs)
    return model, guide, torch.optim.Adam([*model.parameters(), *guide.parameters()], 0.01)


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 3, generator=generator), torch.randn(20, generator=generator)


def everything(*objects):
    """All numbers in states, to be compared exactly."""
    found = []

    def collect(value):
        if isinstance(value, dict):
            [collect(x) for x in value.values()]
        elif isinstance(value, (list, tuple)):
            [collect(x) for x in value]
        else:
            found.append(value.tolist() if isinstance(value, torch.Tensor) else value)

    for obj in objects:
        collect(obj.state_dict())
    return repr(found)


# Killed and resumed, in each of the forms of training.

SCRIPT = """
import os, signal, sys
import pyro, torch
from torch.utils.data import DataLoader, TensorDataset
from pyro_bnn import fit, resume, save
from pyro_bnn.compat import Standalone
from pyro_bnn.infer import KLWarmup, TraceKL_ELBO
from pyro_bnn.models._batches import batches
from test_checkpoints import data, everything, make
form, path, kill = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(5)
x, y = data()
model, guide, optimizer = make()

def end(step):
    if step == kill:
        os.kill(os.getpid(), signal.SIGKILL)

if form in ("tensors", "loader"):
    given = (x, y)
    size = 7
    if form == "loader":
        given, size = DataLoader(TensorDataset(x, y), 7, shuffle=True), None
    history = fit(
        model, guide, given, 4, batch_size=size, checkpoint=path, checkpoint_every=1, resume=True,
        validation=(x, y), callbacks=[lambda run: end(run.num_steps)],
    )
    print(everything(model, guide, history))
    sys.exit()

order = batches((x, y), 7)
if form == "svi":
    args = guide.optim_args(lr=0.01, scale_lr=0.02)
    elbo = TraceKL_ELBO()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam(args), elbo)
    parts = {"svi": svi}
    train = svi.step
else:
    network = Standalone(model.net, guide)
    elbo = network
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    parts = {"network": network, "optimizer": optimizer}
    def train(x, y):
        optimizer.zero_grad()
        out, kl = network(x)
        loss = 20 / len(x) * (out.squeeze(-1) - y).square().sum() + kl
        loss.backward()
        optimizer.step()
parts |= {"warmup": KLWarmup(elbo, 6), "order": order}
step = 0
if os.path.exists(path):
    step = resume(path, **parts)["step"]
while order.num_epochs < 4:
    for batch in order.epoch():
        train(*batch)
        parts["warmup"].step()
        step += 1
        end(step)
        save(path, step=step, **parts)
print(everything(model, guide, parts["warmup"]), step)
"""


def run(form: str, path: Path, kill: int) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", SCRIPT, form, str(path), str(kill)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("form", ["tensors", "loader", "svi", "standalone"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(form, tmp_path):
    whole = run(form, tmp_path / "whole.pt", -1)
    assert whole.returncode == 0, whole.stderr
    killed = run(form, tmp_path / "killed.pt", 5)  # in the middle of an epoch
    assert killed.returncode == -9, killed.stderr
    resumed = run(form, tmp_path / "killed.pt", -1)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout


# What is saved.


def test_random_numbers_go_on(tmp_path):
    generator = torch.Generator().manual_seed(3)
    save(tmp_path / "a", generator=generator)
    draw = lambda: (
        torch.randn(3).tolist(),
        torch.randn(3, generator=generator).tolist(),
        random.random(),
        random.gauss(0, 1),
        np.random.randn(3).tolist(),  # noqa: NPY002
    )
    first = draw()
    assert draw() != first
    resume(tmp_path / "a", generator=generator)
    assert draw() == first


def test_saving_leaves_random_numbers_alone(tmp_path):
    model, guide, optimizer = make()
    before = torch.get_rng_state()
    save(tmp_path / "a", model, guide, optimizer)
    resume(tmp_path / "a", model, guide, optimizer)
    assert torch.equal(before, torch.get_rng_state())


class Pair(NamedTuple):
    one: int
    other: torch.Tensor


def test_plain_data_come_back(tmp_path):
    values = {
        "step": 3,
        "loss": np.float64(0.5),
        "names": ["a", ("b", None)],
        "nested": {"x": torch.ones(2), 1: True},
        "dtype": torch.half,
    }
    save(tmp_path / "a", **values)
    found = resume(tmp_path / "a")
    assert torch.equal(found["nested"].pop("x"), values["nested"].pop("x"))
    assert found == values
    assert resume(tmp_path / "a", step=3)["step"] == 3
    save(tmp_path / "b", pair=Pair(1, torch.ones(2)))
    assert resume(tmp_path / "b")["pair"][0] == 1
    with pytest.raises(TypeError, match=r"`net` .* is neither a tensor nor plain data"):
        save(tmp_path / "b", net=nn.Linear)
    with pytest.raises(ValueError, match="`step` is 3 there, 4 here"):
        resume(tmp_path / "a", step=4)


def test_files_hold_tensors_and_plain_data(tmp_path):
    model, guide, optimizer = make()
    save(tmp_path / "a", model=model, guide=guide, optimizer=optimizer)
    content = torch.load(tmp_path / "a", weights_only=True)
    state = content["states"]["guide"]
    assert all(torch.equal(x, state[name]) for name, x in guide.state_dict().items())
    for bad in (object(), {1, 2}, [lambda: 0], {"x": np.ones(2)}):
        with pytest.raises(TypeError, match="plain data"):
            save(tmp_path / "b", bad=bad)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save(tmp_path / "a", step=1)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path / "a", step=2)
    monkeypatch.undo()
    assert resume(tmp_path / "a") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_latent_variables_of_a_run_are_saved(tmp_path):
    """A guide that has not been called yet takes them, too."""

    def likelihood(output):
        return dist.Normal(output, pyro.sample("noise", dist.HalfNormal(1.0)))

    model, guide, _ = make(likelihood=likelihood)
    TraceKL_ELBO()(model, guide)(*data())
    elbo = TraceKL_ELBO()(model, guide)
    save(tmp_path / "a", elbo=elbo)
    torch.manual_seed(1)
    other_model, other, _ = make(likelihood=likelihood)
    resume(tmp_path / "a", elbo=TraceKL_ELBO()(other_model, other))
    assert everything(other_model, other) == everything(model, guide)
    assert "noise" in other


def test_an_svi_has_the_parameters_of_its_functions(tmp_path):
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        bias = pyro.param("bias", torch.tensor(0.1), dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ weight + bias, 1.0), obs=y)

    def start():
        pyro.clear_param_store()
        svi = pyro.infer.SVI(model, AutoLRT(model), pyro.optim.Adam({"lr": 0.1}), TraceKL_ELBO())
        svi.evaluate_loss(*data())
        return svi

    svi = start()
    svi.step(*data())
    save(tmp_path / "a", svi=svi)
    svi.step(*data())
    expected, state = pyro.param("bias").item(), everything(svi.guide)
    svi = start()
    resume(tmp_path / "a", svi=svi)
    save(tmp_path / "b", svi=svi)  # the state of its optimizer has not been used yet
    svi.step(*data())
    assert pyro.param("bias").item() == expected
    assert everything(svi.guide) == state
    for _ in range(2):  # also into an optimizer that has made steps
        resume(tmp_path / "b", svi=svi)
        svi.step(*data())
        assert pyro.param("bias").item() == expected
    pyro.clear_param_store()
    fresh = pyro.infer.SVI(model, AutoLRT(model), pyro.optim.Adam({"lr": 0.1}), TraceKL_ELBO())
    with pytest.raises(ValueError, match="call model and guide once"):
        resume(tmp_path / "a", svi=fresh)


# What is refused.


class Strided(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 1, stride=stride)

    def forward(self, x):
        return self.conv(x.unsqueeze(1)).sum(-1)


OTHERS = {
    "width": (lambda: make(net=network(5)), "shape"),
    "depth": (lambda: make(net=nn.Sequential(network(), nn.Linear(1, 1))), "there, not here"),
    "activation": (
        lambda: make(net=nn.Sequential(*network()[:2], nn.Tanh(), network()[3])),
        "Tanh",
    ),
    "dropout": (
        lambda: make(net=nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), *network()[2:])),
        "p=0.1.*p=0.5",
    ),
    "radial": (lambda: make(AutoRadial), "RadialPosterior"),
    "mixture": (lambda: make(AutoMixture), "MixturePosterior"),
    "flipout": (lambda: make(AutoFlipout), "AutoFlipout"),
    "site": (lambda: make(sites={"net.0.weight": AutoRadial.posterior}), "RadialPosterior"),
    "dtype": (lambda: make(net=network().double()), "float64"),
    "likelihood": (lambda: make(likelihood=Categorical()), "Categorical"),
    "noise": (lambda: make(likelihood=Normal(0.1)), "scale"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_run_is_refused(other, tmp_path):
    names = ("model", "guide", "optimizer")
    save(tmp_path / "a", **dict(zip(names, make(), strict=True)), step=1)
    build, message = OTHERS[other]
    objects = build()
    before, drawn = everything(*objects), torch.get_rng_state()
    with pytest.raises(ValueError, match=f"of another run.*{message}.*Nothing has been changed"):
        resume(tmp_path / "a", **dict(zip(names, objects, strict=True)))
    assert everything(*objects) == before
    assert torch.equal(drawn, torch.get_rng_state())


def test_another_stride_or_optimizer_is_refused(tmp_path):
    one, two = Strided(1), Strided(2)
    save(tmp_path / "a", net=one)
    with pytest.raises(ValueError, match=r"stride=\(1,\).*stride=\(2,\)"):
        resume(tmp_path / "a", net=two)
    parameters = list(one.parameters())
    adam = torch.optim.Adam(parameters)
    one(torch.ones(2, 3)).sum().backward()
    adam.step()
    save(tmp_path / "b", adam)
    for optimizer, message in [
        (torch.optim.SGD(parameters), "Adam there, SGD here"),
        (torch.optim.Adam(parameters[:1]), "sizes of groups"),
        (torch.optim.Adam([torch.ones(2, 2), parameters[1]]), "`exp_avg` of parameter 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            resume(tmp_path / "b", optimizer)
    with pytest.raises(ValueError, match="it has no state of `more`"):
        resume(tmp_path / "b", adam, more=one)
    with pytest.raises(ValueError, match="a state of `0`, which is not given"):
        resume(tmp_path / "b")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text").write_text("no checkpoint")
    torch.save({"a": 1}, tmp_path / "other")
    (tmp_path / "empty").touch()
    (tmp_path / "greeting").write_text("hello world")
    save(tmp_path / "whole", a=torch.ones(500))
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:-500])
    for name in ("text", "other", "empty", "greeting", "half"):
        with pytest.raises(ValueError, match="is no checkpoint"):
            resume(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        resume(tmp_path / "none")


def test_fit_refuses_checkpoints_of_other_settings(tmp_path):
    model, guide, _ = make()
    fit(model, guide, data(), 2, checkpoint=tmp_path / "a")
    before = everything(model, guide)
    with pytest.raises(ValueError, match=r"`settings.epochs` is 2 there, 3 here"):
        fit(model, guide, data(), 3, checkpoint=tmp_path / "a", resume=True)
    assert everything(model, guide) == before
    # A finished run is not trained any further, a new one starts anew.
    history = fit(model, guide, data(), 2, checkpoint=tmp_path / "a", resume=True)
    assert everything(model, guide) == before
    assert history["step"] == [1, 2]
    fit(model, guide, data(), 2, checkpoint=tmp_path / "a")
    assert everything(model, guide) != before


def test_weights_are_shared_by_safetensors(tmp_path):
    model, guide, _ = make()
    guide(*data())
    safetensors.torch.save_file(guide.state_dict(), tmp_path / "guide.safetensors")
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    torch.manual_seed(1)
    other_model, other, _ = make()
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "guide.safetensors"))
    safetensors.torch.load_model(other_model, str(tmp_path / "model.safetensors"))
    assert everything(other_model, other) == everything(model, guide)


class Noisy(TensorDataset):
    """Data with noise that is drawn anew for each use."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.randn(()) + random.random() + np.random.rand(), y  # noqa: NPY002


@pytest.mark.parametrize("position", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("own", [False, True])
def test_loaders_go_on_in_the_middle_of_an_epoch(position, own):
    def loader():
        generator = torch.Generator().manual_seed(2) if own else None
        return DataLoader(Noisy(*data()), 5, shuffle=True, generator=generator)

    one = batches(loader())
    seen, state, drawn = [], None, None
    for _ in range(3):
        for batch in one.epoch():
            torch.randn(1)  # as training draws
            seen.append(batch)
            if len(seen) == position:
                state = copy.deepcopy(one.state_dict())
                drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
        if position == 0 and state is None:
            position, state = len(seen), copy.deepcopy(one.state_dict())
            drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    two = batches(loader())
    two.load_state_dict(state)
    torch.set_rng_state(drawn[0])
    random.setstate(drawn[1])
    np.random.set_state(drawn[2])  # noqa: NPY002
    rest = []
    while two.num_epochs < 3:
        for batch in two.epoch():
            torch.randn(1)
            rest.append(batch)
    assert len(rest) == 12 - position
    for found, expected in zip(rest, seen[position:], strict=True):
        assert torch.equal(found[0], expected[0])
