"""
Time series: how far ahead can sunspots be predicted?
=====================================================

A small LSTM learns the yearly sunspot numbers from 1700 to 1958, and forecasts the 50 years after:
each year from the years before, and all years at once by simulation. For the simulation, a sample
of the weights becomes a plain network, which continues from its own forecasts. Each path is the
future according to one network.
"""

import matplotlib.pyplot as plt
import torch
from helpers import few, save, tensor
from statsmodels.datasets import sunspots
from torch import Tensor, nn

from pyro_bnn import BNN, bayesianize, evaluate, fit, likelihoods, predict, priors, to_deterministic
from pyro_bnn.guides import AutoReparameterization

torch.manual_seed(0)
HELD_OUT, WINDOW = 50, 22  # years

# %%
# Square roots make the noise of the numbers even. From a window of 22 years, two cycles, the
# network predicts the change to the next year. Windows overlap, but each year is predicted once.

spots = sunspots.load_pandas().data
years, numbers = tensor(spots["YEAR"]), tensor(spots["SUNACTIVITY"])
mean, std = numbers[:-HELD_OUT].sqrt().mean(), numbers[:-HELD_OUT].sqrt().std()
windows = ((numbers.sqrt() - mean) / std).unfold(0, WINDOW + 1, 1)
x, y = windows[:, :-1], windows[:, -1]
test = x[-HELD_OUT:], y[-HELD_OUT:]


# %%
# ``bayesianize`` turns the LSTM into a :class:`~pyro_bnn.nn.BayesianLSTM`, whose weights are
# sampled once for a window.


class Forecaster(nn.Module):
    """The next value: the last one plus a change that an LSTM computes from the window."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 8, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(x.unsqueeze(-1))
        return x[:, -1:] + self.head(outputs[:, -1])


model = BNN(bayesianize(Forecaster(), prior=priors.FanInNormal()), likelihoods.Normal())
guide = AutoReparameterization(model)
fit(model, guide, (x[:-HELD_OUT], y[:-HELD_OUT]), epochs=few(800, 5), batch_size=len(x), lr=2e-2)
for name, value in evaluate(model, guide, test, num_samples=few(300, 5)).items():
    print(f"{name:18}{value:8.3f}")

# %%
# For one year ahead, ``predict`` has all of the uncertainty. For 50 years, simulated paths have it.


def restore(z: Tensor) -> Tensor:
    """Sunspot numbers from standardised square roots, which are not below 0."""
    return (z * std + mean).clamp_min(0).square()


next_year = predict(model, guide, test[0], num_samples=few(300, 5))
noise = next_year.aleatoric.mean().sqrt()
paths = []
for _ in range(few(60, 2)):
    net = to_deterministic(model.net, guide, draw=guide(*test))
    path = test[0][:1].expand(5, -1)  # five futures of each network, with independent noise
    with torch.no_grad():
        for _ in range(HELD_OUT):
            value = net(path[:, -WINDOW:]) + noise * torch.randn(5, 1)
            path = torch.cat([path, value], 1)
    paths.append(path[:, -HELD_OUT:])
futures = restore(torch.cat(paths))

# %%
# After some cycles, the paths are out of step. Then only the distribution over all years is known,
# and the band shows it.

figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True, layout="constrained")
ahead = restore(next_year.samples)
for axis, drawn, title in zip(
    axes, (ahead, futures), ("One year ahead", "Up to 50 years ahead"), strict=True
):
    for level, alpha in ((0.5, 0.5), (0.9, 0.25)):
        low, high = drawn.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]), 0)
        band = {"color": "C0", "alpha": alpha, "linewidth": 0, "label": f"{level:.0%}"}
        axis.fill_between(years[-HELD_OUT:], low, high, **band)
    axis.plot(years[-HELD_OUT - WINDOW :], numbers[-HELD_OUT - WINDOW :], "k", label="observed")
    axis.set(title=title, ylim=(0, 300))
axes[1].plot(years[-HELD_OUT:], futures[0], color="C1", linewidth=0.9, label="one path")
axes[0].set_ylabel("sunspot number")
axes[1].legend(ncols=2)
save(figure, "sunspots")
