"""
A plain torch loop, compiled
============================

You do not have to use Pyro: ``Standalone`` is a torch module that returns the output and the KL
divergence, and ``torch.compile`` compiles it to one graph. The question: which of 569 tumours
should a doctor look at again, because the network is not certain whether they are malignant?
"""

import time

import matplotlib.pyplot as plt
import torch
from helpers import few, save, split, standardise, tensor
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_bnn import bayesianize
from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import KLWarmup
from pyro_bnn.priors import FanInNormal
from pyro_bnn.scores import accuracy_kept

torch.manual_seed(0)
measured, benign = load_breast_cancer(return_X_y=True)
(x, y), (test_x, test_y) = split(standardise(tensor(measured)), 1 - tensor(benign), fraction=0.5)

# %%
# The loss is the mean negative log-likelihood plus the KL divergence over the number of *all* data
# (here there is one batch). ``KLWarmup`` raises the weight of the KL divergence slowly; ``kl`` is
# multiplied by it already. Scales have a separate learning rate.

net = bayesianize(
    nn.Sequential(nn.Linear(30, 50), nn.ReLU(), nn.Linear(50, 1)), prior=FanInNormal()
)
model = Standalone(net, AutoLRT(net))
groups = model.parameter_groups(lr=1e-2, scale_lr=3e-2)
optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
NUM_STEPS = few(1500, 10)
warmup = KLWarmup(model, steps=NUM_STEPS // 2)
compiled = torch.compile(model, fullgraph=True, backend=few("inductor", "eager"))

nlls, kls, start = [], [], time.perf_counter()
for _ in range(NUM_STEPS):
    optimizer.zero_grad()
    logits, kl = compiled(x)
    nll = binary_cross_entropy_with_logits(logits.squeeze(-1), y)
    (nll + kl / len(x)).backward()
    optimizer.step()
    warmup.step()
    nlls.append(nll.item())
    kls.append(kl.item() / len(x))
print(f"{NUM_STEPS} steps in {time.perf_counter() - start:.0f} s, compilation included")

# %%
# Each call samples new weights. Predictions are averages over calls, and the uncertainty is the
# entropy of the averaged probability.

with torch.no_grad():
    logits = torch.stack([model(test_x)[0].squeeze(-1) for _ in range(few(200, 5))])
probs = logits.sigmoid().mean(0)
uncertainty = torch.special.entr(torch.stack([probs, 1 - probs])).sum(0)
correct = (probs > 0.5) == (test_y > 0.5)
rejected, accuracy = accuracy_kept(uncertainty, correct.double())
print(
    f"accuracy {correct.double().mean():.3f}; without the most uncertain tenth "
    f"{accuracy[rejected.sub(0.1).abs().argmin()]:.3f}"
)

# %%
# The uncertainty is useful: most errors are among the most uncertain tumours, so that the accuracy
# of the others is higher.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.plot(nlls, label="negative log likelihood")
left.plot(kls, label="KL divergence, with its weight")
left.set(xlabel="step", ylabel="nats per tumour", title="Training", ylim=(0, 1))
left.legend()
right.plot(rejected, accuracy)
right.set(xlabel="fraction that a doctor looks at", ylabel="accuracy of the others", xlim=(0, 0.5))
right.set_title("The most uncertain first")
save(figure, "plain_torch")
