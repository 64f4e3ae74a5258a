"""
The last layer only: how many features do the data support?
===========================================================

A network that is random in its last layer alone is Bayesian linear regression on features that the
other layers have learned. Its posterior is exact, with all covariances, and so is the evidence of
the data, by which features may be compared without held-out data. Here: how does the concentration
of carbon dioxide depend on the season?
"""

import matplotlib.pyplot as plt
import torch
from helpers import few, save, standardise, tensor
from statsmodels.datasets import co2
from torch import nn

from pyro_bnn import BNN, bayesianize, fit, likelihoods, plots, predict, refit_last_layer
from pyro_bnn.guides import AutoLRT
from pyro_bnn.posteriors import FullNormalPosterior

# %%
# What is left of the weekly record of Mauna Loa when the mean of the 52 weeks around is taken away,
# in the years 1985 to 1990. The months November to January are hidden.

weekly = co2.load_pandas().data["co2"].interpolate()
season = (weekly - weekly.rolling(52, center=True).mean())["1985":"1990"]
day, ppm = tensor(season.index.day_of_year), tensor(season)
seen = (day > 31) & (day <= 304)
x, y = standardise(day, day).unsqueeze(-1), ppm
data = x[seen], y[seen]

# %%
# ``where="last_layer"`` makes the last layer random. ``fit`` trains everything;
# ``refit_last_layer`` then sets the exact posterior, and returns the evidence. A bias would stay
# deterministic, so there is none; the targets have mean 0.

SIZES = few((2, 5, 10, 20, 50), (2, 5))
trained = {}
for size in SIZES:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, size), nn.Tanh(), nn.Linear(size, 1, bias=False))
    model = BNN(bayesianize(net, where="last_layer"), likelihoods.Normal())
    guide = AutoLRT(model, sites={"net.2.weight": FullNormalPosterior})
    fit(model, guide, data, epochs=few(250, 5), batch_size=128)
    evidence = refit_last_layer(model, guide, data) / len(data[0])
    trained[size] = model, guide, evidence
    print(f"{size:3} features: log evidence {evidence:.3f} nats a week")
best = max(trained, key=lambda size: trained[size][2])

# %%
# The size is chosen by the evidence, without held-out data. In the months that were hidden, the
# band widens, since the posterior knows which combinations of weights the data leave open; mean-
# field posteriors do not (:doc:`/mean_field`).

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=[1, 2])
axes[0].plot(range(len(SIZES)), [trained[size][2] for size in SIZES], "o-")
axes[0].set_xticks(range(len(SIZES)), SIZES)
axes[0].set(xlabel="features", ylabel="log evidence (nats a week)", title="Which size?")
model, guide, _ = trained[best]
grid = torch.linspace(1, 365, 365)
prediction = predict(model, guide, standardise(grid, day).unsqueeze(-1), num_samples=few(500, 10))
plots.predictive_band(grid, prediction, data=(day[seen], ppm[seen]), ax=axes[1])
axes[1].plot(day[~seen], ppm[~seen], ".", color="C3", markersize=3, label="hidden")
axes[1].set(xlabel="day of the year", ylabel="CO$_2$ above its yearly mean (ppm)", ylim=(-6, 6))
axes[1].set_title(f"{best} features")
axes[1].legend(loc="lower left")
save(figure, "last_layer")
