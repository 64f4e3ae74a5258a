"""
Porting code from bayesian-torch
================================

A classifier of wines by 13 chemical measurements is written with bayesian-torch's layers. Two
things change: the import and one divisor. bayesian-torch returns the *mean* of the KL divergence
over the weights of a layer, which its examples divide by the batch size. In pyro_bnn ``kl`` is the
sum, and is divided by the number of all data, so that the loss is a bound on the evidence. How does
this change the uncertainty?
"""

import matplotlib.pyplot as plt
import torch
from helpers import few, save, split, standardise, table, tensor
from sklearn.datasets import load_wine
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pyro_bnn.compat.bayesian_torch import LinearFlipout  # there: from bayesian_torch.layers

measured, kind = load_wine(return_X_y=True)
(x, y), (test_x, test_y) = split(standardise(tensor(measured)), torch.tensor(kind), fraction=0.5)


class Net(nn.Module):
    """As it was written for bayesian-torch."""

    def __init__(self, **options: str) -> None:
        super().__init__()
        self.fc1 = LinearFlipout(13, 30, **options)
        self.fc2 = LinearFlipout(30, 3, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, kl1 = self.fc1(x)
        x, kl2 = self.fc2(x.relu())
        return x, kl1 + kl2


def train(net: Net, divisor: int) -> Net:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(few(1500, 10)):
        optimizer.zero_grad()
        logits, kl = net(x)
        (cross_entropy(logits, y) + kl / divisor).backward()
        optimizer.step()
    return net


torch.manual_seed(0)
nets = {
    "mean / batch size": train(Net(kl_reduction="mean"), len(x)),
    "sum / number of data": train(Net(), len(x)),
}

# %%
# The networks classify test wines, and nonsense: random measurements with three times the standard
# deviation of wines.


@torch.no_grad()
def probabilities(net: Net, x: Tensor) -> Tensor:
    return torch.stack([net(x)[0].softmax(-1) for _ in range(few(300, 5))]).mean(0)


def entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)


rows = {}
for name, net in nets.items():
    probs, far = probabilities(net, test_x), probabilities(net, torch.randn(200, 13) * 3)
    rows[name] = {
        "accuracy": (probs.argmax(-1) == test_y).float().mean().item(),
        "NLL": nn.functional.nll_loss(probs.log(), test_y).item(),
        "mean scale": net.fc1.rho_weight.exp().log1p().mean().item(),
        "entropy, wines": entropy(probs).mean().item(),
        "entropy, nonsense": entropy(far).mean().item(),
    }
print(table(rows))

# %%
# With the mean, the KL divergence of the 390 weights of the first layer counts 390 times too little
# (:doc:`/kl`). Their scales are then less than half as large, and the network is overconfident: its
# NLL is worse, and it is certain of a class for much of the nonsense.
# :func:`~pyro_bnn.compat.to_pyro` makes a Pyro model of such a network, for ``fit`` and
# ``predict``.

figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True, layout="constrained")
for axis, (name, net) in zip(axes, nets.items(), strict=True):
    for part, label in ((test_x, "wines"), (3 * torch.randn(500, 13), "nonsense")):
        values = entropy(probabilities(net, part))
        axis.hist(values, 22, range=(0, 1.1), density=True, alpha=0.6, label=label)
    axis.set(title=f"KL divergence: {name}", xlabel="entropy (nats)")
axes[0].set_ylabel("density")
axes[0].legend()
save(figure, "from_bayesian_torch")
