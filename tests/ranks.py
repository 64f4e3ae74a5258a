"""What processes of ``torchrun`` do for test_distributed.py: each writes what it has found.

In one process, some of these functions return what is expected of two.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torch.distributed.checkpoint as dcp
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from pyro.optim import Adam
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pyro_bnn import BNN, bayesianize, fit, guides, resume, save
from pyro_bnn.compat import Standalone, WithKL
from pyro_bnn.compat.bayesian_torch import LinearReparameterization
from pyro_bnn.guides import AutoLRT, AutoMixture, AutoRadial, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.likelihoods import Normal
from pyro_bnn.nn import BayesianLinear

CAN_SHARD = torch.__version__ >= (2, 6)  # before, `fully_shard` is private and needs a GPU
if CAN_SHARD:
    from torch.distributed.fsdp import fully_shard

DOUBLE = torch.float64


def rank():
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def data(size=13):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, 3, generator=generator, dtype=DOUBLE)
    return x, x.sum(-1) + torch.randn(size, generator=generator, dtype=DOUBLE)


def loader(size, batch_size, **kwargs):
    return DataLoader(TensorDataset(*data(size)), batch_size, **kwargs)


class Seeded(AutoReparameterization):
    """Draws the weights of one seed, or of some in turn."""

    seeds = (7,)
    num_calls = 0

    def forward(self, *args, **kwargs):
        torch.manual_seed(self.seeds[self.num_calls % len(self.seeds)])
        self.num_calls += 1
        return super().forward(*args, **kwargs)


class Model(PyroModule):
    """With deterministic parameters of all kinds, one that nothing uses among them."""

    def __init__(self):
        super().__init__()
        layers = PyroModule[nn.Linear](3, 4), nn.Tanh(), BayesianLinear(4, 1)
        self.net = PyroModule[nn.Sequential](*layers).double()
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, x, y=None):
        shift = pyro.param("shift", torch.tensor(0.1 + rank(), dtype=DOUBLE))
        mean = self.net(x).squeeze(-1) + shift
        with pyro.plate("data", 13, subsample=x):
            pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)


def state(*modules):
    found = {f"{i}.{n}": x for i, m in enumerate(modules) for n, x in m.state_dict().items()}
    store = dict(pyro.get_param_store().named_parameters())
    found |= {"shift": store["shift"]} if "shift" in store else {}
    return {name: x.detach().clone() for name, x in found.items()}


def sgd(groups):
    return torch.optim.SGD([{"params": group["params"], "lr": 1e-3} for group in groups])


def equal(given, seeds=(7,), **kwargs):
    """What is trained, from parameters that differ by rank, with draws that do not."""
    pyro.clear_param_store()
    torch.manual_seed(5 + rank())
    model = Model()
    guide = Seeded(model)
    guide.seeds = seeds
    torch.manual_seed(5)
    history = fit(model, guide, given, 3, optimizer=sgd, num_data=13, progress=False, **kwargs)
    return state(model, guide), dict(history)


def same_draws():
    x, y = data()
    seen = iter(range(13))
    parts = {"accumulate": 2, "clip_norm": 0.1, "validation": (x[:7], y[:7])}
    return {
        "all rows": equal((x, y), validation=(x[:1], y[:1])),
        "batches": equal((x, y), batch_size=5, **parts),
        "last batch of one row": equal({"x": x[:11], "y": y[:11]}, batch_size=5),
        "loader": equal(loader(13, 5, shuffle=True), validation=loader(9, 4)),
        "loader of lists": equal(
            DataLoader(TensorDataset(x, y), None, sampler=[[next(seen)] for _ in range(13)])
        ),
    }


def particles():
    """The draws of seeds 3 and 4, on two ranks or one after the other."""
    several = torch.distributed.is_initialized()
    kwargs = {"ranks": "particles"} if several else {"num_particles": 2}
    seeds = (3 + rank(),) if several else (3, 4)
    return {
        "rows": equal(data(), seeds, **kwargs),
        "loader": equal(loader(13, 5), seeds, **kwargs),
    }


# The same recipes as in the documentation.


def gradients(loss_of, module, x, y):
    """Of a module that is wrapped if there are several ranks, with half of the rows for each."""
    several = torch.distributed.is_initialized()
    rows = slice(6 * rank(), 6 * rank() + 6) if several else slice(12)
    wrapped = DistributedDataParallel(module) if several else module
    torch.manual_seed(1)
    loss_of(wrapped, x[rows], y[rows]).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def plain(module, x, y):
    out, kl = module(x)
    return (out.squeeze(-1) - y).square().mean() + kl / 12


def recipes():
    x, y = data(12)

    found = {}
    for kind in (AutoReparameterization, AutoRadial, AutoMixture):
        torch.manual_seed(2 + rank())
        net = bayesianize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))).double()
        model = BNN(net, Normal(), num_data=12)
        elbo = TraceKL_ELBO()(model, kind(model))
        found[f"ELBO, {kind.__name__}"] = gradients(lambda m, x, y: m(x, y), elbo, x, y)
        found[f"Standalone, {kind.__name__}"] = gradients(plain, Standalone(net, kind(net)), x, y)
    torch.manual_seed(2 + rank())
    layers = [LinearReparameterization(n, m, dtype=DOUBLE) for n, m in ((3, 4), (4, 1))]
    module = WithKL(nn.Sequential(layers[0], nn.Tanh(), layers[1]))
    found["WithKL"] = gradients(plain, module, x, y)
    return found


# Parameters that ranks divide, by `fully_shard`.

SHARDED = ("ELBO, AutoReparameterization", "Standalone, AutoRadial", "Standalone, AutoMixture")


def to_be_sharded(name):
    form, kind = name.split(", ")
    pyro.clear_param_store()
    torch.manual_seed(2)
    net = bayesianize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))).double()
    model = BNN(net, Normal(0.5), num_data=12)
    guide = getattr(guides, kind)(model)
    return TraceKL_ELBO()(model, guide) if form == "ELBO" else Standalone(net, guide)


def sharded(folder):
    """Three steps of each form, and files of `torch.distributed.checkpoint`."""
    several = torch.distributed.is_initialized()
    x, y = (t[6 * rank() : 6 * rank() + 6] if several else t for t in data(12))
    found = {}
    for i, name in enumerate(SHARDED):
        module = to_be_sharded(name)
        if several:
            fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
        optimizer = torch.optim.Adam(module.parameters(), 0.01)
        for step in range(3):
            torch.manual_seed(step)
            loss = module(x, y) if name.startswith("ELBO") else plain(module, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        parameters = dict(module.named_parameters())
        if several:
            assert all(p.to_local().numel() <= -(-p.numel() // 2) + 4 for p in parameters.values())
            dcp.save({"module": get_model_state_dict(module)}, checkpoint_id=folder / f"dcp{i}")
            parameters = {n: p.full_tensor() for n, p in parameters.items()}
        found[name] = {n: p.detach().clone() for n, p in parameters.items()}
    return found


# Runs as users make them, all ranks seeded alike.


def network():
    pyro.clear_param_store()
    torch.manual_seed(0)
    return BNN(
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Tanh(), nn.Linear(4, 1)), Normal()
    )


class StopError(Exception):
    pass


def run(path=None, epochs=2, **kwargs):
    model = network().double()
    guide = AutoLRT(model)
    options = {"batch_size": 5, "seed": 1, "checkpoint_every": 4, "progress": False} | kwargs
    history = fit(model, guide, data(), epochs, checkpoint=path, resume=path is not None, **options)
    return state(model, guide), dict(history)


def interrupted(path, step):
    def stop(run):
        if run.num_steps == step:
            raise StopError

    try:
        run(path, callbacks=[stop])
    except StopError:
        return True


def resumed(path):
    """What is found in the end, and the steps from the checkpoint on."""
    steps = []
    return run(path, callbacks=[lambda run: steps.append(run.num_steps)]), steps


def checkpoints(folder):
    """Whole, interrupted and resumed, and from what one process has left."""
    return {
        "whole": run(folder / "whole.pt"),
        "interrupted": interrupted(folder / "parts.pt", 5),
        "resumed": resumed(folder / "parts.pt"),
        "of one": run(folder / "one.pt"),
        "random numbers": torch.rand(3),
    }


def stopped():
    """By data on which it cannot become better, and by a callback of one rank."""
    x, y = data()
    on_last = lambda run: rank() == 1 and run.num_steps == 2
    impossible = {"validation": (x, 9 * y.flip(0)), "warmup": 0, "lr": 0.1, "patience": 1}
    return {
        "patience": run(epochs=60, batch_size=None, **impossible)[1],
        "callback": run(callbacks=[on_last])[1],
    }


def own_loop(folder):
    """With a checkpoint that all ranks write to one file, or one of them."""
    model = network()
    torch.manual_seed(1)
    save(folder / "all.pt", model)
    if rank() == 0:
        save(folder / "first.pt", model)
    torch.distributed.barrier()
    found = []
    for name in ("all.pt", "first.pt"):
        resume(folder / name, model)
        found.append(torch.rand(3))
    return found


def pyro_and_torch():
    """By Pyro's SVI and optimizer, and by torch's on the wrapped ELBO module: rows by rank."""
    x, y = (t[6 * rank() : 6 * rank() + 6] for t in data(12))

    def built():
        model = network().double()
        model.num_data = 12
        return model, AutoLRT(model)

    model, guide = built()
    svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            svi.step(x, y)
    found = {"said": [str(w.message) for w in said], "SVI": state(guide)}

    model, guide = built()
    loss_of = DistributedDataParallel(TraceKL_ELBO()(model, guide))
    optimizer = torch.optim.Adam(guide.parameter_groups(lr=0.01, scale_lr=0.01))
    torch.manual_seed(rank())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(x, y).backward()
            optimizer.step()
    return found | {"DDP": state(guide), "start": state(built()[1])}


def distributed_sampler():
    rows = []
    dataset = TensorDataset(*data())
    given = DataLoader(dataset, 3, sampler=DistributedSampler(dataset, seed=1))
    model = BNN(nn.Linear(3, 1), Normal()).double()
    model.register_forward_pre_hook(lambda _, args: rows.append(args[0]))
    fit(model, AutoLRT(model), given, 2, progress=False)
    return torch.cat(rows)


def refused(folder):
    """Errors, which all ranks must have."""
    x, y = data()

    def error(given=(x, y), model=None, **kwargs):
        model = network().double() if model is None else model
        torch.manual_seed(0)
        guide = AutoLRT(model)
        before = state(model, guide)
        try:
            fit(model, guide, given, 2, progress=False, **kwargs)
        except ValueError as error:
            same = all(torch.equal(p, before[n]) for n, p in state(model, guide).items())
            return str(error), same

    class Root(PyroModule):
        def forward(self, x, y=None):
            weight = self.net.weight.sum()
            root = (weight - weight).square().sqrt() if x[0, 0] == 0 else 0
            mean = self.net(x).squeeze(-1) + root
            with pyro.plate("data", 13, subsample=x):
                pyro.sample("obs", dist.Normal(mean, 1), obs=y)

    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    divided = BNN(bayesianize(layers, where="last_layer"), Normal(0.5)).double()
    if CAN_SHARD:
        fully_shard(divided, mesh=init_device_mesh("cpu", (2,)))
    root = Root()
    root.net = BayesianLinear(3, 1).double()
    zero = x.clone()
    zero[-3] = 0  # the first row of the last rank's part
    (folder / f"rank{rank()}.pt").write_text("")
    seen = folder / "rank0.pt" if rank() == 0 else folder / "nowhere.pt"
    dataset = TensorDataset(x, y)
    given = DataLoader(dataset, 3, sampler=DistributedSampler(dataset))
    return {
        "lr": error(lr=0.1 * (1 + rank())),
        "seen by one": error(checkpoint=seen, resume=True),
        "sampler": error(validation=given),
        "single data": error(DataLoader(dataset, None), num_data=13),
        "sharded": error(model=divided, num_data=13) if CAN_SHARD else ("", True),
        "gradient": error((zero[-6:], y[-6:]), root, num_data=13),
    }


def death(path, dying):
    """A rank dies in the middle of a run; what the other one says."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which torchrun ends it, maybe before
    die = lambda run: os._exit(3) if run.num_steps == 5 and rank() == dying else None
    try:
        run(path, callbacks=[die])
    except RuntimeError as error:
        return str(error)


def again(folder):
    """Goes on with a run that has lost rank 1, and loses rank 0 in another one."""
    found = {"resumed": resumed(folder / "died.pt")}
    torch.save(found, folder / f"found{rank()}.pt")
    found["death"] = death(folder / "first_died.pt", 0)
    torch.save(found, folder / f"found{rank()}.pt")


def main(folder):
    found = {"same draws": same_draws(), "particles": particles(), "recipes": recipes()}
    found |= {"checkpoints": checkpoints(folder), "stopped": stopped()}
    found |= {"own loop": own_loop(folder), "sampler": distributed_sampler()}
    found |= {"pyro and torch": pyro_and_torch()}
    found |= {"refused": refused(folder), "sharded": sharded(folder) if CAN_SHARD else None}
    torch.save(found, folder / f"found{rank()}.pt")
    found["death"] = death(folder / "died.pt", 1)
    torch.save(found, folder / f"found{rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    (again if (folder / "died.pt").exists() else main)(folder)
