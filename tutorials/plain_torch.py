"""
A plain torch loop, compiled
============================

Nothing of Pyro has to be seen: ``Standalone`` is a torch module that returns the output and the KL
divergence, and ``torch.compile`` takes it in one graph. The question: which of 569 tumours should a
doctor look at again, because the network is not sure whether they are malignant?
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
(x, y), (test_x, test_y) = split(standardise(tensor(measured)), 1 - tensor(benign), share=0.5)

# %%
# The loss is the mean negative log likelihood, plus the KL divergence over the number of *all*
# data, here those of the only batch. ``KLWarmup`` lets the KL divergence come in slowly (``kl`` has
# that weight already), and scales have a learning rate of their own.

net = bayesianize(
    nn.Sequential(nn.Linear(30, 50), nn.ReLU(), nn.Linear(50, 1)), prior=FanInNormal()
)
model = Standalone(net, AutoLRT(net))
optimizer = torch.optim.Adam(model.parameter_groups(lr=1e-2, scale_lr=3e-2))
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
# Each call draws the weights anew, so that predictions are averages of calls. Doubt is the entropy
# of the averaged probability.

with torch.no_grad():
    probs = torch.stack([model(test_x)[0].squeeze(-1).sigmoid() for _ in range(few(200, 5))]).mean(
        0
    )
doubt = torch.special.entr(torch.stack([probs, 1 - probs])).sum(0)
correct = (probs > 0.5) == (test_y > 0.5)
rejected, accuracy = accuracy_kept(doubt, correct.double())
print(
    f"accuracy {correct.double().mean():.3f}; without the most doubtful tenth "
    f"{accuracy[rejected.sub(0.1).abs().argmin()]:.3f}"
)

# %%
# If doubt is worth anything, errors are among the most doubtful, and the accuracy of the others
# rises.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.plot(nlls, label="negative log likelihood")
left.plot(kls, label="KL divergence, with its weight")
left.set(xlabel="step", ylabel="nats a tumour", title="Training", ylim=(0, 1))
left.legend()
right.plot(rejected, accuracy)
right.set(xlabel="share that a doctor looks at", ylabel="accuracy of the others", xlim=(0, 0.5))
right.set_title("The most doubtful first")
save(figure, "plain_torch")
