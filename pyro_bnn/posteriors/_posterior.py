"""A variational posterior over one weight tensor."""

from __future__ import annotations

from abc import abstractmethod

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import transform_to

from ..estimators import Estimated, Estimator, Shared


class Posterior(PyroModule):
    r"""The approximate posterior of one weight tensor: its parameters, and how it is drawn.

    A posterior owns ``loc`` and ``scale`` (and what else its family has) as Pyro parameters.
    Scales are stored as :math:`\rho`, with :math:`\sigma = \log(1 + e^\rho)`.

    Args:
        loc: initial mean; gives the shape of the weight.
        scale: initial scale, positive, broadcastable with ``loc``.
        event_dim: number of rightmost dimensions of ``loc`` that are one event; all by default.
        estimator: how draws meet inputs; one weight for all examples by default.

    Raises:
        ValueError: if ``scale`` is not positive and finite, or ``loc`` not finite.
        TypeError: if ``estimator`` is no :class:`~pyro_bnn.estimators.Estimator`.
    """

    def __init__(
        self,
        loc: Tensor,
        scale: float | Tensor,
        event_dim: int | None = None,
        estimator: Estimator | None = None,
    ) -> None:
        super().__init__()
        if not torch.isfinite(loc).all():
            raise ValueError("`loc` must be finite: choose another `init_loc_fn`")
        if not all_positive(scale):
            raise ValueError(f"`scale` (={scale}) must be positive and finite")
        if estimator is not None and not isinstance(estimator, Estimator):
            raise TypeError(f"`estimator` (={estimator!r}) must be an Estimator, say `Flipout()`")
        self.event_dim = loc.dim() if event_dim is None else event_dim
        self.estimator = estimator or Shared()
        loc = loc.detach().clone(memory_format=torch.contiguous_format)
        self._init_parameters(loc, torch.as_tensor(scale).to(loc).expand_as(loc).contiguous())

    def _init_parameters(self, loc: Tensor, scale: Tensor) -> None:
        self.loc = PyroParam(loc, constraints.real, self.event_dim)
        self.scale = PyroParam(scale, constraints.softplus_positive, self.event_dim)

    @property
    def is_complete(self) -> bool:
        """Whether the posterior can be drawn from; false for some until :meth:`adapt`."""
        return True

    @abstractmethod
    def base(self) -> dist.TorchDistribution:
        """The distribution of the weight, without an event or an estimator around it."""

    def distribution(self, *, shared: bool = False) -> dist.TorchDistribution:
        """The distribution of the weight, one event of ``event_dim`` dimensions.

        Args:
            shared: draw one ordinary weight for all examples, whatever the estimator.
        """
        return Estimated(self.base(), self.event_dim, Shared() if shared else self.estimator)

    @torch.no_grad()
    def as_prior(self) -> dist.TorchDistribution:
        """The distribution of the weight as it is now, for the prior of another model."""
        return self.base()

    def median(self) -> Tensor:
        """The median of each entry, shape of the weight."""
        return self._read("loc").detach().clone()

    def center(self) -> Tensor:
        """One value for the whole posterior, differentiable: its mean."""
        return self.base().mean

    @abstractmethod
    def quantiles(self, probs: Tensor) -> Tensor:
        """Quantiles of each entry, shape ``probs.shape`` + shape of the weight.

        Raises:
            NotImplementedError: if the family has none in closed form.
        """

    def adapt(self, prior: dist.TorchDistribution) -> None:
        """Takes over the event of a site's prior, which a saved state does not tell.

        Raises:
            ValueError: if the posterior has another event shape than the prior.
        """
        shape = self.median().shape
        if shape[len(shape) - prior.event_dim :] != prior.event_shape:
            raise ValueError(
                f"the posterior has shape {tuple(shape)}, its site in the model an event of shape "
                f"{tuple(prior.event_shape)}: the state was saved for another model"
            )
        self._set_event_dim(prior.event_dim)

    def _set_event_dim(self, event_dim: int) -> None:
        shift = event_dim - self.event_dim
        self.event_dim = event_dim
        for name, (constraint, own) in self._pyro_params.items():
            self._pyro_params[name] = (constraint, (own or 0) + shift)

    def _read(self, name: str) -> Tensor:
        """A constrained parameter; a Pyro parameter only where Pyro is at work."""
        if self._pyro_context.active:
            return getattr(self, name)
        constraint, _ = self._pyro_params[name]
        return transform_to(constraint)(self._parameters[name + "_unconstrained"])


def all_positive(scale: float | Tensor) -> bool:
    scale = torch.as_tensor(scale)
    return bool(((scale > 0) & (scale < float("inf"))).all())


def trailing(probs: Tensor, like: Tensor) -> Tensor:
    """``probs`` followed by dimensions that broadcast with those of ``like``."""
    return probs.to(like).reshape(probs.shape + (1,) * like.dim())
