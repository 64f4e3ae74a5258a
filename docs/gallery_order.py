"""The order of the examples in the gallery: from what most need to what few do."""

from pathlib import Path

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
