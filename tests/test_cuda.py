"""Devices: what holds on GPUs, as far as a stand-in shows it, and on a GPU where there is one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings

import pyro
import pytest
import torch
import torch.utils.backend_registration
from processes import TESTS
from pyro.infer import SVI
from pyro.optim import Adam
from torch import nn

from pyro_bnn import BNN, fit, likelihoods, predict
from pyro_bnn.guides import AutoFlipout
from pyro_bnn.guides._dry_run import dry_run
from pyro_bnn.infer import TraceKL_ELBO, diagnose
from pyro_bnn.models import _rng

HAS_STAND_IN = hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])

# How often the host waits in a step, without Pyro's validation: for gradients and loss, which may
# not be finite; `SVI.step` returns the loss, and looks whether it is NaN.
WAITS = {"standalone": 1, "with_kl": 1, "elbo": 2, "svi": 4}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A process has run on a stand-in for a GPU, once for all tests."""
    if not HAS_STAND_IN:
        pytest.skip("this torch has no devices that are written in Python")
    path = tmp_path_factory.mktemp("gpu") / "found.json"
    folders = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(TESTS / "steps_on_gpu.py"), str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert path.exists(), done.stderr[-3000:]
    return json.loads(path.read_text())


def test_steps_on_a_gpu_are_those_of_the_cpu(found):
    for name, step in found["steps"].items():
        assert step["error"] < 1e-6, name
        assert step["on_cpu"] == [], name


def test_how_often_a_step_waits_for_a_gpu(found):
    for name, step in found["steps"].items():
        # Which rows of a large embedding are drawn depends on the indices.
        more = 2 if "large embedding" in name else 0
        assert len(step["waits"]) == WAITS[name.split()[0]] + more, (name, step["waits"])


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_how_often_fit_waits_for_a_gpu(found, where):
    assert found["fit"][where] == [3] * 3  # as a step of the ELBO, and once for a record


def trained(device, epochs=3, seed=1, **kwargs):
    """A small network, trained from CPU tensors, with all that training gives."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    model = BNN(net, likelihoods.Categorical())
    guide = AutoFlipout(model)
    data = torch.linspace(-1, 1, 60).reshape(20, 3), torch.arange(20) % 2
    options = {"batch_size": 8, "progress": False} | kwargs
    history = fit(model, guide, data, epochs, seed=seed, device=device, **options)
    return model, guide, history


def numbers(model, guide, history):
    return dict(model.named_parameters()), dict(guide.named_parameters()), dict(history)


@DEVICES
def test_devices(device):
    model, guide, history = trained(device)
    tensors = [*model.state_dict().values(), *guide.posteriors.state_dict().values()]
    assert {x.device.type for x in tensors} == {device}
    assert all(isinstance(x, float) for x in history["bound"])
    x = torch.ones(4, 3, device=device)
    prediction = predict(model, guide, x, num_samples=6)
    assert {prediction.mean.device.type, prediction.samples.device.type} == {device}
    assert prediction.mean.shape == (4, 2)
    loss = TraceKL_ELBO()(model, guide)(x, torch.zeros(4, dtype=torch.long, device=device))
    loss.backward()
    assert {p.grad.device.type for p in guide.parameters()} == {device}
    y = torch.zeros(4, dtype=torch.long, device=device)
    svi = SVI(model, guide, Adam({}), TraceKL_ELBO())
    assert isinstance(svi.step(x, y), float)
    diagnosis = diagnose(model, guide, (x, y), num_samples=25)
    assert diagnosis.trivial == 0  # all labels are the same
    assert math.isfinite(diagnosis.elbo)


@DEVICES
def test_random_numbers_are_reproducible(device):
    first, second, other = (numbers(*trained(device, seed=s)) for s in (1, 1, 2))
    torch.testing.assert_close(first, second)
    name = "posteriors.net.0.weight.loc_unconstrained"
    assert not torch.equal(first[1][name], other[1][name])
    for context in (_rng.preserved, dry_run):
        before = torch.randn(3, device=device)
        state = _rng.get_state()
        with context():
            torch.randn(7, device=device)
        after = torch.randn(3, device=device)
        _rng.set_state(state)
        torch.testing.assert_close(torch.randn(3, device=device), after, rtol=0, atol=0)
        assert not torch.equal(before, after)


class StopError(Exception):
    pass


def interrupted(device, path):
    """Ends after 4 of 9 steps, of which a checkpoint has 3."""

    def stop(run):
        if run.num_steps == 4:
            raise StopError

    with pytest.raises(StopError):
        trained(device, checkpoint=path, checkpoint_every=3, callbacks=[stop])


@DEVICES
def test_checkpoints_travel_between_devices(device, tmp_path):
    path = tmp_path / "run.pt"
    interrupted(device, path)
    whole = numbers(*trained(device, checkpoint=tmp_path / "whole.pt"))
    content = path.read_bytes()
    same = numbers(*trained(device, checkpoint=path, resume=True))
    torch.testing.assert_close(same, whole)
    path.write_bytes(content)
    _, guide, history = trained("cpu", checkpoint=path, resume=True)
    assert history["step"] == whole[2]["step"]
    assert history["bound"][:3] == whole[2]["bound"][:3]
    assert {p.device.type for p in guide.parameters()} == {"cpu"}


@DEVICES
def test_autocast(device):
    _, guide, history = trained(device, epochs=8, lr=0.05, autocast=torch.bfloat16)
    _, _, precise = trained(device, epochs=8, lr=0.05)
    assert {p.dtype for p in guide.parameters()} == {torch.float}
    mean = lambda column: sum(column) / len(column)
    assert mean(history["bound"]) == pytest.approx(mean(precise["bound"]), abs=0.05)


@CUDA
def test_how_often_cuda_waits():
    """The same as on the stand-in, as CUDA counts it."""
    model, guide, _ = trained("cuda", epochs=1)
    x, y = torch.ones(8, 3, device="cuda"), torch.zeros(8, dtype=torch.long, device="cuda")
    elbo = TraceKL_ELBO()(model, guide)
    with pyro.validation_enabled(False):
        elbo(x, y).backward()  # guides look at the first calls
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                elbo(x, y).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    assert len(waits) == WAITS["elbo"]


def test_benchmark_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.syspath_prepend(str(TESTS.parent / "benchmarks"))
    import speed

    monkeypatch.setattr(sys, "argv", ["speed.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        speed.main()
    assert "`--device cuda` needs a GPU" in capsys.readouterr().err
