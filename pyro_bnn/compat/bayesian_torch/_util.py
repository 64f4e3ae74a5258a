"""Uncertainty of class probabilities, and MOPED for whole networks."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from ..._torch import NormBase, ntuple
from ..._validation import check_positive
from .._variational import VariationalLayer
from ._arguments import ByRadial
from ._conversion import KINDS, NO_MOPED, set_to_trained
from ._mixture_base import BaseMixtureLayer_


def entropy(prob: Any) -> Any:
    r"""The entropy of probabilities of classes, :math:`-\sum_k p_k \log p_k`, in nats.

    Args:
        prob: probabilities along the last dimension, a tensor or an array.

    Returns:
        The entropies, without the last dimension; an array for an array.

    Example:
        >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    return _as(prob, torch.special.entr(torch.as_tensor(prob)).sum(-1))


def predictive_entropy(mc_preds: Any) -> Any:
    """The entropy of the mean of sampled probabilities: the whole uncertainty of a prediction.

    Args:
        mc_preds: probabilities of shape ``(samples, ..., classes)``, a tensor or an array.

    Returns:
        The entropies, of shape ``(...)``; an array for an array.
    """
    return _as(mc_preds, entropy(torch.as_tensor(mc_preds).mean(0)))


def mutual_information(mc_preds: Any) -> Any:
    """The part of the entropy that is due to the weights: what data about them would take away.

    Args:
        mc_preds: as for :func:`predictive_entropy`.

    Returns:
        The entropy of the mean less the mean of the entropies, of shape ``(...)``.
    """
    samples = torch.as_tensor(mc_preds)
    return _as(mc_preds, entropy(samples.mean(0)) - entropy(samples).mean(0))


def _as(given: Any, result: Tensor) -> Any:
    return result if isinstance(given, Tensor) else result.numpy()[()]


def get_kernel_size(x: Any, n: int) -> tuple[int, ...]:
    """The size of a kernel of ``n`` dimensions, given by one number or by all."""
    return ntuple(n)(x)


def get_rho(sigma: Tensor, delta: float) -> Tensor:
    r"""The ``rho`` of scales that are a fraction of the size of weights, :math:`\delta |w|`.

    Args:
        sigma: the weights :math:`w`.
        delta: the fraction :math:`\delta`, positive.

    Returns:
        :math:`\rho` with :math:`\log(1 + e^\rho) = \delta |w|`; -46 for a weight of 0.
    """
    check_positive(delta=delta)
    return torch.log(torch.expm1(delta * sigma.abs()) + 1e-20)


def MOPED(  # noqa: N802
    model: nn.Module,
    det_model: nn.Module,
    det_checkpoint: str | os.PathLike[str],
    delta: float,
) -> nn.Module:
    """Starts a Bayesian network at the weights of a trained one, which its priors have as means.

    Posteriors have standard deviations of ``delta`` times the size of each weight. Normalisation
    layers take over all of their state.

    Args:
        model: a network of these layers; changed in place.
        det_model: the network of torch's layers that corresponds to it, layer by layer.
        det_checkpoint: file with the ``state_dict`` of ``det_model``, which is loaded into it.
        delta: fraction of a weight's size, positive.

    Returns:
        ``model``.

    Raises:
        ValueError: if the layers of the two do not correspond, in number or shape.
        TypeError: if a layer has radial or mixture posteriors.

    References:
        Krishnan, Subedar and Tickoo (2020), arXiv:1906.05323.
    """
    check_positive(delta=delta)
    layers = [(n, m) for n, m in model.named_modules() if _takes_part(m, VariationalLayer)]
    others = [(n, m) for n, m in det_model.named_modules() if _takes_part(m, tuple(KINDS))]
    if len(layers) != len(others):
        raise ValueError(
            f"`model` has {len(layers)} layers {[n for n, _ in layers]}, `det_model` "
            f"{len(others)} {[n for n, _ in others]}: they must correspond, one to one"
        )
    for (name, layer), (det_name, det_layer) in zip(layers, others, strict=True):
        if isinstance(layer, (BaseMixtureLayer_, ByRadial)):
            raise TypeError(f"`{name}`, a {type(layer).__name__}, {NO_MOPED}")
        shapes, det_shapes = _shapes(layer), _shapes(det_layer)
        if shapes != det_shapes:
            raise ValueError(
                f"`{name}` of `model` has {shapes}, the corresponding `{det_name}` of `det_model` "
                f"{det_shapes}"
            )
    det_model.load_state_dict(torch.load(det_checkpoint, map_location="cpu"))
    for (_, layer), (_, det_layer) in zip(layers, others, strict=True):
        if isinstance(layer, VariationalLayer):
            for key, weight in det_layer.named_parameters(recurse=False):
                set_to_trained(layer, key, weight.detach(), get_rho(weight.detach(), delta))
        else:
            layer.load_state_dict(det_layer.state_dict())
    return model


def _takes_part(module: nn.Module, kinds: Any) -> bool:
    return isinstance(module, (kinds, NormBase))


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    if isinstance(layer, VariationalLayer):
        return {k: tuple(q.median().shape) for k, q in layer._posteriors.items()}
    if isinstance(layer, NormBase):
        return {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    return {key: tuple(p.shape) for key, p in layer.named_parameters(recurse=False)}
