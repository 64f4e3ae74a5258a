"""The radial distribution and its KL divergence from a Normal, in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Independent, Normal, register_kl
from torch.distributions.utils import broadcast_all

from ..kernels import HALF_LOG_2_PI, exact_sum, gaussian_kl
from ._located import Located
from ._normal import innermost

_EULER_GAMMA = 0.57721566490153286


class Radial(Located):
    r"""Normal-like noise whose length does not grow with the number of entries.

    .. math::
        w = \mu + \sigma \odot \frac{\epsilon}{\lVert\epsilon\rVert} \, |r|,
        \qquad \epsilon \sim N(0, I_D), \quad r \sim N(0, 1)

    with one radius :math:`r` for each event. The mean is :math:`\mu`, the variance of an entry
    is :math:`\sigma^2 / D` and :math:`E\lVert (w-\mu)/\sigma \rVert = \sqrt{2/\pi}`.

    The log density of a value that :meth:`rsample` returned is differentiated through the noise
    it was made of, which does not depend on the parameters. The gradients of the density with
    respect to value and parameters cancel exactly there, and in float32 they would leave nothing
    but rounding error when :math:`D` is in the millions. Any other value, ``value.detach()``
    among them, is differentiated in full.

    Args:
        loc: mean, shape ``batch_shape + event_shape``.
        scale: scale of the noise before it is divided by its length, positive, broadcastable
            with ``loc``.
        event_dim: number of rightmost dimensions that share one radius; 0 gives a Normal.
        kept: mask of the event's shape; where it is false, the value is the mean, and no part of
            the distribution: :math:`D` counts the others, and the density is theirs.
        validate_args: as in ``torch.distributions``.

    Raises:
        ValueError: if ``event_dim`` does not fit ``loc``, an event has no entries, or an argument
            violates its constraint.

    References:
        Farquhar, Osborne and Gal (2020), "Radial Bayesian neural networks", arXiv:1907.00865.

    Example:
        >>> Radial(torch.zeros(3, 4), torch.ones(3, 4), event_dim=2).rsample().shape
        torch.Size([3, 4])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    noise_kind = "symmetric"  # in each entry, which is what flipout needs

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        event_dim: int,
        *,
        kept: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        if not 0 <= event_dim <= self.loc.dim():
            raise ValueError(
                f"`event_dim` (={event_dim}) must lie between 0 and the number of dimensions of "
                f"`loc` (={self.loc.dim()})"
            )
        self._drawn: tuple[Tensor, Tensor] | None = None
        split = self.loc.dim() - event_dim
        shape = self.loc.shape
        if not shape[split:].numel():
            raise ValueError(
                f"`loc` has the shape {tuple(shape)}, of which an event has no entries: a "
                "direction needs one"
            )
        self._kept = kept
        self._size = shape[split:].numel() if kept is None else int(kept.sum())
        super().__init__(shape[:split], shape[split:], validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, **arg_shapes: Any) -> tuple[torch.Size, torch.Size]:
        """The batch shape and the event shape, from shapes of tensors, and ``event_dim`` itself."""
        event_dim = arg_shapes.get("event_dim")
        if not isinstance(event_dim, int):
            raise NotImplementedError("the shapes depend on the value of `event_dim`: pass it")
        shape = torch.broadcast_shapes(arg_shapes["loc"], arg_shapes.get("scale", ()))
        split = len(shape) - event_dim
        return shape[:split], shape[split:]

    @property
    def variance(self) -> Tensor:
        variance = self.scale.square() / max(1, self._size)
        return variance if self._kept is None else variance * self._kept

    def expand(self, batch_shape, _instance=None) -> Radial:
        new = self._get_checked_instance(Radial, _instance)
        batch_shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new.scale = self.scale.expand(batch_shape + self.event_shape)
        new._kept, new._size, new._drawn = self._kept, self._size, None
        super(Radial, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        return self.from_noise(self.standard_noise(sample_shape))

    def standard_noise(self, sample_shape=torch.Size()) -> Tensor:
        """Noise of mean 0 and scale 1: a uniform direction times the absolute value of a Normal."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        if self._kept is not None:
            noise = noise * self._kept
        length = self._norm(noise)
        return noise * (torch.randn_like(length).abs() / length)

    def from_noise(self, noise: Tensor) -> Tensor:
        """The value made of standard noise; its density is differentiated as a draw's is."""
        value = self.loc + self.scale * noise
        self._drawn = (value, noise) if value.requires_grad else None
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if self._drawn is not None and value is self._drawn[0]:
            noise = self._drawn[1]
        else:
            noise = (value - self.loc) / self.scale
        size = self._size
        squared = self._sum(noise.square())
        density = -0.5 * squared - self._log_constant()
        if size > 1:  # the term is 0 log 0 at the centre of a single entry
            density = density - 0.5 * (size - 1) * squared.log()
        return density - self._sum(self.scale.log())

    def entropy(self) -> Tensor:
        return self._sum(self.scale.log()) + self._standard_entropy()

    def _log_constant(self) -> float:
        """Log of sqrt(2 pi) A_D / 2, with the area A_D of the unit sphere in D dimensions."""
        size = self._size
        log_area = math.log(2) + 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size)
        return log_area - math.log(2) + HALF_LOG_2_PI

    def _standard_entropy(self) -> float:
        size = self._size
        return 0.5 + self._log_constant() - 0.5 * (size - 1) * (_EULER_GAMMA + math.log(2))

    def _norm(self, noise: Tensor) -> Tensor:
        if not self.event_shape:
            return noise.abs()
        dims = tuple(range(-self.event_dim, 0))
        return torch.linalg.vector_norm(noise, dim=dims, keepdim=True)

    def _sum(self, x: Tensor) -> Tensor:
        x = x if self._kept is None else torch.where(self._kept, x, 0)
        return exact_sum(x, tuple(range(-self.event_dim, 0))) if self.event_shape else x


def _kl_radial(q: Radial, loc: Tensor, scale: Tensor) -> Tensor:
    size = q._size
    constant = size * HALF_LOG_2_PI - q._standard_entropy()
    if not q.batch_shape and q._kept is None:
        share = 1 / max(1, size)
        return gaussian_kl(q.loc, q.scale, loc, scale, share, constant + 0.5 * share * size)
    cross = ((q.loc - loc).square() + q.scale.square() / size) / (2 * scale.square())
    return q._sum((scale / q.scale).log() + cross) + constant


@register_kl(Radial, Normal)
def _kl_radial_normal(q: Radial, p: Normal) -> Tensor:
    if q.event_shape:
        raise NotImplementedError("the Normal must have the radial's event: use `.to_event`")
    return _kl_radial(q, p.loc, p.scale)


@register_kl(Radial, Independent)
def _kl_radial_independent(q: Radial, p: Independent) -> Tensor:
    base = innermost(p)
    if not isinstance(base, Normal) or len(p.event_shape) != len(q.event_shape):
        raise NotImplementedError
    return _kl_radial(q, base.loc, base.scale)
