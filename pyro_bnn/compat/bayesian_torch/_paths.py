"""The modules of bayesian-torch, here and under its own name."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from itertools import chain
from pathlib import Path
from types import ModuleType

from ._conversion import converted
from ._util import get_kernel_size

_SPACES = ("1d", "2d", "3d")
_CONVOLUTIONS = [f"{kind}{space}" for kind in ("Conv", "ConvTranspose") for space in _SPACES]
_NORMS = [f"BatchNorm{space}Layer" for space in _SPACES]
_OF_SAMPLES = ["entropy", "predictive_entropy", "mutual_information"]
_BNN_LAYERS = ["bnn_linear_layer", "bnn_conv_layer", "bnn_lstm_layer"]
_UNLISTED = {"get_kernel_size": get_kernel_size, **dict.fromkeys(_BNN_LAYERS, converted)}
_FOLDERS = {
    "variational": "Reparameterization",
    "flipout": "Flipout",
    "radial": "Radial",
    "mixture": "Mixture",
}


def _table() -> dict[str, list[str]]:
    """The names in each module, packages before what is in them."""
    table = {
        "layers": [],
        "layers.base_variational_layer": [
            "BaseVariationalLayer_",
            "BaseMixtureLayer_",
            "get_kernel_size",
        ],
        "layers.batchnorm": _NORMS,
        "layers.dropout": ["Dropout"],
        "layers.relu": ["ReLU"],
    }
    for file, suffix in _FOLDERS.items():
        folder = f"layers.{file}_layers"
        linear, rnn = [f"Linear{suffix}"], [f"LSTM{suffix}"]
        conv = [kind + suffix for kind in _CONVOLUTIONS]
        table[folder] = [*linear, *conv, *rnn]
        table[f"{folder}.linear_{file}"] = linear
        table[f"{folder}.conv_{file}"] = conv
        table[f"{folder}.rnn_{file}"] = rnn
    table["layers"] = list(dict.fromkeys(chain.from_iterable(table.values())))
    return table | {
        "models": [],
        "models.dnn_to_bnn": ["dnn_to_bnn", "get_kl_loss", *_BNN_LAYERS],
        "utils": [],
        "utils.util": [*_OF_SAMPLES, "get_rho", "MOPED"],
        "utils.avuc_loss": [
            "AvULoss",
            "AUAvULoss",
            *_OF_SAMPLES,
            "accuracy_vs_uncertainty",
            "eval_avu",
        ],
        "utils.uncertainty_calibration_loss": ["AvULoss", "EaULoss", "EaCLoss"],
    }


def make(root: str) -> None:
    """Makes the modules under ``root``, a module that is there, and puts them into its place."""
    table = _table()
    found = vars(sys.modules[__package__]) | _UNLISTED
    for path, names in table.items():
        is_package = any(other.startswith(path + ".") for other in table)
        module = _module(f"{root}.{path}", is_package=is_package)
        vars(module).update({name: found[name] for name in names}, __all__=names)


def _module(name: str, *, is_package: bool) -> ModuleType:
    spec = ModuleSpec(name, None, is_package=is_package)
    module = importlib.util.module_from_spec(spec)
    module.__doc__ = f"What ``{name}`` is in bayesian-torch."
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)
    return module


_NAME = "bayesian_torch"
_replaced: dict[str, ModuleType] | None = None


def install() -> None:
    """Makes ``import bayesian_torch`` mean these layers, for code that is not to be changed.

    Call it before that code is imported: names that have been imported stay what they are. All
    modules of this package that bayesian-torch has too are found under its name. If bayesian-torch
    is installed, its networks (``bayesian_torch.models.bayesian.resnet_variational``, say) are
    found as well, and are built of these layers. A second call does nothing.

    Example:
        >>> install()
        >>> from bayesian_torch.layers import LinearFlipout as TheirName
        >>> TheirName is LinearFlipout
        True
        >>> uninstall()
    """
    global _replaced
    if _replaced is not None:
        return
    _replaced = _taken()
    found = importlib.util.find_spec(_NAME)
    locations = (found and found.submodule_search_locations) or []
    root = _module(_NAME, is_package=True)
    vars(root).update({k: v for k, v in vars(sys.modules[__package__]).items() if k[0] != "_"})
    make(_NAME)
    sys.modules[f"{_NAME}.models"].__path__ = [str(Path(p) / "models") for p in locations]


def uninstall() -> None:
    """Undoes :func:`install`: ``import bayesian_torch`` means what it did before."""
    global _replaced
    if _replaced is None:
        return
    _taken()
    sys.modules.update(_replaced)
    _replaced = None


def _taken() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name == _NAME or name.startswith(_NAME + ".")]
    return {name: sys.modules.pop(name) for name in names}
