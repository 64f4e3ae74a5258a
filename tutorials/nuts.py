"""
Hierarchical scales: do the guides agree with NUTS?
===================================================

Hamiltonian Monte Carlo (NUTS) does not assume a family of posteriors. For a small network it is
affordable, and shows how good the five guides are. The question (Spector and Mazzeo 1980): does a
new method of teaching help students? The data are 32 students: their grade point average, whether
they had the new method, and whether their grade improved.
"""

import matplotlib.pyplot as plt
import pyro
import torch
from helpers import GUIDES, few, save, tensor
from pyro.infer import MCMC, NUTS
from statsmodels.datasets import spector
from torch import nn

from pyro_bnn import BNN, bayesianize, fit, likelihoods, priors
from pyro_bnn.infer import Predictive

pyro.set_rng_seed(0)
students = spector.load_pandas().data
x = tensor(students[["GPA", "PSI"]]) - torch.tensor([3.0, 0.5])
y = tensor(students["GRADE"])

# %%
# The scale of the weights of each layer is unknown: the prior is ``HierarchicalNormal``, which
# integrates it out. NUTS runs on the same model as the guides, which are
# :class:`~pyro_bnn.guides.AutoReparameterization`, :class:`~pyro_bnn.guides.AutoFlipout`,
# :class:`~pyro_bnn.guides.AutoLRT`, :class:`~pyro_bnn.guides.AutoRadial` and
# :class:`~pyro_bnn.guides.AutoMixture`.

net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
prior = priors.HierarchicalNormal("tensor", concentration=2.0, rate=4.0)
model = BNN(bayesianize(net, prior=prior), likelihoods.Bernoulli())
chain = MCMC(
    NUTS(model, max_tree_depth=few(5, 1), jit_compile=few(True, False), ignore_jit_warnings=True),
    num_samples=few(140, 2),
    warmup_steps=few(60, 2),
    disable_progbar=True,
)
chain.run(x, y)
posteriors = {"NUTS": chain.get_samples()}

for name, make in GUIDES.items():
    posteriors[name] = make(model)
    fit(model, posteriors[name], (x, y), epochs=few(800, 3))

# %%
# The probability that a grade improves, with 90% bands, for both methods of teaching.
# ``Predictive`` returns the output of the network (``"_RETURN"``), for samples of NUTS and for
# guides. All agree that the new method helps, and that good students improve more often. The guides
# are more cautious: for good students, their medians are nearer to 1/2 than those of NUTS, and
# their bands wider.

gpa = torch.linspace(2, 4, 50)
levels = torch.tensor([0.05, 0.5, 0.95])
figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), sharex=True, sharey=True, layout="constrained")
for axis, (name, posterior) in zip(axes.flat, posteriors.items(), strict=True):
    drawn = {"posterior_samples": posterior}
    if name != "NUTS":
        drawn = {"guide": posterior, "num_samples": few(300, 5)}
    predictive = Predictive(model, **drawn, return_sites=["_RETURN"])
    for psi, color, label in ((0.5, "C0", "new method"), (-0.5, "C1", "old method")):
        inputs = torch.stack([gpa - 3.0, torch.full_like(gpa, psi)], 1)
        logits = predictive(inputs)["_RETURN"].squeeze(-1)
        low, median, high = logits.sigmoid().quantile(levels, 0)
        axis.plot(gpa, median, color=color, label=label)
        axis.fill_between(gpa, low, high, color=color, alpha=0.25, linewidth=0)
        rows = x[:, 1] == psi
        axis.plot(x[rows, 0] + 3.0, 1.1 * y[rows] - 0.05, "|", color=color)
    axis.set(title=name, ylim=(-0.1, 1.1))
for axis in axes[:, 0]:
    axis.set_ylabel("probability of a better grade")
for axis in axes[1]:
    axis.set_xlabel("grade point average")
axes[0, 0].legend(loc=(0.03, 0.66))
save(figure, "nuts")
