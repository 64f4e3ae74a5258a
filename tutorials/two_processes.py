"""
Two processes: the same posterior in less time?
===============================================

``fit`` trains on as many processes as ``torchrun`` starts. They divide each batch and average their
gradients, so that two processes need at best half of the time for a step. Do they find the same
posterior? A convolutional network learns images of clothes in one process, and in two.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from helpers import fashion, few, save, table
from torch import nn

from pyro_bnn import BNN, evaluate, fit, likelihoods, predict
from pyro_bnn.guides import AutoReparameterization

# %%
# ``torchrun`` starts this script itself, twice. (A notebook needs the script in the same folder.)

SCRIPT = globals().get("__file__", "two_processes.py")
IS_RANK = torch.distributed.is_torchelastic_launched()  # whether this process is one of the two
data, test = fashion(few(12_800, 256), few(1000, 50))

# %%
# Model, guide and the call of ``fit`` are the same for one process and for two. A step has 256
# images, of which each of two processes gets 128. Each process samples its own weights.


def build() -> tuple[BNN, AutoReparameterization]:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(8, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    model = BNN(net, likelihoods.Categorical())
    return model, AutoReparameterization(model)


def train(path: Path) -> None:
    """Trains, and writes the posterior and the ELBO against time to a file."""
    model, guide = build()
    seconds, start = [], time.perf_counter()
    clock = lambda run: seconds.append(time.perf_counter() - start)  # after each step
    history = fit(model, guide, data, epochs=few(5, 2), batch_size=256, callbacks=[clock])
    if not IS_RANK or torch.distributed.get_rank() == 0:
        last_steps = [int(step) - 1 for step in history["step"]]
        curve = [seconds[step] for step in last_steps], history["bound"]
        torch.save({"guide": guide.state_dict(), "curve": curve}, path)


if IS_RANK:
    train(Path(os.environ["TRAINED"]))
    sys.exit()  # the other process evaluates and draws

# %%
# After training, both processes have the same posterior; the first one has written it. It is loaded
# into a guide that is built in the same way.

folder = Path(tempfile.mkdtemp())
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
torchrun += [f"--nproc-per-node={few(2, 1)}"]
environment = os.environ | {"TRAINED": str(folder / "two.pt"), "OMP_NUM_THREADS": "1"}
subprocess.run([*torchrun, SCRIPT], env=environment, check=True)
train(folder / "one.pt")

curves, rows, probs = {}, {}, {}
for name, file in (("one process", "one.pt"), ("two processes", "two.pt")):
    trained = torch.load(folder / file)
    model, guide = build()
    guide.load_state_dict(trained["guide"])
    curves[name] = seconds, bounds = trained["curve"]
    scores = evaluate(model, guide, test, num_samples=few(30, 3))
    rows[name] = {"seconds": seconds[-1], "ELBO": sum(bounds[-20:]) / len(bounds[-20:])} | scores
    probs[name] = predict(model, guide, test[0], num_samples=few(30, 3)).mean
print(table(rows))

# %%
# In as many steps, both reach about the same ELBO. The steps of two processes are shorter only if
# two cores are free, and how much depends on the network. A small one, as here, spends much of a
# step on calls and on waiting for the other process. The two posteriors agree on which images are
# uncertain (right).

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for name, (seconds, bounds) in curves.items():
    left.plot(seconds, bounds, label=f"{name}: {seconds[-1]:.0f} s")
left.set(xlabel="seconds", ylabel="ELBO (nats per image)", ylim=(-8, 0), title="Training")
left.legend(loc="lower right")
one, two = (torch.special.entr(p).sum(-1) for p in probs.values())
right.plot([0, 2.3], [0, 2.3], color="gray", linewidth=0.8)
right.plot(one, two, ".", alpha=0.3, markeredgewidth=0)
right.set(xlabel="one process", ylabel="two processes", title="Entropy of each test image (nats)")
save(figure, "two_processes")
