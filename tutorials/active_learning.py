"""
Active learning: which images should be labelled?
=================================================

Labels are expensive, images are not. A network can choose the images whose labels would teach it
most: those with the largest mutual information between label and weights (Houlsby et al. 2011),
which is ``prediction.epistemic``. Images that would be ambiguous even if the weights were known
(``aleatoric``) are not worth a label. This pays where images of some kind are rare.
"""

import matplotlib.pyplot as plt
import torch
from helpers import digits, few, save
from torch import Tensor, nn

from pyro_bnn import BNN, bayesianize, fit, likelihoods, predict, priors
from pyro_bnn.guides import AutoLRT

(pool_x, pool_y), (test_x, test_y) = digits()
START, EACH, ROUNDS, SEEDS = 50, 25, few(6, 2), few(2, 1)

# %%
# Nine of ten images of the digits 5 to 9 are left out, but not from the images for tests.

torch.manual_seed(0)
kept = (pool_y < 5) | (torch.rand(len(pool_y)) < 0.1)
pool_x, pool_y = pool_x[kept], pool_y[kept]


def train(chosen: Tensor) -> tuple:
    """A new network, trained on the labels so far."""
    net = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    model = BNN(bayesianize(net, prior=priors.FanInNormal(3.0)), likelihoods.Categorical())
    guide = AutoLRT(model)
    fit(model, guide, (pool_x[chosen], pool_y[chosen]), epochs=few(120, 5), kl_weight=0.03)
    return model, guide


def run(seed: int, is_active: bool) -> list[float]:
    """The accuracy after each round of labels."""
    torch.manual_seed(seed)
    chosen = torch.randperm(len(pool_x))[:START]
    accuracies = []
    for _ in range(ROUNDS):
        model, guide = train(chosen)
        right = predict(model, guide, test_x, num_samples=50).mean.argmax(-1) == test_y
        accuracies.append(right.float().mean().item())
        value = torch.rand(len(pool_x))
        if is_active:
            value = predict(model, guide, pool_x, num_samples=50).epistemic
        value[chosen] = -1.0  # these have labels
        chosen = torch.cat([chosen, value.topk(EACH).indices])
    return accuracies


# %%
# There are 50 labels at first, and 25 more in each round. A new network is trained each time. The
# mutual information is a field of the :class:`~pyro_bnn.models.Prediction`.

asked = START + EACH * torch.arange(ROUNDS)
curves = {
    name: torch.tensor([run(seed, is_active) for seed in range(SEEDS)])
    for name, is_active in (("most informative", True), ("random", False))
}
for name, accuracies in curves.items():
    print(f"{name:17}" + " ".join(f"{a:.3f}" for a in accuracies.mean(0).tolist()))

# %%
# The curves are means over two seeds; the bands show their range. Images of rare digits teach most,
# and the network finds them. With 175 labels it has 89% of the test images right, with random
# labels 67%.

figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
for name, accuracies in curves.items():
    axis.plot(asked, accuracies.mean(0), marker=".", label=f"chosen images: {name}")
    axis.fill_between(asked, accuracies.amin(0), accuracies.amax(0), alpha=0.2, linewidth=0)
axis.set(xlabel="number of labels", ylabel="accuracy on new images")
axis.legend()
save(figure, "active_learning")
