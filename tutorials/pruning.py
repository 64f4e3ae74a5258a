"""
Pruning: how many weights does a network need?
==============================================

Under the posterior, some weights have a mean that is small compared to their standard deviation.
Such weights are mostly noise and can be removed (Graves 2011; Blundell et al. 2015). Is this ratio
a better criterion than the magnitude of weights in a deterministic network?
"""

import copy

import matplotlib.pyplot as plt
import torch
from helpers import digits, few, save
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from pyro_bnn import BNN, bayesianize, fit, likelihoods, plots, prune, summary, to_deterministic
from pyro_bnn.guides import AutoLRT

torch.manual_seed(0)
(x, y), (test_x, test_y) = digits()


def network() -> nn.Sequential:
    layers = [nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(*layers)


def accuracy(net: nn.Module) -> float:
    return (net(test_x).argmax(-1) == test_y).float().mean().item()


# %%
# The Bayesian network has the prior N(0, 1). The deterministic one is the most probable network
# under the same prior, which amounts to a weight decay of 1 over the number of images.

model = BNN(bayesianize(network()), likelihoods.Categorical())
guide = AutoLRT(model)
fit(model, guide, (x, y), epochs=few(150, 10), batch_size=128)

net = network()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=1 / len(x))
for _ in range(few(1000, 50)):
    rows = torch.randint(len(x), (128,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
    optimizer.step()

# %%
# Both are pruned without further training. The pruned Bayesian network is evaluated as a plain
# network with the posterior means, as one would deploy it.

FRACTIONS = (0.0, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99)


def by_ratio(fraction: float) -> nn.Module:
    pruned = copy.deepcopy(guide)
    prune(pruned, fraction=fraction)
    return to_deterministic(model.net, pruned)


def by_magnitude(fraction: float) -> nn.Module:
    pruned = copy.deepcopy(net)
    layers = [layer for layer in pruned if isinstance(layer, nn.Linear)]
    parameters = [(layer, name) for layer in layers for name in ("weight", "bias")]
    global_unstructured(parameters, L1Unstructured, amount=fraction)
    return pruned


accuracies = {
    "Bayesian, by signal to noise": [accuracy(by_ratio(f)) for f in FRACTIONS],
    "deterministic, by magnitude": [accuracy(by_magnitude(f)) for f in FRACTIONS],
}

# %%
# Pruned by the ratio, the network keeps its accuracy until most of its weights are removed. Pruned
# by magnitude, it loses accuracy earlier. Further training after pruning would make up for most of
# the difference.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name, values in accuracies.items():
    left.plot([1 - f for f in FRACTIONS], values, marker=".", label=name)
left.set(xscale="log", xlabel="weights removed", ylabel="accuracy on new images", ylim=(0, 1.02))
left.set_xticks([1 - f for f in FRACTIONS], [f"{f:.0%}" for f in FRACTIONS], rotation=45)
left.minorticks_off()
left.invert_xaxis()
left.legend()
plots.signal_to_noise(guide, sites="*.weight", ax=right)
right.set_title("Removed by prune(guide): left of the line")
save(figure, "pruning")

# %%
# The default threshold of the ratio, 0.83, is from Graves (2011). The pruned network can be
# exported like any other.

print(prune(guide), "\n")
summary(model, guide)
exported = torch.export.export(to_deterministic(model.net, guide), (test_x,))
assert isinstance(exported.module()(test_x), Tensor)
