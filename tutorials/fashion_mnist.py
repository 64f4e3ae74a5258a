"""
Fashion-MNIST: does a convolutional network notice rotated images?
==================================================================

Two networks, one deterministic and one Bayesian (trained by flipout), learn images of clothes. Then
they classify the same clothes rotated by 90 degrees, of which they should be uncertain. And when
they predict 80% for an upright image, are they right in 80% of the cases?
"""

import math

import matplotlib.pyplot as plt
import torch
from helpers import CLOTHES, fashion, few, save, table
from torch import Tensor, nn

from pyro_bnn import BNN, fit, likelihoods, predict
from pyro_bnn.guides import AutoFlipout
from pyro_bnn.scores import calibration_error, novelty_auroc

torch.manual_seed(0)
(x, y), (test_x, test_y) = fashion(few(12_800, 128), few(2000, 50))
rotated_x = test_x.rot90(dims=(2, 3))
NUM_STEPS, BATCH = few(800, 3), 128


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(8, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


# %%
# Maximum likelihood, in torch:

net = network()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(NUM_STEPS):
    rows = torch.randint(len(x), (BATCH,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
    optimizer.step()

# %%
# The same network, made Bayesian: its convolutions become :class:`~pyro_bnn.nn.BayesianConv2d`.
# With :class:`~pyro_bnn.estimators.Flipout`, each image has another weight, so that gradients have
# less noise (:doc:`/estimators`).

model = BNN(network(), likelihoods.Categorical())
guide = AutoFlipout(model)
fit(model, guide, (x, y), epochs=-(-NUM_STEPS * BATCH // len(x)), batch_size=BATCH)

# %%
# ECE is the expected calibration error. AUROC measures how well the entropy of the predicted
# probabilities separates rotated images from upright ones. The entropy is large also for upright
# images between two classes. The epistemic part of it, which only the Bayesian network has, comes
# from not knowing the weights: it is large where the sampled networks disagree.


def entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)


parts = test_x, rotated_x
predictions = [predict(model, guide, x, num_samples=few(30, 3), batch_size=500) for x in parts]
epistemic = [prediction.epistemic for prediction in predictions]
probs = {
    "deterministic": [net(x).softmax(-1).detach() for x in parts],
    "Bayesian": [prediction.mean for prediction in predictions],
}
rows = {}
for name, (upright, rotated) in probs.items():
    confidence, predicted = upright.max(-1)
    rows[name] = {
        "accuracy": (predicted == test_y).float().mean().item(),
        "NLL": nn.functional.nll_loss(upright.log(), test_y).item(),
        "ECE": calibration_error(confidence, predicted == test_y),
        "AUROC, entropy": novelty_auroc(entropy(upright), entropy(rotated)),
        "AUROC, epistemic": math.nan,
    }
rows["Bayesian"]["AUROC, epistemic"] = novelty_auroc(*epistemic)
print(table(rows))

# %%
# The entropy of neither network separates rotated images well from upright ones. Its epistemic part
# does so much better. The Bayesian network pays for this on upright images, where it is
# underconfident: its KL divergence keeps many weights near the prior. A ``kl_weight`` below 1
# favours upright images (:doc:`/comparison`).

panels = {
    ("deterministic", "entropy"): [entropy(p) for p in probs["deterministic"]],
    ("Bayesian", "entropy"): [entropy(p) for p in probs["Bayesian"]],
    ("Bayesian", "epistemic"): epistemic,
}
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for axis, ((name, kind), both) in zip(axes, panels.items(), strict=True):
    end = 2.3 if kind == "entropy" else 0.8
    for values, label in zip(both, ("upright", "rotated"), strict=True):
        axis.hist(values, 24, range=(0, end), density=True, alpha=0.6, label=label)
    axis.set_title(f"{name}: AUROC {rows[name][f'AUROC, {kind}']:.3f}")
    axis.set(xlabel=f"{kind} (nats)", ylim=(0, 4.6 / end))
axes[0].set_ylabel("density of images")
axes[0].legend()
save(figure, "fashion_mnist")

# %%
# The most uncertain upright images, with the two most probable classes and the label:

p = probs["Bayesian"][0]
figure, axes = plt.subplots(1, 8, figsize=(11, 2.3), layout="constrained")
for i, axis in zip(entropy(p).topk(8).indices.tolist(), axes, strict=True):
    axis.imshow(test_x[i, 0].numpy(), cmap="gray_r")
    first, second = p[i].topk(2).indices.tolist()
    axis.set(xticks=[], yticks=[], title=f"{CLOTHES[first]} or\n{CLOTHES[second]}?")
    axis.set_xlabel(f"({CLOTHES[test_y[i]]})")
save(figure, "fashion_mnist_least_sure")
