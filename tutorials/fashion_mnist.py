"""
Fashion-MNIST: does a convolutional network notice that an image is turned?
===========================================================================

A network that was trained on upright clothes, deterministic or Bayesian by flipout, sees them
turned by 90 degrees. It should not be sure of what it says then. And when it says 80%, of upright
ones, is it right in 80% of the cases?
"""

import matplotlib.pyplot as plt
import torch
from helpers import CLOTHES, fashion, few, save, table
from torch import Tensor, nn

from pyro_bnn import BNN, bayesianize, fit, likelihoods, predict
from pyro_bnn.guides import AutoFlipout
from pyro_bnn.scores import calibration_error, novelty_auroc

torch.manual_seed(0)
(x, y), (test_x, test_y) = fashion(few(12_800, 128), few(2000, 50))
turned_x = test_x.rot90(dims=(2, 3))
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
# The same network made Bayesian. The draws of flipout differ from image to image, so that gradients
# have less noise (:doc:`/estimators`).

model = BNN(bayesianize(network()), likelihoods.Categorical())
guide = AutoFlipout(model)
fit(model, guide, (x, y), epochs=-(-NUM_STEPS * BATCH // len(x)), batch_size=BATCH)

# %%
# ECE is the expected calibration error; AUROC the area under the curve for telling turned images
# from upright ones by the entropy of the predicted probabilities.


def entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)


@torch.no_grad()
def deterministic(x: Tensor) -> Tensor:
    return net(x).softmax(-1)


def bayesian(x: Tensor) -> Tensor:
    return predict(model, guide, x, num_samples=few(30, 3), batch_size=500).mean


rows, probs = {}, {}
for name, predictor in {"deterministic": deterministic, "Bayesian": bayesian}.items():
    probs[name] = upright, turned = predictor(test_x), predictor(turned_x)
    confidence, predicted = upright.max(-1)
    rows[name] = {
        "accuracy": (predicted == test_y).float().mean().item(),
        "NLL": nn.functional.nll_loss(upright.log(), test_y).item(),
        "ECE": calibration_error(confidence, predicted == test_y),
        "AUROC, turned": novelty_auroc(entropy(upright), entropy(turned)),
    }
print(table(rows))

# %%
# What is turned should have a large entropy; what is upright, a small one.

figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True, layout="constrained")
for axis, (name, parts) in zip(axes, probs.items(), strict=True):
    for part, label in zip(parts, ("upright", "turned"), strict=True):
        axis.hist(entropy(part), 24, range=(0, 2.3), density=True, alpha=0.6, label=label)
    axis.set(title=f"{name}: AUROC {rows[name]['AUROC, turned']:.3f}", xlabel="entropy (nats)")
axes[0].set(ylabel="density of images", ylim=(0, 2))
axes[0].legend()
save(figure, "fashion_mnist")

# %%
# What it is least sure of, and the two classes that it wavers between:

p = probs["Bayesian"][0]
figure, axes = plt.subplots(1, 8, figsize=(13, 2.4), layout="constrained")
for i, axis in zip(entropy(p).topk(8).indices.tolist(), axes, strict=True):
    axis.imshow(test_x[i, 0].numpy(), cmap="gray_r")
    first, second = p[i].topk(2).indices.tolist()
    axis.set(xticks=[], yticks=[], title=f"{CLOTHES[first]} or\n{CLOTHES[second]}?")
    axis.set_xlabel(f"({CLOTHES[test_y[i]]})")
save(figure, "fashion_mnist_least_sure")
