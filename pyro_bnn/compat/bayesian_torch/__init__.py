"""The layers of bayesian-torch, as bindings over the core: change the import, keep the loop.

``forward`` returns ``(output, kl)``. Names and defaults of arguments, their order, and the names of
parameters in a ``state_dict`` are bayesian-torch's; the numbers are right where they are wrong
there (:doc:`/migration`). Layers compute what torch's do, take all of their arguments by keyword,
and know no Pyro. As in bayesian-torch, ``Conv2dFlipout`` is no ``nn.Conv2d``: what initialises the
weights of those does not touch its means.

Everything is found here, and in modules of the names that bayesian-torch has (``.layers.relu``).
:func:`install` makes ``import bayesian_torch`` find these, too.
"""

from . import _paths
from ._agreement import accuracy_vs_uncertainty, eval_avu
from ._base import BaseVariationalLayer_
from ._calibration import AUAvULoss, AvULoss, EaCLoss, EaULoss
from ._conversion import dnn_to_bnn, get_kl_loss
from ._layers import (
    Conv1dFlipout,
    Conv1dMixture,
    Conv1dRadial,
    Conv1dReparameterization,
    Conv2dFlipout,
    Conv2dMixture,
    Conv2dRadial,
    Conv2dReparameterization,
    Conv3dFlipout,
    Conv3dMixture,
    Conv3dRadial,
    Conv3dReparameterization,
    ConvTranspose1dFlipout,
    ConvTranspose1dMixture,
    ConvTranspose1dRadial,
    ConvTranspose1dReparameterization,
    ConvTranspose2dFlipout,
    ConvTranspose2dMixture,
    ConvTranspose2dRadial,
    ConvTranspose2dReparameterization,
    ConvTranspose3dFlipout,
    ConvTranspose3dMixture,
    ConvTranspose3dRadial,
    ConvTranspose3dReparameterization,
    LinearFlipout,
    LinearMixture,
    LinearRadial,
    LinearReparameterization,
    LSTMFlipout,
    LSTMMixture,
    LSTMRadial,
    LSTMReparameterization,
)
from ._mixture_base import BaseMixtureLayer_
from ._passing import BatchNorm1dLayer, BatchNorm2dLayer, BatchNorm3dLayer, Dropout, ReLU
from ._paths import install, uninstall
from ._util import MOPED, entropy, get_rho, mutual_information, predictive_entropy

_paths.make(__name__)

__all__ = [
    "MOPED",
    "AUAvULoss",
    "AvULoss",
    "BaseMixtureLayer_",
    "BaseVariationalLayer_",
    "BatchNorm1dLayer",
    "BatchNorm2dLayer",
    "BatchNorm3dLayer",
    "Conv1dFlipout",
    "Conv1dMixture",
    "Conv1dRadial",
    "Conv1dReparameterization",
    "Conv2dFlipout",
    "Conv2dMixture",
    "Conv2dRadial",
    "Conv2dReparameterization",
    "Conv3dFlipout",
    "Conv3dMixture",
    "Conv3dRadial",
    "Conv3dReparameterization",
    "ConvTranspose1dFlipout",
    "ConvTranspose1dMixture",
    "ConvTranspose1dRadial",
    "ConvTranspose1dReparameterization",
    "ConvTranspose2dFlipout",
    "ConvTranspose2dMixture",
    "ConvTranspose2dRadial",
    "ConvTranspose2dReparameterization",
    "ConvTranspose3dFlipout",
    "ConvTranspose3dMixture",
    "ConvTranspose3dRadial",
    "ConvTranspose3dReparameterization",
    "Dropout",
    "EaCLoss",
    "EaULoss",
    "LSTMFlipout",
    "LSTMMixture",
    "LSTMRadial",
    "LSTMReparameterization",
    "LinearFlipout",
    "LinearMixture",
    "LinearRadial",
    "LinearReparameterization",
    "ReLU",
    "accuracy_vs_uncertainty",
    "dnn_to_bnn",
    "entropy",
    "eval_avu",
    "get_kl_loss",
    "get_rho",
    "install",
    "mutual_information",
    "predictive_entropy",
    "uninstall",
]
