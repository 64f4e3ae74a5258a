"""The distributions of many posteriors, made at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pyro.distributions import TorchDistribution

from ..distributions._joint import Joint
from ..estimators import Shared
from ..kernels import MAX_SIZE, is_plain
from ._normal import NormalPosterior
from ._posterior import Posterior

_MIN_JOINT = 3  # below, one operation for all costs more than one for each


def distributions(
    posteriors: Iterable[Posterior], *, shared: bool = False
) -> list[TorchDistribution]:
    """What :meth:`Posterior.distribution` returns for each.

    Small Normals are parts of one for all, which their draws and KL divergences are computed by.
    """
    posteriors = list(posteriors)
    small: dict[Any, list[Posterior]] = defaultdict(list)
    for posterior in () if is_plain() else posteriors:
        if _joins(posterior):
            loc: Any = posterior._parameters["loc_unconstrained"]
            quantity = Shared.quantity if shared else posterior.estimator.quantity
            small[loc.dtype, loc.device, quantity].append(posterior)
    bases: dict[int, Any] = {}
    for (*_, quantity), group in small.items():
        if quantity is not None and len(group) >= _MIN_JOINT:
            bases.update(zip(map(id, group), _joint(quantity, group).split(), strict=True))
    return [
        p._around(bases[id(p)], shared) if id(p) in bases else p.distribution(shared=shared)
        for p in posteriors
    ]


def _joins(posterior: Posterior) -> bool:
    if type(posterior) is not NormalPosterior or posterior._buffers["kept"] is not None:
        return False
    loc: Any = posterior._parameters["loc_unconstrained"]
    return loc.numel() <= MAX_SIZE and loc.dim() == posterior.event_dim and loc.is_contiguous()


def _joint(quantity: str, posteriors: list[Posterior]) -> Joint:
    is_rho = not posteriors[0]._pyro_context.active  # where Pyro is at work, it makes scales
    locs = [posterior.read("loc") for posterior in posteriors]
    scales: Any = [
        posterior._parameters["scale_unconstrained"] if is_rho else posterior.read("scale")
        for posterior in posteriors
    ]
    return Joint(quantity, locs, scales, is_rho)
