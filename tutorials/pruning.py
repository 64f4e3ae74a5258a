"""
Pruning: how many weights does a network need?
==============================================

Under the posterior, some weights have a mean that is small compared to their standard deviation.
Such weights are mostly noise and can be removed (Graves 2011; Blundell et al. 2015). Is this ratio
a better criterion than the magnitude of weights? And how does a deterministic network compare?
"""

import copy

import matplotlib.pyplot as plt
import torch
from helpers import digits, few, save
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from pyro_bnn import BNN, fit, likelihoods, plots, prune, summary, to_deterministic
from pyro_bnn.guides import AutoLRT

torch.manual_seed(0)
(x, y), (test_x, test_y) = digits()


def network() -> nn.Sequential:
    layers = [nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(*layers)


def accuracy(net: nn.Module) -> float:
    return (net(test_x).argmax(-1) == test_y).float().mean().item()


# %%
# The Bayesian network learns the scales of its priors. The deterministic one is the most probable
# network under the prior N(0, 1), which amounts to a weight decay of 1 over the number of images.

model = BNN(network(), likelihoods.Categorical())
guide = AutoLRT(model)
fit(model, guide, (x, y), epochs=few(100, 10), batch_size=128)

net = network()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=1 / len(x))
for _ in range(few(1000, 50)):
    rows = torch.randint(len(x), (128,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
    optimizer.step()

# %%
# Both are pruned without further training. The pruned Bayesian network is evaluated as a plain
# network with the posterior means, as one would deploy it. These means are also pruned by their
# magnitude, to compare the two criteria on the same network.

FRACTIONS = (0.0, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99)


def by_ratio(fraction: float) -> nn.Module:
    pruned = copy.deepcopy(guide)
    prune(pruned, fraction=fraction)
    return to_deterministic(model.net, pruned)


def by_magnitude(net: nn.Module, fraction: float) -> nn.Module:
    pruned = copy.deepcopy(net)
    layers = [layer for layer in pruned if isinstance(layer, nn.Linear)]
    parameters = [(layer, name) for layer in layers for name in ("weight", "bias")]
    global_unstructured(parameters, L1Unstructured, amount=fraction)
    return pruned


means = to_deterministic(model.net, guide)
accuracies = {
    "Bayesian, by signal to noise": [accuracy(by_ratio(f)) for f in FRACTIONS],
    "Bayesian, by magnitude": [accuracy(by_magnitude(means, f)) for f in FRACTIONS],
    "deterministic, by magnitude": [accuracy(by_magnitude(net, f)) for f in FRACTIONS],
}

# %%
# Pruned by the ratio, the Bayesian network keeps its accuracy until nearly all weights are removed.
# Pruned by magnitude, it loses accuracy a little earlier: means of weights that it does not need
# are near 0, too. The deterministic network loses accuracy much earlier. Further training after
# pruning would make up for most of the difference.

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
