"""The order of the examples in the gallery: from what most need to what few do."""

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
    "from_bayesian_torch",
]


class Order:
    """The place of a file."""

    def __init__(self, folder: str) -> None:
        pass

    def __call__(self, name: str) -> int:
        return ORDER.index(name.removesuffix(".py"))
