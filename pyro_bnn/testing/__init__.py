"""Checks of your own posteriors, layers and estimators."""

from ._estimator import check_estimator_rule
from ._layer import check_layer
from ._posterior import check_posterior

__all__ = ["check_estimator_rule", "check_layer", "check_posterior"]
