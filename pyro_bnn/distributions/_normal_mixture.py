"""Mixtures of Normals with pathwise gradients."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, Normal
from torch.distributions.utils import broadcast_all

from ..kernels import HALF_LOG_2_PI, log_sum
from ._normal import trusted_normal


class NormalMixture(dist.MixtureSameFamily):
    r"""A mixture of Normals for each entry, with exact pathwise gradients.

    .. math:: q(w) = \sum_k \pi_k \, N(w; \mu_k, \sigma_k^2)

    :meth:`rsample` draws by ancestral sampling and differentiates implicitly, through the
    cumulative distribution function :math:`F`: :math:`\partial w / \partial\theta =
    -\,\partial_\theta F(w; \theta) / q(w)`. Weights, means and scales all get exact gradients, of
    first order only: a second differentiation takes them for constants.

    Args:
        probs: weights :math:`\pi_k \ge 0`, shape ``batch_shape + (K,)``; normalized to sum to 1.
        loc: component means, broadcastable with the weights.
        scale: component standard deviations, positive, broadcastable with the weights.
        logits: log weights up to a constant, instead of ``probs``.
        validate_args: as in ``torch.distributions``.

    Raises:
        ValueError: unless exactly one of ``probs`` and ``logits`` is given, if ``loc`` or
            ``scale`` is missing, or if an argument violates its constraint.

    References:
        Figurnov, Mohamed and Mnih (2018), "Implicit reparameterization gradients",
        arXiv:1805.08498.

    Example:
        >>> q = NormalMixture(torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 1.0]), 0.5)
        >>> q.mean
        tensor(0.4000)
    """

    arg_constraints = {
        "probs": constraints.simplex,
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 1),
        "scale": constraints.independent(constraints.positive, 1),
    }
    has_rsample = True

    def __init__(
        self,
        probs: Tensor | None = None,
        loc: Tensor | float | None = None,
        scale: Tensor | float | None = None,
        *,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (probs is None) == (logits is None):
            raise ValueError("give exactly one of `probs` and `logits`")
        if loc is None or scale is None:
            raise ValueError("`loc` and `scale` must both be given")
        weights: Any = probs if logits is None else logits
        weights, loc, scale = broadcast_all(weights, loc, scale)
        if weights.dim() == 0:
            raise ValueError("the last dimension of the weights must count the components")
        kind = "probs" if logits is None else "logits"
        super().__init__(
            dist.Categorical(**{kind: weights}, validate_args=validate_args),
            dist.Normal(loc, scale, validate_args=validate_args),
            validate_args=validate_args,
        )

    probs = property(attrgetter("mixture_distribution.probs"))
    logits = property(attrgetter("mixture_distribution.logits"))
    loc = property(attrgetter("component_distribution.loc"))
    scale = property(attrgetter("component_distribution.scale"))
    support = constraints.real

    def expand(self, batch_shape, _instance=None) -> NormalMixture:
        return super().expand(batch_shape, self._get_checked_instance(NormalMixture, _instance))

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        log_weight, loc, scale = normal_components(self)
        with torch.no_grad():
            uniform = torch.rand(shape, dtype=loc.dtype, device=loc.device)
            weight = log_weight.exp()
            edge, chosen_loc, chosen_scale = weight[0], loc[0], scale[0]
            for k in range(1, len(loc)):
                is_beyond = (uniform >= edge).to(uniform.dtype)  # `lerp` is faster than `where`
                chosen_loc = torch.lerp(chosen_loc, loc[k], is_beyond)
                chosen_scale = torch.lerp(chosen_scale, scale[k], is_beyond)
                edge = edge + weight[k]
            return torch.addcmul(chosen_loc, chosen_scale, torch.randn_like(uniform))

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        value = self.sample(sample_shape)
        parts = normal_components(self, value.dim())
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in parts):
            return value
        log_weight, loc, scale = parts
        with torch.no_grad():  # the derivatives of the value
            z = (value - loc) / scale
            exponent = log_weight - scale.log() - 0.5 * z.square()
            log_density = log_sum(exponent)
            by_loc = (exponent - log_density).exp()
            by_scale = by_loc * z
            by_weight = -torch.special.ndtr(z) * (HALF_LOG_2_PI - log_density).exp()
        terms = torch.addcmul(by_weight * log_weight.exp(), by_scale, scale)
        tangent = torch.addcmul(terms, by_loc, loc).sum(0)
        return value + (tangent - tangent.detach())

    def cdf(self, value: Tensor) -> Tensor:
        log_weight, loc, scale = normal_components(self, value.dim())
        return (log_weight.exp() * torch.special.ndtr((value - loc) / scale)).sum(0)

    def icdf(self, value: Tensor | float) -> Tensor:
        """Quantile function, by bisection between the quantiles of the components."""
        value = torch.as_tensor(value, dtype=self.loc.dtype, device=self.loc.device)
        if self._validate_args and not ((value >= 0) & (value <= 1)).all():
            raise ValueError(f"`value` (={value}) must lie in [0, 1]")
        quantiles = self.component_distribution.icdf(value.unsqueeze(-1))
        low, high = quantiles.amin(-1), quantiles.amax(-1)
        # As many halvings as the format has bits leave nothing between the two ends.
        for _ in range(torch.finfo(low.dtype).bits):
            middle = 0.5 * (low + high)
            below = self.cdf(middle) < value
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)

    def _log_prob(self, value: Tensor) -> Tensor:
        log_weight, loc, scale = normal_components(self, value.dim())
        exponent = log_weight - scale.log() - 0.5 * ((value - loc) / scale).square()
        return log_sum(exponent) - HALF_LOG_2_PI


def trusted_mixture(logits: Tensor, loc: Tensor, scale: Tensor) -> NormalMixture:
    """A mixture of parameters that are known to be valid, and to have the same shape.

    Normalizes log weights by one operation, over components that are far apart in memory.
    """
    choice: Any = object.__new__(dist.Categorical)
    choice.logits = choice._param = torch.log_softmax(logits.movedim(-1, 0), 0).movedim(0, -1)
    choice._num_events = logits.shape[-1]
    Distribution.__init__(choice, logits.shape[:-1], validate_args=False)
    new: Any = object.__new__(NormalMixture)
    normal = trusted_normal(loc, scale)
    dist.MixtureSameFamily.__init__(new, choice, normal, validate_args=False)
    return new


def normal_components(d: Distribution, dims: int = 0) -> list[Tensor]:
    """Log weights, means and scales of a Normal or a mixture of Normals, components in front.

    In front, since sums over a few components are many times faster there than behind.

    Args:
        d: the distribution.
        dims: number of batch dimensions to fill up to, for broadcasting.

    Raises:
        NotImplementedError: if ``d`` is anything else.
    """
    if isinstance(d, Normal):
        zero = d.loc.new_zeros(()).expand_as(d.loc)
        parts = [t.unsqueeze(0) for t in (zero, d.loc, d.scale)]
    elif isinstance(d, MixtureSameFamily) and isinstance(d.component_distribution, Normal):
        normal = d.component_distribution
        parts = [
            t.movedim(-1, 0) for t in (d.mixture_distribution.logits, normal.loc, normal.scale)
        ]
    else:
        raise NotImplementedError
    more = (1,) * (dims - len(d.batch_shape))
    return [t.reshape(t.shape[:1] + more + t.shape[1:]) for t in parts] if more else parts
