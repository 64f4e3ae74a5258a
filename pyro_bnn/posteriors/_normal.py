"""Mean-field Normal posteriors, of weights and of constrained latent variables."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to, transforms

from ..distributions._normal import trusted_normal
from ._posterior import Posterior, trailing


class NormalPosterior(Posterior):
    r"""Independent Normals: :math:`q(w) = N(w; \mu, \mathrm{diag}(\sigma^2))`.

    Args and errors are those of :class:`Posterior`. All estimators work with it.

    References:
        Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), "Weight uncertainty in neural
        networks", arXiv:1505.05424.

    Example:
        >>> NormalPosterior(torch.zeros(3, 2), 0.1).distribution().event_shape
        torch.Size([3, 2])
    """

    def base(self) -> dist.TorchDistribution:
        return trusted_normal(self.read("loc"), self.read("scale"))

    def quantiles(self, probs: Tensor) -> Tensor:
        return self._masked(self.base().icdf(trailing(probs, self.read("loc"))).detach())


class ConstrainedPosterior(NormalPosterior):
    r"""Independent Normals in unconstrained space, for a latent variable with a constraint.

    .. math:: w = g(z), \qquad z \sim N(\mu, \mathrm{diag}(\sigma^2))

    with the bijection :math:`g` that ``torch.distributions.biject_to`` has for the constraint.

    Args:
        loc: initial median, within ``support``; gives the shape of the variable.
        scale: initial standard deviation of :math:`z`, positive.
        event_dim: number of rightmost dimensions of ``loc`` that are one event; all by default.
        support: the constraint, say ``constraints.positive``. None leaves it to :meth:`adapt`,
            and ``loc`` is in unconstrained space.
        family: what a saved state says of the constraint that is not known yet.

    Raises:
        ValueError: if ``scale`` is not positive and finite, or ``loc`` is not in ``support``.
        NotImplementedError: if torch has no bijection for ``support``.

    Example:
        >>> q = ConstrainedPosterior(torch.tensor(0.5), 0.1, support=constraints.positive)
        >>> q.median()
        tensor(0.5000)
    """

    _saved_family: str | None = None

    def __init__(
        self,
        loc: Tensor,
        scale: float | Tensor,
        event_dim: int | None = None,
        *,
        support: constraints.Constraint | None,
        family: str | None = None,
    ) -> None:
        event_dim = loc.dim() if event_dim is None else event_dim
        free = loc.detach() if support is None else biject_to(support).inv(loc.detach())
        # A matrix under a constraint, say, may have its degrees of freedom in a vector.
        super().__init__(free, scale, event_dim + free.dim() - loc.dim())
        self.support = support
        self.constrained_event_dim = event_dim
        self._saved_family = family

    @property
    def family(self) -> str:
        if self.support is None:
            return self._saved_family or type(self).__name__
        transform = biject_to(self.support)
        return f"{type(self).__name__} by {_described(transform)}"

    @property
    def is_complete(self) -> bool:
        return self.support is not None

    def adapt(self, prior: dist.TorchDistribution) -> None:
        if self.support is None:
            saved, self.support = self._saved_family, prior.support
            if saved is not None and saved != self.family:
                self.support, found = None, self.family
                raise ValueError(
                    f"the posterior was saved as a {saved}, and the constraint {prior.support} of "
                    f"its site in the model needs a {found}: the state was saved for another model"
                )
        self.constrained_event_dim = prior.event_dim
        super().adapt(prior)

    def _set_event_dim(self, event_dim: int) -> None:
        free_dims = self.read("loc").dim() - self.median().dim()
        super()._set_event_dim(event_dim + free_dims)

    def distribution(self, *, shared: bool = False) -> dist.TorchDistribution:
        if is_real(self._known_support()):
            return super().distribution(shared=shared)
        transform = biject_to(self._known_support()).with_cache()
        transformed = dist.TransformedDistribution(self.base(), transform, validate_args=False)
        return transformed.to_event(self.constrained_event_dim - transformed.event_dim)

    @torch.no_grad()
    def as_prior(self) -> dist.TorchDistribution:
        return self.distribution()

    def median(self) -> Tensor:
        return biject_to(self._known_support())(super().median())

    def center(self) -> Tensor:
        # Few transformed Normals have a mean in closed form; this is the median.
        return biject_to(self._known_support())(super().center())

    def quantiles(self, probs: Tensor) -> Tensor:
        return biject_to(self._known_support())(super().quantiles(probs))

    def check_mask(self, kept: Tensor) -> None:
        raise ValueError("only weights of networks can be pruned, not a latent variable")

    def _known_support(self) -> constraints.Constraint:
        if self.support is None:
            raise ValueError(
                "the constraint of this posterior is not known yet: call the guide once with the "
                "arguments of the model"
            )
        return self.support


def _described(transform: Any) -> str:
    """The kinds of transforms that one is made of."""
    while isinstance(transform, transforms.IndependentTransform):
        transform = transform.base_transform
    if isinstance(transform, transforms.ComposeTransform):
        return " and ".join(_described(part) for part in transform.parts) or "identity"
    return type(transform).__name__


def is_real(support: constraints.Constraint) -> bool:
    """Whether a constraint is none: every real number, in any number of dimensions."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    # Not `is`: copies and what is unpickled have constraints of their own.
    return isinstance(support, type(constraints.real))
