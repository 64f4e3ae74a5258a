"""The Bayesian linear layer."""

from __future__ import annotations

from pyro.nn import PyroModule
from torch import Tensor, nn

from ..estimators import linear
from ._layer import BayesianLayer


class BayesianLinear(BayesianLayer, PyroModule[nn.Linear]):  # type: ignore[type-arg]
    r"""``torch.nn.Linear`` with random weights, :math:`y = x W^\top + b`.

    In a Pyro model, weight and bias are sample sites; which posterior they get, and how
    outputs are computed from it, is up to the guide. Weights may have sample dimensions in front
    (``(S, 1, out, in)``), as plates of particles make them.

    Args:
        in_features: size of an input.
        out_features: size of an output.
        bias: whether there is a bias.
        device, dtype: of the priors, and so of the guide's parameters.
        prior: prior of the weight: a distribution that broadcasts to ``(out, in)``, or a rule
            from :mod:`pyro_bnn.priors`; see :doc:`/defaults` for the default.
        bias_prior: likewise for the bias, of shape ``(out,)``.

    Attributes:
        weight_prior: a module whose buffers are the parameters of the prior.
        bias_prior: likewise.

    Raises:
        TypeError: if a prior is neither a distribution nor a rule.
        ValueError: if a prior does not broadcast to its weight, if ``bias_prior`` is given with
            ``bias=False``; in the forward pass, if the input has another width.

    Example:
        >>> layer = BayesianLinear(3, 2, prior=dist.Normal(0.0, 0.5))
        >>> layer(torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
