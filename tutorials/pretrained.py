"""
Pretrained networks: is a Bayesian one faster to train from them?
=================================================================

The weights of a trained network are a good start for a posterior. MOPED (Krishnan et al. 2020)
takes both the prior and the initial posterior from them. How many steps does that save?
"""

import copy

import matplotlib.pyplot as plt
import torch
from helpers import digits, few, save
from torch import nn

from pyro_bnn import BNN, bayesianize, evaluate, fit, likelihoods, priors
from pyro_bnn.guides import AutoLRT, init_to_fraction

torch.manual_seed(0)
(x, y), test = digits()

# %%
# First, a plain network is trained by maximum likelihood.

net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
fresh = copy.deepcopy(net)
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(few(500, 50)):
    rows = torch.randint(len(x), (128,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
    optimizer.step()

# %%
# Then three Bayesian networks are trained: one with the usual prior and a random start; one with
# the usual prior and a guide that starts at the trained weights; and one with MOPED, whose prior is
# centred at the trained weights and whose initial scales are proportional to them. There is no
# warm-up of the KL divergence, so that the ELBOs (:class:`~pyro_bnn.infer.TraceKL_ELBO`) in the
# :class:`~pyro_bnn.models.History` can be compared from the first step.

STARTS = {
    "random start": (bayesianize(fresh), {}),
    "trained weights": (bayesianize(net), {}),
    "MOPED": (
        bayesianize(net, prior=priors.Pretrained(scale=0.1)),
        {"init_scale": init_to_fraction(0.3)},
    ),
}
histories, trained = {}, {}
for name, (bnn, start) in STARTS.items():
    model = BNN(bnn, likelihoods.Categorical())
    guide = AutoLRT(model, **start)
    epochs = few(60, 3)
    histories[name] = fit(model, guide, (x, y), epochs=epochs, batch_size=128, warmup=0)
    trained[name] = evaluate(model, guide, test, num_samples=few(200, 5))

# %%
# Trained weights alone save no steps: at first, nearly all of the loss is the KL divergence of
# small scales, which have to grow, wherever the means are. MOPED needs a tenth of the steps for a
# better ELBO. A part of this gain is due to its prior, which comes from the same images as the
# likelihood (empirical Bayes), so that its ELBO is no bound on the evidence. The log density of
# held-out images (right) is better, too.

figure, (curve, bars) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name, history in histories.items():
    curve.plot(history["step"], history["bound"], label=name)
curve.axhline(-torch.tensor(10.0).log(), color="gray", linestyle=":", label="learned nothing")
curve.set(xlabel="step", ylabel="ELBO (nats per image)", ylim=(-6, 0.2), title="Training")
curve.legend()
values = [scores["log_density"] for scores in trained.values()]
bars.bar(list(trained), values, color=["C0", "C1", "C2"])
for i, (value, scores) in enumerate(zip(values, trained.values(), strict=True)):
    bars.annotate(f"accuracy\n{scores['accuracy']:.3f}", (i, value / 2), ha="center")
bars.set(ylabel="log density (nats per image)", title="Held-out images")
save(figure, "pretrained")
