"""
Digits: does the network know what it has never seen?
=====================================================

A classifier assigns a class to every image, also to images of something that it has never seen. Six
networks learn the handwritten digits 0 to 7: one by maximum likelihood, and five Bayesian ones, one
for each guide. Then they classify noisy digits, and the digits 8 and 9. Do they know that they are
uncertain?

This is what ``make demo`` runs.
"""

import math
import time

import matplotlib.pyplot as plt
import torch
from helpers import GUIDES, few, save, split, table, tensor
from joblib import Parallel, delayed
from sklearn.datasets import load_digits
from torch import nn

from pyro_bnn import BNN, bayesianize, fit, likelihoods, predict
from pyro_bnn.infer import diagnose
from pyro_bnn.priors import FanInNormal, Normal
from pyro_bnn.scores import calibration_error, novelty_auroc

start = time.perf_counter()
torch.manual_seed(0)

# %%
# The data are scikit-learn's digits: 1797 images of 8 by 8 pixels. A quarter of the digits 0 to 7
# is held out for tests, and used a second time with noise.

images, labels = load_digits(return_X_y=True)
images, labels = tensor(images / 16), torch.tensor(labels)
known = labels < 8
(x, y), (test_x, test_y) = split(images[known], labels[known], stratify=labels[known])
noisy_x = torch.cat([test_x + scale * torch.randn(test_x.shape) for scale in (0.2, 0.4, 0.6)])
noisy_y, unknown_x = test_y.repeat(3), images[~known]


def network() -> nn.Module:
    layers = [nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 8)]
    return nn.Sequential(*layers)


# %%
# The deterministic network is trained by maximum likelihood, in torch.

net = network()
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, few(1000, 100))
for _ in range(schedule.T_max):
    rows = torch.randint(len(x), (128,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
    optimizer.step()
    schedule.step()
predictors = {"deterministic": lambda x: net(x).softmax(-1).detach()}

# %%
# The Bayesian networks differ only in their guide:
# :class:`~pyro_bnn.guides.AutoReparameterization`, :class:`~pyro_bnn.guides.AutoFlipout`,
# :class:`~pyro_bnn.guides.AutoLRT`, :class:`~pyro_bnn.guides.AutoRadial` or
# :class:`~pyro_bnn.guides.AutoMixture`. Two of them train at a time. Priors have a scale for each
# input of a weight, which is learned. (The default is a scale for each weight. It predicts clean
# images better and noisy ones worse, since it leaves less uncertainty about what the training data
# do not show.) The weight of the KL divergence is 0.1: this makes a cold posterior, which predicts
# images better (:doc:`/defaults`). Flipout and LRT have other noise for each image. With the other
# guides, all images of a step share a sample of the weights, and steps average over two of them,
# which are computed at once. ``diagnose`` evaluates the ELBO with weight 1, in nats per image. A
# network that has learned nothing has an ELBO of -log(8) = -2.08. Radial posteriors end below it,
# since their KL divergence from a Normal prior is at least 0.635 nats per weight
# (:doc:`/posteriors`).

prior, bias_prior = FanInNormal(2**0.5, learnable_scale="input"), Normal(learnable_scale=True)
settings = {"batch_size": 128, "kl_weight": 0.1, "progress": False}
two_samples = {"num_particles": 2, "vectorize_particles": True}


def train(name: str):
    torch.manual_seed(0)
    net = bayesianize(network(), prior=prior, bias_prior=bias_prior)
    model = BNN(net, likelihoods.Categorical())
    guide = GUIDES[name](model)
    more = {} if name in ("flipout", "LRT") else two_samples
    fit(model, guide, (x, y), few(280, 10), **settings, **more)
    return model, guide, diagnose(model, guide, (x, y), num_samples=25).elbo / len(x)


names = list(GUIDES)[::-1]  # the mixture first, which takes longest
networks = Parallel(n_jobs=few(2, 1))(delayed(train)(name) for name in names)
trained = dict(zip(names, networks, strict=True))
elbos = {"deterministic": math.nan}
for name in GUIDES:
    model, guide, elbo = trained[name]
    predictors[name] = lambda x, model=model, guide=guide: predict(model, guide, x).mean
    elbos[name] = elbo

# %%
# NLL is the negative log-likelihood of the labels in nats, and ECE the expected calibration error.
# AUROC measures how well the entropy of the predicted probabilities separates the digits 8 and 9
# from the others (1 is perfect, 0.5 is chance).


def entropy(probs: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(probs).sum(-1)


def scores(probs: torch.Tensor, y: torch.Tensor, name: str) -> dict[str, float]:
    confidence, predicted = probs.max(-1)
    return {
        f"accuracy, {name}": (predicted == y).float().mean().item(),
        f"NLL, {name}": nn.functional.nll_loss(probs.clamp_min(1e-12).log(), y).item(),
        f"ECE, {name}": calibration_error(confidence, predicted == y),
    }


rows = {}
for name, probs in predictors.items():
    known_p = probs(test_x)
    rows[name] = scores(known_p, test_y, "test") | scores(probs(noisy_x), noisy_y, "noisy")
    rows[name]["AUROC, unknown"] = novelty_auroc(entropy(known_p), entropy(probs(unknown_x)))
    rows[name]["ELBO"] = elbos[name]
is_test = lambda column: column.endswith(", test")
for part in (is_test, lambda column: not is_test(column)):
    print(table({name: {c: row[c] for c in row if part(c)} for name, row in rows.items()}) + "\n")

# %%
# On noisy images, the Bayesian networks are better calibrated (NLL, ECE). On digits that they have
# never seen, they are less certain than on digits that they have learned.

figure, axes = plt.subplots(1, 4, figsize=(11, 3), sharey=True, layout="constrained")
for axis, name in zip(axes, ("deterministic", "LRT", "radial", "mixture"), strict=True):
    for part, label in ((test_x, "0 to 7 (learned)"), (unknown_x, "8 and 9 (never seen)")):
        values = entropy(predictors[name](part))
        axis.hist(values, bins=21, range=(0, 2.1), density=True, alpha=0.6, label=label)
    axis.set(title=f"{name}: AUROC {rows[name]['AUROC, unknown']:.3f}", xlabel="entropy (nats)")
axes[0].set(ylabel="density of images", ylim=(0, 4))
axes[0].legend()
save(figure, "digits")

# %%
# The most uncertain test images, with the predicted probability of each class:

probs = predictors["LRT"](test_x)
least = entropy(probs).topk(8).indices
figure, axes = plt.subplots(2, 8, figsize=(11, 3.1), layout="constrained")
for i, (image, bars) in zip(least.tolist(), axes.T, strict=True):
    image.imshow(test_x[i].view(8, 8).numpy(), cmap="gray_r")
    image.set(title=f"labelled {test_y[i]}", xticks=[], yticks=[])
    bars.bar(range(8), probs[i].tolist())
    bars.set(ylim=(0, 1), xticks=range(8), yticks=[0, 1] if bars is axes[1, 0] else [])
save(figure, "digits_least_sure")
print(f"All of this took {time.perf_counter() - start:.0f} s.")
