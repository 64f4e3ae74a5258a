"""From a network and data to predictions: models, likelihoods, training, checkpoints."""

from ._bnn import BNN
from ._checkpoint import resume, save
from ._evaluate import evaluate
from ._fit import fit
from ._history import History
from ._last_layer import refit_last_layer
from ._moments import moments
from ._predict import predict
from ._prediction import Prediction
from ._run import Run

__all__ = [
    "BNN",
    "History",
    "Prediction",
    "Run",
    "evaluate",
    "fit",
    "moments",
    "predict",
    "refit_last_layer",
    "resume",
    "save",
]
