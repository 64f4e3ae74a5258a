"""
A network inside a larger model: carbon dioxide in the air
==========================================================

What is known does not have to be learned. The carbon dioxide in the air grows exponentially above
its preindustrial level of 280 ppm, and changes with the seasons in a way for which there is no
formula. So the model has latent variables for the rate of growth and for an amplitude that may
change, and a Bayesian network for the seasons. All are inferred together, from the record of Mauna
Loa until 1980, and predict the next twenty years.
"""

import math

import matplotlib.pyplot as plt
import pyro
import torch
from helpers import few, save, tensor
from pyro import distributions as dist
from pyro.nn import PyroModule, PyroSample
from statsmodels.datasets import co2
from torch import Tensor, nn

from pyro_bnn import bayesianize, fit
from pyro_bnn.guides import AutoReparameterization
from pyro_bnn.infer import Predictive

monthly = co2.load_pandas().data["co2"].resample("MS").mean().dropna()
years = tensor(monthly.index.year + (monthly.index.month - 0.5) / 12)
ppm = tensor(monthly)
past = years < 1980


class Carbon(PyroModule):
    """Exponential growth, and seasons whose shape is unknown and whose amplitude may grow."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.excess = PyroSample(dist.LogNormal(math.log(50.0), 0.5))  # ppm above 280, in 1975
        self.rate = PyroSample(dist.LogNormal(math.log(0.02), 0.5))  # a year
        self.change = PyroSample(dist.Normal(0.0, 0.02))  # of the amplitude, a year
        self.noise = PyroSample(dist.HalfNormal(1.0))
        self.season = bayesianize(
            nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 1, bias=False)),
            prior=dist.Normal(0.0, 1.0),
        )

    def parts(self, year: Tensor) -> tuple[Tensor, Tensor]:
        time, angle = year - 1975, 2 * math.pi * year
        growth = 280 + self.excess * (self.rate * time).exp()
        circle = torch.stack([angle.cos(), angle.sin()], -1)
        return growth, (1 + self.change * time) * self.season(circle).squeeze(-1)

    def forward(self, year: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        growth, season = self.parts(year)
        noise = self.noise
        with pyro.plate("data", self.size, subsample=year):
            pyro.sample("obs", dist.Normal(growth + season, noise), obs=y)
        return torch.stack([growth, season], -1)


torch.manual_seed(0)
x, y = years[past], ppm[past]
model = Carbon(len(x))
guide = AutoReparameterization(model)
fit(model, guide, (x, y), epochs=few(2500, 5), batch_size=len(x))

# %%
# ``Predictive`` samples all latent variables, and returns those that are named, the observations
# and the output of the model.

sites = ["rate", "change", "noise", "obs", "_RETURN"]
drawn = Predictive(model, guide=guide, num_samples=few(500, 5), return_sites=sites)(years)
for site, unit in (("rate", "% a year"), ("change", "% a year")):
    value = 100 * drawn[site]
    print(f"{site}: {value.mean():.2f} ± {value.std():.2f} {unit}")
low, middle, high = drawn["obs"].quantile(torch.tensor([0.05, 0.5, 0.95]), 0)
inside = ((low < ppm) & (ppm < high)).float()
for start in (1980, 1990):
    decade = (years >= start) & (years < start + 10)
    print(f"{start} to {start + 9}: {inside[decade].mean():.0%} of months are in the 90% band")

# %%
# The forecast follows the record for twenty years. Its band is too narrow: fewer than 90% of months
# are inside, since the model takes the deviations of successive months for independent, and growth
# for exactly exponential. A band holds only under the assumptions of its model.
#
# The season is not symmetric: carbon dioxide rises slowly until May and falls steeply in summer,
# when the northern forests grow. A sine could not describe this.

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
left.fill_between(years, low, high, color="C0", alpha=0.3, linewidth=0, label="90% of predictions")
left.plot(years[past], ppm[past], color="black", linewidth=0.8, label="observed")
left.plot(years[~past], ppm[~past], color="C3", linewidth=0.8, label="held out")
left.set(ylabel="CO$_2$ (ppm)", title="Growth and seasons")
left.legend()
month = torch.linspace(0, 1, 100)
season = Predictive(model, guide=guide, num_samples=few(200, 5), return_sites=["_RETURN"])(
    1975 + month
)
low, middle, high = season["_RETURN"][..., 1].quantile(torch.tensor([0.05, 0.5, 0.95]), 0)
right.fill_between(12 * month, low, high, color="C0", alpha=0.3, linewidth=0)
right.plot(12 * month, middle, color="C0")
right.set(xlabel="month", ylabel="season (ppm)", title="The unknown function, with its 90% band")
right.set_xticks([0.5 + i for i in range(12)], "JFMAMJJASOND")
save(figure, "physics")
