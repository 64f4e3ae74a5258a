"""What all Bayesian layers share."""

from __future__ import annotations

from typing import Any

from pyro.nn import PyroModule, PyroSample
from torch.distributions import Distribution

from ..priors import Normal
from ._prior import Prior, Rule

DEFAULT_PRIOR = Normal(0.0, 1.0)
DEFAULT_BIAS_PRIOR = Normal(0.0, 1.0)


class BayesianLayer:
    """Mixin that turns the parameters of a torch layer into random variables with priors."""

    def _sample_parameters(
        self: Any,
        prior: Distribution | Rule | None,
        bias_prior: Distribution | Rule | None,
    ) -> None:
        """Replaces each parameter by a site, and adds its prior as ``<name>_prior``."""
        weight = next(p for name, p in self.named_parameters(recurse=False) if "bias" not in name)
        fan_in = weight.shape[1:].numel()
        if bias_prior is not None and all("bias" not in n for n, _ in self.named_parameters()):
            raise ValueError(
                f"`bias_prior` (={bias_prior!r}) is given to a layer with `bias=False`: drop one"
            )
        for name, parameter in list(self.named_parameters(recurse=False)):
            is_bias = "bias" in name
            rule = bias_prior if is_bias else prior
            if rule is None:
                rule = DEFAULT_BIAS_PRIOR if is_bias else DEFAULT_PRIOR
            made = Prior(rule, parameter, fan_in, "bias_prior" if is_bias else "prior")
            setattr(self, name + "_prior", made)
            setattr(self, name, PyroSample(SitePrior(name + "_prior")))


class SitePrior:
    """The prior of a site: what the layer's module of that name returns."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, layer: PyroModule) -> Any:
        return getattr(layer, self.name)()
