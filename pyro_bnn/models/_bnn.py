"""A network and a likelihood as one Pyro model."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils.rnn import PackedSequence

from .._parameter_access import parameters_explained
from .._parameter_store import isolated_context
from .._tensors import as_tensor
from .._validation import is_count, nan_arguments
from ..conversion import bayesianize
from ..conversion._pyro_modules import join, make_pyro
from ..conversion._weights import copied, select
from ..priors import FanInNormal, Normal
from ._likelihood import Likelihood, as_likelihood
from ._rows import as_mask, as_weight, masked

# What training reaches with them and with others is on the page of defaults. With scales that are
# learned, a network that learns nothing costs nothing, so that few data can afford many weights.
PRIOR = FanInNormal(2**0.5, learnable_scale="entry")
BIAS_PRIOR = Normal(0.0, 1.0, learnable_scale="entry")


class BNN(PyroModule):
    r"""A Bayesian neural network: a network with random weights, and a likelihood.

    .. math:: w \sim p(w), \quad y_n \sim p(y \mid f(x_n; w)), \quad n = 1, \dots, N

    It is an ordinary Pyro model, to be used with any guide, ``SVI``, ``MCMC``,
    :class:`~pyro_bnn.infer.Predictive` and effect handlers. The site of the targets is ``obs``, in
    the plate ``data``. The log-likelihood of a mini-batch of :math:`B` rows is multiplied by
    :math:`N / B`.

    Args:
        net: a network with random weights (of the layers of :mod:`pyro_bnn.nn`, or converted by
            :func:`~pyro_bnn.bayesianize`), which is used as it is; or a torch network, of which a
            copy is converted, with the priors that :doc:`train best </defaults>`: Normals whose
            scales are learned with the posterior, one for each weight and bias. MCMC learns no
            scales: convert the network with priors of known or hierarchical scales for it. Read
            the one in use as ``model.net``.
        likelihood: one of :mod:`pyro_bnn.likelihoods`, of which a copy is used
            (``model.likelihood``); or a function from outputs to a distribution, with the rows in
            its first dimension. It is called before the data plate, and may sample a noise.
        num_data: the number of all data :math:`N`, of which a call sees a batch; by default, a call
            sees all of them. :func:`~pyro_bnn.fit` sets it to the number of its data.

    Returns:
        From a call ``model(x, y=None, *, mask=None, weight=None)``, what the network returns for
        ``x``, so that ``"_RETURN"`` in :class:`~pyro_bnn.infer.Predictive` stands for it. A tuple
        or dictionary ``x`` holds the several inputs of a network, an array is made a tensor. ``y``
        are the targets, one for each row, or None to sample them. ``mask`` tells which targets
        count: for each row, or in the shape of ``y``; what is masked may have any value.
        ``weight`` says how many times each row counts.

    Raises:
        TypeError: if ``net`` is not a module, or ``likelihood`` not a function.
        ValueError: if ``num_data`` is not positive; in a call, if the inputs, targets, mask or
            weights do not suit the network, its outputs or each other, or a training batch has more
            rows than ``num_data``.

    Example:
        >>> from pyro_bnn import BNN, likelihoods
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))
        >>> model = BNN(net, likelihoods.Categorical(), num_data=100)
        >>> guide = AutoLRT(model)
        >>> x, y = torch.ones(5, 4), torch.tensor([0, 1, 2, 1, 0])
        >>> loss = TraceKL_ELBO().loss(model, guide, x, y)
        >>> Predictive(model, guide=guide, num_samples=7)(torch.ones(2, 4))["obs"].shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood | Callable[[Any], Distribution],
        num_data: int | None = None,
    ) -> None:
        super().__init__()
        likelihood = as_likelihood(likelihood)
        self.num_data = num_data
        self.net = _bayesian(net)
        self.likelihood = copy.deepcopy(likelihood)
        like = _floating(self.net)
        if like is not None:
            self.likelihood.to(like.device, like.dtype)
        isolated_context(self)  # all models name the scales of their priors alike

    @property
    def num_data(self) -> int | None:
        """The number of all data, or None if a call has all of them."""
        return self._num_data

    @num_data.setter
    def num_data(self, value: int | None) -> None:
        if value is not None and not is_count(value):
            raise ValueError(f"`num_data` (={value}) must be a positive integer, or None")
        self.__dict__["_num_data"] = None if value is None else int(value)

    def forward(self, x: Any, y: Any = None, *, mask: Any = None, weight: Any = None) -> Any:
        output = self._run(_as_inputs(x, self))
        # Before the plate, since a noise is one for all data.
        try:
            distribution = self.likelihood(output)
        except ValueError as error:
            if isinstance(output, Tensor) and bool(output.isnan().any()):
                raise ValueError(_cause_of_nan(self, x)) from error
            raise
        y, mask, scale = self.observations(distribution, y, mask, weight)
        num_rows = distribution.batch_shape[-1]
        size = self._size(num_rows, y)
        if mask is not None:
            distribution = masked(distribution, mask)
        # Which rows these are does not matter: drawing indices would take longer than the network.
        rows = torch.arange(num_rows)
        scaled: Any = nullcontext() if scale is None else poutine.scale(scale=scale)
        with pyro.plate("data", size, subsample=rows, dim=-1), scaled:
            pyro.sample("obs", distribution, obs=y)
        return output

    def observations(
        self, distribution: Any, y: Any, mask: Any, weight: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Targets, mask and positive weights as the distribution of the targets takes them."""
        mask = as_mask(mask, distribution)
        if weight is not None:
            weight = as_weight(weight, distribution)
            counts = weight > 0  # Pyro's scales are positive
            mask = counts if mask is None else mask & counts.reshape(-1, *[1] * (mask.dim() - 1))
            weight = torch.where(counts, weight, 1.0)
        if y is not None:
            y = self.likelihood.target(y, distribution, mask)
        return y, mask, weight

    def _size(self, num_rows: int, y: Tensor | None) -> int:
        """The size of the data plate."""
        if num_rows == 0:
            raise ValueError("`x` has no rows: give one at least")
        if self.num_data is None or num_rows <= self.num_data:
            return self.num_data or num_rows
        if y is not None and torch.is_grad_enabled():
            raise ValueError(
                f"a batch has {num_rows} rows, but `num_data` (={self.num_data}) is the number of "
                "all data: set `model.num_data` to it, or to None if each call has all of them"
            )
        return num_rows

    def _run(self, x: Any) -> Any:
        try:
            with parameters_explained():
                if isinstance(x, Mapping):
                    return self.net(**x)
                return self.net(*x) if _is_several(x) else self.net(x)
        except (RuntimeError, TypeError) as error:
            remedy = _mismatch(x, self, str(error))
            if remedy is None:
                raise
            raise ValueError(f"the network cannot take `x`: {remedy}") from error


def _bayesian(net: Any) -> nn.Module:
    """A network with random weights: the given one, or a converted copy."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"`net` (={type(net).__name__}) must be a torch.nn.Module")
    if isinstance(net, PyroModule):
        return net
    if not any(vars(module).get("_pyro_samples") for module in net.modules()):
        return bayesianize(net, **default_priors(net))
    net = copied(net)  # of some layers with priors, inside modules that Pyro does not know
    make_pyro(net, set())
    join(net)
    return net


def default_priors(net: nn.Module) -> dict[str, Any]:
    """Those of the weights and, if there are any, of the biases of a torch network."""
    has_bias = any(weight.is_bias for weight in select(net, None))
    return {"prior": PRIOR} | ({"bias_prior": BIAS_PRIOR} if has_bias else {})


def _floating(module: nn.Module) -> Tensor | None:
    """A tensor of a module, for its dtype and device."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((x for x in tensors if x.is_floating_point()), None)


def _is_several(x: Any) -> bool:
    """Whether these are the inputs of a network with several."""
    return isinstance(x, tuple) and not isinstance(x, PackedSequence)


def _as_inputs(x: Any, model: BNN) -> Any:
    """Inputs with arrays as tensors, their numbers in the precision of the network."""
    if isinstance(x, Mapping):
        return {name: _as_inputs(value, model) for name, value in x.items()}
    if _is_several(x):
        return tuple(_as_inputs(value, model) for value in x)
    if not isinstance(x, np.ndarray):
        return x
    made, like = as_tensor(x), _floating(model)
    if like is None:
        return made
    return made.to(like) if made.is_floating_point() else made.to(like.device)


def _cause_of_nan(model: BNN, x: Any) -> str:
    given = x if isinstance(x, Mapping) else {"x": x} if isinstance(x, Tensor) else {}
    found = ", ".join(nan_arguments(model, (), given))
    if found:
        return f"the network returns NaN, since there are NaN in {found}: drop or impute these rows"
    return "the network returns NaN: look for infinite inputs or weights, or logarithms of 0, in it"


def _mismatch(x: Any, model: BNN, error: str) -> str | None:
    """What to do about an error of inputs with another dtype or device than the network's."""
    like = _floating(model)
    values = x.values() if isinstance(x, Mapping) else x if _is_several(x) else (x,)
    for value in values:
        if not isinstance(value, Tensor) or like is None:
            continue
        if value.device != like.device:
            device = f"{str(like.device)!r}"
            return f"it is on {value.device}, the network on {device}; move it by `x.to({device})`"
        if value.dtype != like.dtype and "type" in error:
            return (
                f"its dtype is {value.dtype}, that of the network {like.dtype}; convert it by "
                f"`x.to({like.dtype})`"
            )
    return None
