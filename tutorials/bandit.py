"""
A bandit: does exploration pay?
===============================

Images of digits arrive. For each image, one of ten buttons has to be pressed, and the only feedback
is whether it was the right one. Thompson sampling samples a network from the posterior for each
image and presses the button that is best under this network. So it explores where the network is
uncertain. It is compared with always pressing the button that is best on average.
"""

import matplotlib.pyplot as plt
import torch
from helpers import digits, few, save
from torch import Tensor, nn

from pyro_bnn import BNN, bayesianize, fit, likelihoods, priors
from pyro_bnn.guides import AutoFlipout
from pyro_bnn.infer import Predictive

(images, labels), _ = digits()
EACH, ROUNDS = 50, few(20, 2)


def choose(model: BNN, guide: AutoFlipout, x: Tensor, name: str) -> Tensor:
    """The button for each image."""
    if name == "random" or model.num_data is None:  # nothing is known before the first training
        return torch.randint(10, (len(x),))
    predictive = Predictive(model, guide=guide, num_samples=len(x), return_sites=["_RETURN"])
    logits = predictive(x)["_RETURN"]  # of each network for each image
    if name == "Thompson":
        return logits.diagonal(dim1=0, dim2=1).T.argmax(-1)  # another network for each image
    return logits.sigmoid().mean(0).argmax(-1)


# %%
# The outputs of the network are the logits that each button is right; ``mask`` says which of them
# was pressed. After every 50 images, training continues with all data so far.


def play(name: str) -> Tensor:
    """Whether each button was right."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    model = BNN(bayesianize(net, prior=priors.FanInNormal(3.0)), likelihoods.Bernoulli())
    guide = AutoFlipout(model)
    presses, rights = [], []
    for round in range(ROUNDS):
        x = images[: EACH * (round + 1)]
        presses.append(choose(model, guide, x[-EACH:], name))
        pressed = torch.cat(presses)
        right = (pressed == labels[: len(x)]).float()
        rights = right
        if name != "random":
            shown = nn.functional.one_hot(pressed, 10)
            data = {"x": x, "y": shown * right.unsqueeze(-1), "mask": shown > 0}
            fit(
                model,
                guide,
                data,
                epochs=few(30, 2),
                batch_size=256,
                warmup=0,
                kl_weight=0.03,
                num_data=len(x),
            )
    return rights


played = {name: play(name) for name in ("Thompson", "best on average", "random")}

# %%
# Regret is the number of wrong buttons so far. Both ways of choosing learn, and at the same rate:
# here exploration does not pay. Images differ so much that the network tries all buttons also when
# it presses the best one each time, as has been found for many problems of this kind (Bietti et al.
# 2018, arXiv:1802.04064). Exploration pays where a wrong belief is not tested by chance.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name, was_right in played.items():
    regret = (1 - was_right).cumsum(0)
    print(f"{name:16} {regret[-1]:.0f} wrong of {len(regret)}")
    left.plot(regret, label=name)
    right.plot(EACH * torch.arange(1, ROUNDS + 1), was_right.view(-1, EACH).mean(1), label=name)
left.set(xlabel="images", ylabel="regret", ylim=(0, None))
right.set(xlabel="images", ylabel="accuracy, last 50 images", ylim=(0, 1))
left.legend()
save(figure, "bandit")
