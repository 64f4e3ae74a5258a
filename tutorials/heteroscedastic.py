"""
Regression: does the noise depend on the input?
===============================================

In 1857 Ernst Engel recorded what 235 Belgian households earned and what they spent on food. Rich
households spend more, and differ more from each other. A network with one noise for all rows is
underconfident for poor households and overconfident for rich ones. A network with two outputs, mean
and noise, can be right for both.
"""

import matplotlib.pyplot as plt
import torch
from helpers import few, save, split, standardise, table, tensor
from statsmodels.datasets import engel
from torch import nn

from pyro_bnn import BNN, evaluate, fit, likelihoods, plots, predict
from pyro_bnn.guides import AutoLRT

torch.manual_seed(0)
households = engel.load_pandas().data / 1000  # in thousand francs a year
income, food = tensor(households[["income"]]), tensor(households["foodexp"])
(train_income, y), (test_income, test_y) = split(income, food, fraction=1 / 3)

# %%
# Inputs are standardised, and targets scaled to the order of 1. ``BNN`` turns each layer into a
# :class:`~pyro_bnn.nn.BayesianLinear`. The scales of its priors are learned, which works well for
# few data (:doc:`/defaults`). The two models differ in their likelihood and in the number of
# outputs per row that it needs: one or two.


def train(num_outputs: int, likelihood: likelihoods.Likelihood) -> tuple:
    net = nn.Sequential(nn.Linear(1, 30), nn.Tanh(), nn.Linear(30, num_outputs))
    model = BNN(net, likelihood)
    guide = AutoLRT(model)
    fit(model, guide, (standardise(train_income), y), epochs=few(1200, 3))
    return model, guide


models = {
    "one noise": train(1, likelihoods.Normal()),
    "noise by income": train(2, likelihoods.HeteroscedasticNormal()),
}

# %%
# A third of the households was held out. ``log_density`` is the mean log density of their expenses,
# in nats. ``coverage`` is the fraction of them inside their 90% interval, ``sharpness`` the mean
# width of the intervals.

test = standardise(test_income, train_income), test_y
rows = {name: evaluate(*pair, test, num_samples=few(500, 5)) for name, pair in models.items()}
print(table(rows))

# %%
# The second model has the better log density. Its band is narrow where households are similar.

grid = torch.linspace(0.35, 3.0, 200).unsqueeze(-1)
figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
for axis, (name, pair) in zip(axes, models.items(), strict=True):
    prediction = predict(*pair, standardise(grid, train_income), num_samples=few(1000, 10))
    plots.predictive_band(grid, prediction, data=(test_income, test_y), ax=axis)
    axis.set_title(f"{name}: log density {rows[name]['log_density']:.2f} nats")
    axis.set(xlabel="income (1000 francs)", ylabel="spent on food (1000 francs)", xlim=(0.3, 3))
axes[0].set_ylim(0, 2.2)
axes[1].legend().remove()
save(figure, "heteroscedastic")
