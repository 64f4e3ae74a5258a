"""The Bayesian recurrent layers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import nn

from ._layer import BayesianLayer


class _Recurrent(BayesianLayer):
    """Leaves out what torch does to keep parameters in one piece of memory.

    It would read the weights, and so sample them, outside of a forward pass.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super(nn.RNNBase, self).__setattr__(name, value)  # type: ignore[misc]

    @property
    def _flat_weights(self: Any) -> list[Any]:
        names = self._flat_weights_names
        return self.__dict__.get("_read_weights") or [getattr(self, name) for name in names]

    @_flat_weights.setter
    def _flat_weights(self, value: Any) -> None:
        pass

    def __setstate__(self, state: dict[str, Any]) -> None:
        super(nn.RNNBase, self).__setstate__(state)  # type: ignore[misc]
        self._init_flat_weights()

    def _init_flat_weights(self) -> None:
        self._flat_weight_refs: list[Any] = []

    def _update_flat_weights(self) -> None:
        pass

    @torch.compiler.disable  # which does not take torch's recurrent layers in either
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Read once, since a weight may be the result of a computation.
        self.__dict__["_read_weights"] = self._flat_weights
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            del self.__dict__["_read_weights"]

    def flatten_parameters(self) -> None:
        """Does nothing: draws are new tensors in each forward pass."""


class BayesianLSTM(_Recurrent, PyroModule[nn.LSTM]):  # type: ignore[type-arg]
    r"""``torch.nn.LSTM`` with random weights, sampled once for a sequence.

    .. math:: i, f, g, o = W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}, \quad
              c_t = \varsigma(f) c_{t-1} + \varsigma(i) \tanh g, \quad
              h_t = \varsigma(o) \tanh c_t

    with :math:`\varsigma` the logistic function. In a Pyro model, each of ``weight_ih_l0``,
    ``weight_hh_l0``, ``bias_ih_l0`` and so on is one sample site, with one KL divergence. Shared
    samples use torch's fused kernels. With flipout, an example has the same weight at all steps.
    With local reparameterization each step has independent noise, which is an approximation. These
    two project the inputs of all steps in one product.

    Args:
        input_size: number of features of an input at one step.
        hidden_size: number of features of the hidden state.
        num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype: of
            ``nn.LSTM``.
        prior: prior of the weights: a distribution that broadcasts to the shape of each, or a rule
            from :mod:`pyro_bnn.priors`; see :doc:`/defaults` for the default.
        bias_prior: likewise for the biases.

    Returns:
        From a call with ``(input, states)``, as from ``nn.LSTM``: the outputs, and ``(h, c)``.

    Raises:
        TypeError: if a prior is neither a distribution nor a rule.
        ValueError: if a prior does not broadcast to its weight, if ``bias_prior`` is given with
            ``bias=False``, and what ``nn.LSTM`` raises; in the forward pass, if weights have sample
            dimensions.

    References:
        Fortunato, Blundell and Vinyals (2017), "Bayesian recurrent neural networks",
        arXiv:1704.02798.

    Example:
        >>> layer = BayesianLSTM(3, 8, batch_first=True)
        >>> outputs, (h, c) = layer(torch.ones(5, 20, 3))
        >>> outputs.shape, h.shape
        (torch.Size([5, 20, 8]), torch.Size([1, 5, 8]))
    """


class BayesianGRU(_Recurrent, PyroModule[nn.GRU], without=("proj_size",)):  # type: ignore[type-arg]
    r"""``torch.nn.GRU`` with random weights, sampled once for a sequence.

    .. math:: r, z = \varsigma(W_{i} x_t + b_{i} + W_{h} h_{t-1} + b_{h}), \quad
              n = \tanh(W_{in} x_t + b_{in} + r (W_{hn} h_{t-1} + b_{hn})), \quad
              h_t = n + z (h_{t-1} - n)

    Arguments (but for ``proj_size``), sites, estimators and errors are those of
    :class:`BayesianLSTM`.

    Example:
        >>> outputs, h = BayesianGRU(3, 8)(torch.ones(20, 5, 3))
        >>> outputs.shape, h.shape
        (torch.Size([20, 5, 8]), torch.Size([1, 5, 8]))
    """


class BayesianRNN(_Recurrent, PyroModule[nn.RNN], without=("proj_size",)):  # type: ignore[type-arg]
    r"""``torch.nn.RNN`` with random weights, sampled once for a sequence.

    .. math:: h_t = \phi(W_i x_t + b_i + W_h h_{t-1} + b_h)

    with :math:`\phi` tanh or, by ``nonlinearity="relu"``, ReLU. Arguments (but for ``proj_size``),
    sites, estimators and errors are those of :class:`BayesianLSTM`.

    Example:
        >>> outputs, h = BayesianRNN(3, 8, nonlinearity="relu")(torch.ones(20, 5, 3))
        >>> outputs.shape, h.shape
        (torch.Size([20, 5, 8]), torch.Size([1, 5, 8]))
    """


# Torch's own constructor does not tell that this is an argument, the fourth.
_arguments = list(BayesianRNN.__signature__.parameters.values())  # type: ignore[attr-defined]
_arguments.insert(3, _arguments[3].replace(name="nonlinearity", default="tanh", annotation=str))
BayesianRNN.__signature__ = inspect.Signature(_arguments)  # type: ignore[attr-defined]
