"""How the gallery shows the examples: from what most need to what few do, in legible letters."""

from pathlib import Path

import matplotlib.pyplot as plt

ORDER = [
    "heteroscedastic",
    "digits",
    "which_posterior",
    "scikit_learn",
    "sunspots",
    "fashion_mnist",
    "pretrained",
    "last_layer",
    "which_inputs",
    "nuts",
    "pruning",
    "active_learning",
    "bandit",
    "physics",
    "own_posterior",
    "plain_torch",
    "two_processes",
    "from_bayesian_torch",
]


def place(path: str) -> int:
    """The place of an example."""
    return ORDER.index(Path(path).stem)


class Order:
    """The same, for the examples of a folder."""

    def __init__(self, folder: str) -> None:
        pass

    def __call__(self, name: str) -> int:
        return place(name)


def enlarge(config: dict, path: str) -> None:
    """Sets letters that stay legible where wide figures shrink to the width of a page."""
    plt.rcParams.update({"font.size": 12, "axes.titlesize": "medium"})
