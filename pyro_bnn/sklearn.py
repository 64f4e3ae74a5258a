"""Bayesian neural networks as estimators of scikit-learn, the extra ``sklearn``.

Networks, likelihoods and guides are those of the rest of the library: after ``fit``, ``model_`` and
``guide_`` are an ordinary Pyro model and its guide, on standardised data in double precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.preprocessing import LabelEncoder, StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from . import likelihoods
from .models._sklearn import Estimator

__all__ = ["BNNClassifier", "BNNRegressor"]

_OF_COUNTS = (likelihoods.Poisson, likelihoods.NegativeBinomial)
_OF_NUMBERS = (
    likelihoods.Normal,
    likelihoods.HeteroscedasticNormal,
    likelihoods.StudentT,
    *_OF_COUNTS,
)
_OF_CLASSES = (likelihoods.Categorical, likelihoods.Bernoulli, likelihoods.Ordinal)


class BNNRegressor(RegressorMixin, Estimator):
    """A Bayesian neural network for numbers, with one target or several.

    Args:
        net: a torch network, of which a copy is converted; one with priors, of which a copy is used
            as it is; or a function of the numbers of features and outputs that makes one. By
            default, a network of ReLUs: a layer of 50 for less than 1,000 rows, two of 100 for less
            than 50,000, two of 200 for more.
        likelihood: one of :mod:`pyro_bnn.likelihoods`; by default ``Normal()``, with a learned
            noise. Targets are standardised for it, unless it is one of counts.
        guide: makes the guide of a model, such as ``AutoLRT`` or ``AutoFlipout``.
        prior: prior of the weights, as for :func:`~pyro_bnn.bayesianize`; by default that of
            :class:`~pyro_bnn.BNN`.
        hidden_sizes: sizes of the hidden layers of the default network.
        num_steps: number of steps of training, at least.
        batch_size: rows of a step.
        lr: learning rate of the means.
        num_samples: number of networks that are drawn for a prediction, the same ones each time.
        random_state: seed or generator, as elsewhere in scikit-learn.
        device: where to train and predict.
        progress: whether to show a bar, on a terminal.

    Attributes:
        model_: the :class:`~pyro_bnn.BNN`, for features, and targets, with mean 0 and variance 1.
        guide_: its guide.
        history_: the :class:`~pyro_bnn.models.History` of the last training.
        scaler_: the ``StandardScaler`` of the features.
        target_scaler_: that of the targets.
        n_features_in_: number of features.

    Example:
        >>> import numpy as np
        >>> from pyro_bnn.sklearn import BNNRegressor
        >>> X = np.linspace(-1, 1, 50)[:, None]
        >>> regressor = BNNRegressor(num_steps=500, random_state=0).fit(X, X[:, 0] ** 2)
        >>> mean, stddev = regressor.predict(X, return_std=True)
        >>> mean.shape, stddev.shape
        ((50,), (50,))
    """

    def fit(self, X: Any, y: Any) -> BNNRegressor:
        """Trains a new network.

        Args:
            X: inputs of shape ``(rows, features)``.
            y: targets of shape ``(rows,)`` or ``(rows, targets)``.
        """
        with self._restored_on_error():
            return self._start(X, y)

    def _start(self, X: Any, y: Any) -> BNNRegressor:
        self._check_parameters()
        if isinstance(self.likelihood, _OF_CLASSES):
            raise ValueError(
                f"`likelihood` (={self.likelihood}) is for classes: use `BNNClassifier`"
            )
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        likelihood = likelihoods.Normal() if self.likelihood is None else self.likelihood
        is_counts = isinstance(likelihood, _OF_COUNTS)
        self.scaler_ = StandardScaler().fit(X)
        rows = y.reshape(len(y), -1)
        self.target_scaler_ = StandardScaler(with_mean=not is_counts, with_std=not is_counts)
        self.target_scaler_.fit(rows)
        self.target_shape_ = y.shape[1:]
        has_two = isinstance(likelihood, likelihoods.HeteroscedasticNormal)
        num_outputs = (2 if has_two else 1) * rows.shape[1]
        return self._train_new(X, self._target(y), num_outputs, likelihood)

    def partial_fit(self, X: Any, y: Any) -> BNNRegressor:
        """Learns from more data: what has been learned becomes the prior.

        Args:
            X: inputs of shape ``(rows, features)``.
            y: targets. The first call decides about the scales of features and targets.
        """
        if not hasattr(self, "model_"):
            return self.fit(X, y)
        X, y = validate_data(
            self, X, y, reset=False, dtype=np.float64, multi_output=True, y_numeric=True
        )
        if y.shape[1:] != self.target_shape_:
            raise ValueError(
                f"`y` has the shape {y.shape}, but targets of shape {self.target_shape_} for each "
                "row were learned before"
            )
        return self._train_on(X, self._target(y))

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The mean of the targets.

        Args:
            X: inputs of shape ``(rows, features)``.
            return_std: whether to return the standard deviation of the targets, too, with the noise
                of the observations.

        Returns:
            The mean in the shape and unit of the targets, or a tuple of it and the standard
            deviation.
        """
        prediction = self._predicted(X)
        shape = (-1, *self.target_shape_)
        rows = prediction.mean.cpu().numpy().reshape(len(prediction), -1)
        mean = self.target_scaler_.inverse_transform(rows).reshape(shape)
        if not return_std:
            return mean
        scale = 1.0 if self.target_scaler_.scale_ is None else self.target_scaler_.scale_
        stddev = prediction.stddev.cpu().numpy().reshape(rows.shape) * scale
        return mean, stddev.reshape(shape)

    def _target(self, y: Any) -> Tensor:
        rows = self.target_scaler_.transform(y.reshape(len(y), -1))
        return torch.as_tensor(rows.reshape(y.shape))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class BNNClassifier(ClassifierMixin, Estimator):
    """A Bayesian neural network for classes.

    Arguments and attributes are those of :class:`BNNRegressor`, but that the likelihood is
    ``Categorical()`` by default, and targets are labels. ``Bernoulli()`` is for two, and
    ``Ordinal(num_classes)`` for labels whose order is that of their sorting.

    Attributes:
        classes_: the labels.

    Example:
        >>> import numpy as np
        >>> from pyro_bnn.sklearn import BNNClassifier
        >>> X = np.linspace(-1, 1, 50)[:, None]
        >>> classifier = BNNClassifier(num_steps=100, random_state=0).fit(X, X[:, 0] > 0)
        >>> classifier.predict_proba(X).shape
        (50, 2)
    """

    def fit(self, X: Any, y: Any) -> BNNClassifier:
        """Trains a new network.

        Args:
            X: inputs of shape ``(rows, features)``.
            y: labels of shape ``(rows,)``, of two classes at least.
        """
        with self._restored_on_error():
            return self._start(X, y, y)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> BNNClassifier:
        """Learns from more data: what has been learned becomes the prior.

        Args:
            X: inputs of shape ``(rows, features)``.
            y: labels of shape ``(rows,)``.
            classes: all labels that there will be, in the first call, which also decides about the
                scales of the features. By default, those of ``y``.
        """
        if not hasattr(self, "model_"):
            with self._restored_on_error():
                return self._start(X, y, y if classes is None else classes)
        X, y = validate_data(self, X, y, reset=False, dtype=np.float64)
        return self._train_on(X, torch.as_tensor(self.encoder_.transform(y)))

    def predict(self, X: Any) -> Any:
        """The most probable class of each row."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def predict_proba(self, X: Any) -> Any:
        """The probabilities of ``classes_``, of shape ``(rows, classes)``."""
        return self._predicted(X).probs.cpu().numpy()

    def _start(self, X: Any, y: Any, classes: Any) -> BNNClassifier:
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.encoder_ = LabelEncoder().fit(classes)
        self.classes_ = self.encoder_.classes_
        if len(self.classes_) < 2:
            raise ValueError(
                f"`y` has one class only, {self.classes_.tolist()}: give rows of others"
            )
        target = torch.as_tensor(self.encoder_.transform(y))
        self.scaler_ = StandardScaler().fit(X)
        likelihood = likelihoods.Categorical() if self.likelihood is None else self.likelihood
        return self._train_new(X, target, self._num_outputs(likelihood), likelihood)

    def _num_outputs(self, likelihood: Any) -> int:
        """The number of outputs of the network for each row."""
        if isinstance(likelihood, _OF_NUMBERS):
            raise ValueError(f"`likelihood` (={likelihood}) is for numbers: use `BNNRegressor`")
        num_classes = len(self.classes_)
        of_likelihood = num_classes
        if isinstance(likelihood, likelihoods.Bernoulli):
            of_likelihood = 2
        elif isinstance(likelihood, likelihoods.Ordinal):
            of_likelihood = len(likelihood.cutpoints) + 1
        if of_likelihood != num_classes:
            raise ValueError(
                f"`likelihood` (={likelihood}) is for {of_likelihood} classes, but there are "
                f"{num_classes}, {self.classes_.tolist()}: give one for as many"
            )
        has_one = isinstance(likelihood, (likelihoods.Bernoulli, likelihoods.Ordinal))
        return 1 if has_one else num_classes
