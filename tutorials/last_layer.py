"""
The last layer only: how many features do the data support?
===========================================================

A network with only a Bayesian last layer is Bayesian linear regression on features that the other
layers have learned. Its posterior is exact, with all covariances. So is the evidence, which can
compare networks without held-out data. The question: how does the concentration of carbon dioxide
in the air depend on the season?
"""

import math

import matplotlib.pyplot as plt
import torch
from helpers import few, save, tensor
from statsmodels.datasets import co2
from torch import Tensor, nn

from pyro_bnn import BNN, bayesianize, fit, likelihoods, plots, predict, refit_last_layer
from pyro_bnn.guides import AutoLRT
from pyro_bnn.posteriors import FullNormalPosterior

# %%
# The data are the weekly record of Mauna Loa from 1985 to 1990, minus the mean over 52 weeks. The
# months November to January are hidden. The inputs are the sine and the cosine of the season, so
# that December is next to January.

weekly = co2.load_pandas().data["co2"].interpolate()
season = (weekly - weekly.rolling(52, center=True).mean())["1985":"1990"]
day, ppm = tensor(season.index.day_of_year), tensor(season)
seen = (day > 31) & (day <= 304)


def on_circle(day: Tensor) -> Tensor:
    angle = 2 * math.pi * day / 365.25
    return torch.stack([angle.cos(), angle.sin()], -1)


data = on_circle(day[seen]), ppm[seen]

# %%
# ``where="last_layer"`` makes the last layer Bayesian. ``fit`` trains the whole network. Then
# ``refit_last_layer`` computes the exact posterior of the last layer, and returns the log evidence.
# The last layer has no bias, since the targets have mean 0.

SIZES = few((2, 5, 10, 20, 50, 100), (2, 5))
trained = {}
for size in SIZES:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, size), nn.Tanh(), nn.Linear(size, 1, bias=False))
    model = BNN(bayesianize(net, where="last_layer"), likelihoods.Normal())
    guide = AutoLRT(model, sites={"net.2.weight": FullNormalPosterior})
    fit(model, guide, data, epochs=few(400, 5), batch_size=512)
    evidence = refit_last_layer(model, guide, data) / len(data[0])
    trained[size] = model, guide, evidence
    print(f"{size:3} features: log evidence {evidence:.3f} nats per week")
best = max(trained, key=lambda size: trained[size][2])

# %%
# The evidence rises as long as features improve the fit, and falls when there are more of them than
# the data support. In the hidden months the band of the mean (dark) widens, since the posterior
# knows which combinations of weights the data do not determine. Mean-field posteriors do not know
# this (:doc:`/mean_field`).

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=[1, 2])
axes[0].plot(range(len(SIZES)), [trained[size][2] for size in SIZES], "o-")
axes[0].set_xticks(range(len(SIZES)), SIZES)
axes[0].set(xlabel="features", ylabel="log evidence (nats per week)", title="Which size?")
model, guide, _ = trained[best]
grid = torch.linspace(1, 365, 365)
prediction = predict(model, guide, on_circle(grid), num_samples=few(500, 10))
plots.predictive_band(grid, prediction, data=(day[seen], ppm[seen]), ax=axes[1])
axes[1].plot(day[~seen], ppm[~seen], ".", color="C3", markersize=3, label="hidden")
axes[1].set(xlabel="day of the year", ylabel="CO$_2$ above its yearly mean (ppm)", ylim=(-6, 6))
axes[1].set_title(f"{best} features")
axes[1].legend(loc="upper right")
save(figure, "last_layer")
