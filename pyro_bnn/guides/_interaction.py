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
from pyro.infer.autoguide.initialization import InitMessenger
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


class Interaction:
    """The check of a guide whether rows interact, at the first call whose data can tell."""

    _is_told_of_rows = False
    _data_looked_at = (-1, 0)

    def _check_rows(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_shared or is_transformed() or self._model is None:
            return
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return
        # Where the data told nothing, others may that have targets, too, or more rows; anything
        # that is no record is let pass, so that training costs no more.
        data = _amount(args, kwargs)
        if data > self._data_looked_at:
            self._data_looked_at = data
            self._is_told_of_rows = warn_of_interaction(self, args, kwargs)


def warn_of_interaction(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    r"""Warns if a value of an observed site depends on several rows of a layer's output.

    Flipout and local reparameterization give each row its own noise. This is right if the
    likelihood is a product :math:`\prod_b p(y_b \mid f_b)` of factors that depend on one row each.
    The model runs once more with ordinary weights, and zeros are added to the outputs of layers,
    different ones for each row. The gradient of some factors by these zeros shows on how many rows
    the factors depend. If there are more rows than factors, some factor depends on several.

    Args:
        guide: the guide, which has all of its posteriors.
        args, kwargs: what the model is given.

    Returns:
        Whether the data can tell: something is observed, and there are several rows, or no site
        has noise for each.
    """
    sites = dict(guide.prototype_trace.iter_stochastic_nodes())
    zeros: dict[str, list[Tensor]] = {
        name: [] for name in sites if not isinstance(guide[name].estimator, Shared)
    }
    if not zeros:
        return True

    def initial(site: dict[str, Any]) -> Tensor:
        name = site["name"]
        value = guide._prototype_value(set(), site) if name in sites else site["fn"].sample()
        return draw(_Probe(value, zeros[name])) if name in zeros else value

    model = InitMessenger(initial)(guide._model[0])
    with dry_run(), poutine.block(), pyro.validation_enabled(False), _batches_apart():
        try:
            run: Any = poutine.trace(model).get_trace(*args, **kwargs)
        except Exception:  # a guide that has its sites takes any arguments, as in `guide()`
            return False
        densities = {name: _factors(run.nodes[name]) for name in run.observation_nodes}
        seen = [
            (name, weight)
            for name, density in densities.items()
            for weight in zeros
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
    return bool(densities) and any(len(rows) > 1 for some in zeros.values() for rows in some)


def _amount(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """How many tensors a model is given, and how many numbers."""
    given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    return len(given), sum(x.numel() for x in given)


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
    result: Tensor = fn.log_prob(site["value"])
    # A factor outside of plates may be a sum over rows, and one number inside a share of it.
    is_sum = isinstance(fn, dist.Unit) and (not site["cond_indep_stack"] or 0 in result.stride())
    if is_sum or isinstance(fn, dist.MaskedDistribution):
        return torch.zeros(0)
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
