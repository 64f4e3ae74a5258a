"""A warning about rows that interact, where each row has its own noise."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn.modules.module import register_module_forward_hook

from .._torch import NormBase, is_transformed
from ..estimators import Shared, draw
from ..estimators._draw import SharedSample
from ..estimators._maps import LinearMap
from ..estimators._signs import Signs
from ._dry_run import dry_run
from ._no_data import to_caller


def warn_of_interaction(guide: Any, found: Trace, args: Any, kwargs: Any) -> None:
    r"""Warns if a value of an observed site depends on several rows of a layer's output.

    Flipout and local reparameterization give each row its own noise. This is right if the
    likelihood is a product :math:`\prod_b p(y_b \mid f_b)` of factors that depend on one row each.
    The model runs once more with ordinary weights, and zeros are added to the outputs of layers,
    different ones for each row. The gradient of some factors by these zeros shows on how many rows
    the factors depend. If there are more rows than factors, some factor depends on several.

    Args:
        guide: the guide, which has all of its posteriors.
        found: the first run of its model, for the values of its sites.
        args, kwargs: what the model was given.
    """
    if guide.is_shared or is_transformed() or not found.observation_nodes:
        return
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return
    sites: dict[str, Any] = dict(found.iter_stochastic_nodes())
    noisy = [name for name in sites if not isinstance(guide[name].estimator, Shared)]
    if not noisy:
        return
    zeros: dict[str, list[Tensor]] = {name: [] for name in noisy}
    found = found.copy()
    for name in noisy:
        value = draw(_Probe(sites[name]["value"], zeros[name]))
        found.nodes[name] = sites[name] | {"value": value}
    model = poutine.replay(guide._model[0], found)
    with dry_run(), poutine.block(), pyro.validation_enabled(False), _batches_apart():
        run = poutine.trace(model).get_trace(*args, **kwargs)
        densities = {name: _factors(run.nodes[name]) for name in run.observation_nodes}
        seen = [
            (name, weight)
            for name, density in densities.items()
            for weight in noisy
            if _see_several(density, zeros[weight])
        ]
    if seen:
        site, weights = seen[0][0], [weight for name, weight in seen if name == seen[0][0]]
        warnings.warn(
            f"single values of the observed site `{site}` depend on several rows of what the "
            f"weights {weights} are applied to, and this guide draws noise for each row, so that "
            "the trained scales will be wrong: draw one weight for all rows, by "
            "`AutoReparameterization(model)` or by training inside of `guide.shared_draws()`; "
            "or, if the rows are parts of one example, let these be a dimension behind the first",
            stacklevel=to_caller(),
        )


class _Probe(SharedSample):
    """An ordinary weight, to whose outputs zeros are added, for each row and channel."""

    def __init__(self, value: Tensor, zeros: list[Tensor]) -> None:
        super().__init__(value)
        self._zeros = zeros
        self._rows = Signs()  # as flipout's, they are those of the same rows in a second use

    @property
    def mT(self) -> _Probe:
        return _Probe(self.loc.mT, self._zeros)

    def apply(self, map: LinearMap, input: Tensor, bias: Tensor | None) -> Tensor:
        output = super().apply(map, input, bias)
        if not torch.is_grad_enabled() or is_transformed():
            return output
        number, axis = map.examples(input, len(self.shape) - map.weight_dim)
        channels = self.shape[-map.weight_dim :][map.sides[0]]
        zeros = self._rows(number, map.sides[0], partial(self._new, output, (number, channels)))
        return output + map.align_signs(zeros, output, axis)

    def _new(self, output: Tensor, shape: tuple[int, int]) -> tuple[Tensor, None]:
        self._zeros.append(output.new_zeros(shape, requires_grad=True))
        return self._zeros[-1], None


def _factors(site: dict[str, Any]) -> Tensor:
    """The log densities of the values of a site; none if that of all together is known alone."""
    fn, mask = site["fn"], site["mask"]
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if isinstance(fn, (dist.Unit, dist.MaskedDistribution)):
        return torch.zeros(0)
    result: Tensor = fn.log_prob(site["value"])
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * (result.dim() - len(site["fn"].batch_shape)))
        result = torch.where(mask, result, 0)
    return result.reshape(-1)


def _see_several(factors: Tensor, zeros: list[Tensor]) -> bool:
    """Whether one factor, or half of them together, see more rows than they are."""
    if not factors.requires_grad or not zeros:
        return False
    half = len(factors) // 2
    for some in (factors[half : half + 1], factors[: max(half, 1)]):
        try:
            grads = torch.autograd.grad(some.sum(), zeros, retain_graph=True, allow_unused=True)
        except (RuntimeError, ValueError):  # not through what is to be recomputed
            return False
        rows = [(grad.abs() > 0).any(-1).sum() for grad in grads if grad is not None]
        if any(not number.is_meta and number > len(some) for number in rows):
            return True
    return False


@contextmanager
def _batches_apart() -> Iterator[None]:
    """Leaves out what batch normalization makes of other rows, each of which matters little."""

    def forward(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(module, NormBase) and args:
            return output.detach() + (args[0] - args[0].detach())

    hook = register_module_forward_hook(forward)
    try:
        yield
    finally:
        hook.remove()
