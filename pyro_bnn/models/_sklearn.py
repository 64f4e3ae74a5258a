"""What the estimators for scikit-learn have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from pyro.nn import PyroModule
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from ..conversion import bayesianize
from ..conversion._weights import copied
from ..guides import AutoLRT, AutoPosterior
from ..infer._samples import check_count
from . import _rng
from ._bnn import BNN, default_priors
from ._fit import fit
from ._predict import predict
from ._prediction import Prediction


@dataclass(eq=False, repr=False)
class Estimator(BaseEstimator):
    """Base class: trains a model on features whose scales are known, and predicts.

    Args: see :class:`~pyro_bnn.sklearn.BNNRegressor`.
    """

    net: nn.Module | Callable[[int, int], nn.Module] | None = None
    likelihood: Any = None
    guide: Callable[[BNN], AutoPosterior] = AutoLRT
    _: KW_ONLY
    prior: Any = None
    hidden_sizes: Sequence[int] | None = None
    num_steps: int = 1000
    batch_size: int = 128
    lr: float = 1e-2
    num_samples: int = 100
    random_state: Any = None
    device: Any = None
    progress: bool = False

    @contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        """Leaves what was trained before as it was if the data or arguments are refused."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def _train_new(self, X: Any, target: Tensor, num_outputs: int, likelihood: Any) -> Any:
        """Trains a new network on data whose scales are known."""
        self.seed_ = check_random_state(self.random_state).randint(2**31 - 1)
        self.num_fits_ = 0
        with _rng.preserved():
            torch.manual_seed(self.seed_)
            given = self._net(X.shape, num_outputs)
            is_bayesian = isinstance(given, PyroModule)
            priors = default_priors(given) if self.prior is None else {"prior": self.prior}
            net = copied(given) if is_bayesian else bayesianize(given, **priors)
            # In double precision, no prediction depends on the rows beside it.
            self.model_ = BNN(net.double(), likelihood)
            self.guide_ = self.guide(self.model_)
        return self._train(X, target, warmup=0.5)

    def _train_on(self, X: Any, target: Tensor) -> Any:
        """Trains on more data, with what has been learned as the prior."""
        bayesianize(self.model_.net, prior=self.guide_, inplace=True)
        # With a KL divergence that counted less at first, the network would forget it.
        return self._train(X, target, warmup=0.0)

    def _train(self, X: Any, target: Tensor, warmup: float) -> Any:
        self.model_.num_data = None
        with _rng.preserved():
            torch.manual_seed(self.seed_ + self.num_fits_)
            self.history_ = fit(
                self.model_,
                self.guide_,
                (torch.as_tensor(self.scaler_.transform(X)), target),
                epochs=math.ceil(self.num_steps / math.ceil(len(X) / self.batch_size)),
                batch_size=self.batch_size,
                lr=self.lr,
                warmup=warmup,
                device=self.device,
                progress=self.progress,
            )
        self.num_fits_ += 1
        return self

    def _net(self, shape: tuple[int, int], num_outputs: int) -> nn.Module:
        num_rows, num_features = shape
        if isinstance(self.net, nn.Module):
            return self.net
        if self.net is not None:
            return self.net(num_features, num_outputs)
        sizes = self.hidden_sizes
        if sizes is None:
            sizes = (50,) if num_rows < 1000 else (100, 100) if num_rows < 50_000 else (200, 200)
        layers: list[nn.Module] = []
        for size in sizes:
            layers += [nn.Linear(num_features, size), nn.ReLU()]
            num_features = size
        return nn.Sequential(*layers, nn.Linear(num_features, num_outputs))

    def _predicted(self, X: Any) -> Prediction:
        """The prediction in units of the standardised targets."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        x = torch.as_tensor(self.scaler_.transform(X))
        with _rng.preserved():
            torch.manual_seed(self.seed_)  # the same networks in each call
            return predict(self.model_, self.guide_, x, self.num_samples)

    def _check_parameters(self) -> None:
        """Raises a TypeError or ValueError if an argument of the constructor is wrong."""
        for name in ("num_steps", "batch_size", "num_samples"):
            check_count(name, getattr(self, name))
        sizes = () if self.hidden_sizes is None else self.hidden_sizes
        if not isinstance(sizes, Iterable):
            raise TypeError(f"`hidden_sizes` (={sizes!r}) must be a tuple of integers")
        for size in sizes:
            check_count("hidden_sizes", size)
        if self.net is not None and not callable(self.net):
            raise TypeError(
                f"`net` (={self.net!r}) must be a torch.nn.Module, a function of the numbers of "
                "features and outputs that makes one, or None"
            )
        if not callable(self.guide):
            raise TypeError(
                f"`guide` (={self.guide!r}) must make a guide of a model, such as `AutoLRT`"
            )
