"""A variational posterior over one weight tensor."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from .._parameters import read
from .._tensors import has_values
from ..estimators import Estimated, Estimator, Shared
from ._pruned import Pruned
from ._states import ChecksStates

_SHARED = Shared()


class Posterior(ChecksStates, PyroModule):
    r"""The approximate posterior of one weight tensor: its parameters and its distribution.

    A posterior has ``loc`` and ``scale`` (and what else its family needs) as Pyro parameters.
    Scales are stored as :math:`\rho`, with :math:`\sigma = \log(1 + e^\rho)`.

    Args:
        loc: initial mean; gives the shape of the weight.
        scale: initial scale, positive, broadcastable with ``loc``.
        event_dim: number of rightmost dimensions of ``loc`` that are one event; all by default.
        estimator: how outputs are computed from samples; a shared sample by default.

    Attributes:
        kept: mask of the weights that are not pruned, or None.

    Raises:
        ValueError: if ``scale`` is not positive and finite, ``loc`` not finite, or the noise of the
            posterior other than what ``estimator`` needs.
        TypeError: if ``estimator`` is no :class:`~pyro_bnn.estimators.Estimator`.
    """

    kept: Tensor | None
    #: Names of the parameters that are scales, for which a guide has a learning rate apart.
    SCALES: ClassVar[tuple[str, ...]] = ("scale",)

    def __init__(
        self,
        loc: Tensor,
        scale: float | Tensor,
        event_dim: int | None = None,
        estimator: Estimator | None = None,
    ) -> None:
        super().__init__()
        if has_values(loc) and not torch.isfinite(loc).all():
            raise ValueError("`loc` must be finite: choose another `init_loc_fn`")
        if not all_positive(scale):
            raise ValueError(f"`scale` (={scale}) must be positive and finite")
        check_estimator(estimator)
        self.register_buffer("kept", None)
        self.event_dim = loc.dim() if event_dim is None else event_dim
        self.estimator = estimator or Shared()
        loc = loc.detach().clone(memory_format=torch.contiguous_format)
        self.init_parameters(loc, torch.as_tensor(scale).to(loc).expand_as(loc).contiguous())
        if self.estimator.needs != "any":
            self.estimator.check(self.base())

    def init_parameters(self, loc: Tensor, scale: Tensor) -> None:
        """Makes the parameters, once, of initial values that are checked and of one shape."""
        self.loc = PyroParam(loc, constraints.real, self.event_dim)
        self.scale = PyroParam(scale, constraints.softplus_positive, self.event_dim)

    @property
    def is_complete(self) -> bool:
        """Whether the posterior can be sampled; false for some until :meth:`adapt`."""
        return True

    @abstractmethod
    def base(self) -> dist.TorchDistribution:
        """The distribution of the weight, unpruned, without an event or an estimator around it."""

    def distribution(self, *, shared: bool = False) -> dist.TorchDistribution:
        """The distribution of the weight, one event of ``event_dim`` dimensions.

        Args:
            shared: sample one ordinary weight for all examples, whatever the estimator.
        """
        return self._around(self.base(), shared)

    def _around(self, base: dist.TorchDistribution, shared: bool) -> dist.TorchDistribution:
        estimator = _SHARED if shared else self.estimator
        kept = self._buffers["kept"]
        if kept is None:
            return Estimated(base, self.event_dim, estimator)
        return Pruned(base, self.event_dim, estimator, kept)

    @torch.no_grad()
    def as_prior(self) -> dist.TorchDistribution:
        """The distribution of the weight as it is now, for the prior of another model.

        Raises:
            ValueError: if weights are pruned.
        """
        if self.kept is not None:
            raise ValueError(
                "a pruned posterior is no prior, since a weight that is zero for good has no "
                "density: prune after the last task, or give a prior of its own"
            )
        return self.base()

    def median(self) -> Tensor:
        """The median of each entry, shape of the weight."""
        return self._masked(self.read("loc").detach().clone())

    def center(self) -> Tensor:
        """One value for the whole posterior, differentiable: its mean."""
        return self._masked(self.base().mean)

    @abstractmethod
    def quantiles(self, probs: Tensor) -> Tensor:
        """Quantiles of each entry, shape ``probs.shape`` + shape of the weight.

        Raises:
            ValueError: if a probability is not between 0 and 1, or there is none.
            NotImplementedError: if the family has none in closed form.
        """

    def scales(self) -> dict[str, Tensor]:
        """The unconstrained parameters of the scales, by the names of the constrained ones."""
        parameters: Any = self._parameters
        return {name: parameters[name + "_unconstrained"] for name in self.SCALES}

    # Pruning.

    @torch.no_grad()
    def signal_to_noise(self) -> Tensor:
        r""":math:`|\mu| / \sigma` of each entry, by mean and standard deviation; 0 where pruned."""
        base = self.base()
        return self._masked(base.mean.abs() / base.stddev)

    def prune(self, kept: Tensor) -> None:
        """Sets weights to zero for good, with no KL divergence from the prior.

        Args:
            kept: mask of the weights that stay, shape of the weight. Those that have been pruned
                before stay pruned.

        Raises:
            ValueError: if the mask is not boolean or has another shape.
            TypeError: if the distribution of the weight cannot be pruned.
        """
        self.check_mask(kept)
        self.kept = kept.clone() if self.kept is None else self.kept & kept

    @torch.no_grad()
    def check_mask(self, kept: Tensor) -> None:
        """Raises what :meth:`prune` would, and changes nothing."""
        base = self.base()
        shape = base.mean.shape
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != shape:
            given = f"{tuple(kept.shape)}, {kept.dtype}" if isinstance(kept, Tensor) else repr(kept)
            raise ValueError(f"`kept` (={given}) must be a boolean tensor of shape {tuple(shape)}")
        Pruned(base, self.event_dim, self.estimator, kept)

    def _masked(self, x: Tensor) -> Tensor:
        return x if self.kept is None else x * self.kept

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

    def read(self, name: str) -> Tensor:
        """A constrained parameter, as :meth:`base` takes it."""
        return read(self, name)


def check_estimator(estimator: Any) -> None:
    if estimator is not None and not isinstance(estimator, Estimator):
        raise TypeError(f"`estimator` (={estimator!r}) must be an Estimator, say `Flipout()`")


def all_positive(scale: float | Tensor) -> bool:
    scale = torch.as_tensor(scale)
    return not has_values(scale) or bool(((scale > 0) & (scale < float("inf"))).all())


def trailing(probs: Any, like: Tensor) -> Tensor:
    """Probabilities, checked, followed by dimensions that broadcast with those of ``like``."""
    probs = torch.as_tensor(probs).to(like)
    inside = not has_values(probs) or bool(((probs > 0) & (probs < 1)).all())
    if not probs.numel() or not inside:
        raise ValueError(
            f"`quantiles` (={probs.tolist()}) must be probabilities between 0 and 1, without the "
            "two, at least one of them: `[0.025, 0.975]`, say, for an interval of 95%"
        )
    return probs.reshape(probs.shape + (1,) * like.dim())
