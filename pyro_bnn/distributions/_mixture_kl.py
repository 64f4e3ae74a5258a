"""The upper bound on KL divergences of mixtures of Normals, the lower bound on their entropy."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, Normal

from ..kernels import HALF_LOG_2_PI, in_single, mixture_bound, summed_mixture_bound
from ._bounds import register_bound
from ._normal_mixture import NormalMixture, normal_components


def mixture_kl_bound(q: Distribution, p: Distribution) -> Tensor:
    r"""Closed-form upper bound on :math:`KL(q \Vert p)` of Normals and mixtures of Normals.

    The entropy of :math:`q` is bounded from below through Bhattacharyya distances (Kolchinsky
    and Tracey 2017, Entropy 19(7):361) and the cross-entropy from above by Jensen's inequality
    in each component (Hershey and Olsen 2007):

    .. math::
        KL(q \Vert p) \le -\sum_a \pi_a H_a
        + \sum_a \pi_a \log \sum_b \pi_b e^{-BD_{ab}}
        - \sum_a \pi_a \log \sum_b \omega_b e^{E_{q_a}[\log p_b]}
        = \sum_a \pi_a \Big(\log \sum_b \pi_b e^{-BD_{ab}}
        - \log \sum_b \omega_b e^{-KL(q_a \Vert p_b)}\Big)

    It is exact for two Normals, where the two mixtures coincide with well separated components,
    and wherever one component of each matters. In between it can be loose (twice the KL divergence,
    say); :func:`kl_quadrature` and ``Trace_ELBO`` give the KL divergence itself. Since it is an
    upper bound, an ELBO made of it still bounds the evidence from below.

    ``torch.distributions.kl_divergence`` returns this bound for (:class:`NormalMixture`, Normal),
    (:class:`NormalMixture`, mixture) and (Normal, mixture), where a mixture is any
    ``MixtureSameFamily`` of Normals from torch or Pyro.

    Args:
        q: a Normal or a mixture of Normals.
        p: a Normal or a mixture of Normals, broadcastable with ``q``.

    Returns:
        The bound in nats, shape ``batch_shape``.

    Raises:
        NotImplementedError: if either is neither a Normal nor a mixture of Normals.
    """
    dims = max(len(q.batch_shape), len(p.batch_shape))
    return mixture_bound(*_components(q, dims), *_components(p, dims))


def summed_mixture_kl_bound(q: Distribution, p: Distribution) -> Tensor:
    """The sum of :func:`mixture_kl_bound` over all entries of two distributions of equal shape."""
    return summed_mixture_bound(_components(q), _components(p))


def mixture_entropy_bound(q: Distribution) -> Tensor:
    """The lower bound on the entropy of each entry that :func:`mixture_kl_bound` is made of."""
    return HALF_LOG_2_PI - mixture_bound(*_components(q))


def summed_mixture_entropy_bound(q: Distribution) -> Tensor:
    """The sum of :func:`mixture_entropy_bound` over all entries."""
    return HALF_LOG_2_PI * q.batch_shape.numel() - summed_mixture_bound(_components(q), [])


def _components(d: Distribution, dims: int = 0) -> list[Tensor]:
    """Those of :func:`normal_components`, in float32 at least: sums over weights are large."""
    return [in_single(t) for t in normal_components(d, dims)]


register_bound(Normal, MixtureSameFamily)(mixture_kl_bound)
register_bound(NormalMixture, Normal)(mixture_kl_bound)
register_bound(NormalMixture, MixtureSameFamily)(mixture_kl_bound)
