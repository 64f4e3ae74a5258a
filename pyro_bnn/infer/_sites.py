"""Which latent sites have KL divergences that may stand for their densities, and these."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ..estimators._estimator import Estimated
from ._kl import analytic_kl

Site: TypeAlias = Any  # a message of Pyro's, which is a dictionary


def integrable(latent: dict[str, Site], proposed: dict[str, Site]) -> list[str]:
    """Sites over which the guide may be integrated, given what it has drawn before.

    The prior of a site may depend on all sites before it in the model. If the guide draws one of
    them later, it may depend on this site, whose KL divergence given the drawn value is then no
    unbiased estimate. The posteriors of weights depend on nothing.
    """
    order = {name: i for i, name in enumerate(proposed)}
    names, last = [], -1
    for name in (name for name in latent if name in order):
        if isinstance(proposed[name]["fn"], Estimated) or order[name] > last:
            names.append(name)
        last = max(last, order[name])
    return names


def may_have_kl(model_site: Site, guide_site: Site) -> bool:
    """Whether a KL divergence, if there is a formula, stands for the densities of a site."""
    q = guide_site["fn"]
    alike = all(_equal(model_site[key], guide_site[key]) for key in ("mask", "scale"))
    # What Pyro registers for a Delta leaves out its density, a Jacobian in Pyro's own guides.
    return alike and q.has_rsample and not isinstance(q, Delta)


def site_kl(model_site: Site, guide_site: Site) -> Tensor | None:
    """The KL divergence of a site by a formula, with scale and mask; None if there is none."""
    q = guide_site["fn"]
    kl = analytic_kl(q, model_site["fn"])
    if kl is None:
        return None
    return scale_and_mask(kl.expand(q.batch_shape), guide_site["scale"], guide_site["mask"])


def _equal(a: Any, b: Any) -> bool:
    """Whether two scales or masks, each a number, a tensor or None, are the same."""
    if a is b or not (isinstance(a, Tensor) or isinstance(b, Tensor)):
        return a is b or a == b
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
