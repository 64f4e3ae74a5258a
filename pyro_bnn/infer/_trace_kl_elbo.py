"""An ELBO with analytic KL divergences, wherever there are formulas for them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_if_enumerated, check_model_guide_match, check_site_shape
from torch import Tensor

from .._kl_weight import HasKLWeight
from .._recomputation import wait_for_backward
from ..estimators._estimator import small_pair
from ..guides._lists import warn_of_ungrouped
from ._data import check_data
from ._finite import check_finite, check_leaves
from ._kl import add_up, joint_kl
from ._particles import check_particles
from ._sites import Site, integrable, may_have_kl, site_kl


class TraceKL_ELBO(HasKLWeight, Trace_ELBO):
    r"""``Trace_ELBO`` with the KL divergence of each latent site in closed form where there is one.

    .. math:: -\mathrm{ELBO} = -E_q[\log p(D \mid w)] + \beta \sum_{\text{sites}} KL(q \Vert p)

    A site's KL divergence is analytic if ``torch.distributions.kl_divergence`` has a formula for
    its posterior and prior (for mixtures, a bound) and estimated by Monte Carlo otherwise, also
    where a guide that is not mean-field draws sites in another order than the model; in
    expectation the two agree with ``Trace_ELBO``. The densities of weights that a formula
    replaces are never computed.

    Args:
        kl_weight: :math:`\beta \ge 0`, which scales prior and posterior of every latent site
            alike; 1 for the ELBO. May be assigned between steps, for annealing.
        kwargs: arguments of ``pyro.infer.Trace_ELBO`` (``num_particles`` and so on).

    Raises:
        ValueError: if ``kl_weight`` is negative or not finite, or ``num_particles`` not positive;
            in a step whose loss is not finite, before any gradient is taken, naming the sites and
            arguments where that appeared; in the backward pass if a gradient is not finite, before
            a parameter is changed. Losses that are evaluated without gradients may be infinite.
            Under a ``GradScaler``, it skips steps with such gradients itself. At the first call
            with ``vectorize_particles``, if the model has another likelihood than in a loop, or
            cannot run so.

    Example:
        >>> net = BayesianLinear(3, 2)
        >>> elbo = TraceKL_ELBO(num_particles=2)(net, AutoLRT(net))
        >>> bool(elbo(torch.ones(5, 3)) > 0)
        True
    """

    def __init__(self, *, kl_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(self.num_particles, int) or self.num_particles < 1:
            raise ValueError(f"`num_particles` (={self.num_particles}) must be a positive integer")
        self.kl_weight = kl_weight

    def _get_vectorized_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        if self.num_particles > 1:
            vectorized, dim = self._vectorized_num_particles, -self.max_plate_nesting
            check_particles(vectorized, dim, model, guide, args, kwargs)
        return super()._get_vectorized_trace(model, guide, args, kwargs)

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        validate = is_validation_enabled()
        if validate:
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        guide_trace = prune_subsample_sites(guide_trace)
        model_trace = prune_subsample_sites(model_trace)

        latent = {n: s for n, s in model_trace.nodes.items() if _is_latent(s)}
        proposed = {n: s for n, s in guide_trace.nodes.items() if _is_latent(s)}
        if self.kl_weight != 1:
            for site in (*latent.values(), *proposed.values()):
                site["scale"] = self.kl_weight * site["scale"]
        _fill_in_kls([(latent[n], proposed[n]) for n in integrable(latent, proposed)])
        # Both leave alone what has been filled in.
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        if validate:
            check_if_enumerated(guide_trace)
            for trace in (model_trace, guide_trace):
                for site in trace.nodes.values():
                    if site["type"] == "sample":
                        check_site_shape(site, self.max_plate_nesting)
        check_finite(model, model_trace, args, kwargs)
        if torch.is_grad_enabled():
            check_data(model_trace, guide, args, kwargs, self.kl_weight == 1)
            check_leaves(model, model_trace, guide_trace, args, kwargs)
        return model_trace, guide_trace

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Tensor, Tensor]:
        sites: list[Site] = [s for s in model_trace.nodes.values() if s["type"] == "sample"]
        proposed: Any = [s for s in guide_trace.nodes.values() if s["type"] == "sample"]
        if all(is_identically_zero(s["score_parts"].score_function) for s in proposed):
            # Pyro reads the value of each site, and each time the host waits for a GPU.
            entropies = (s["score_parts"].entropy_term for s in proposed)
            terms = [e.sum() for e in entropies if not is_identically_zero(e)]
            surrogate: Any = sum(terms) - sum(s["log_prob_sum"] for s in sites)
            loss = surrogate.detach() if isinstance(surrogate, Tensor) else surrogate
        else:
            loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        if isinstance(surrogate, Tensor) and surrogate.requires_grad:
            wait_for_backward(surrogate, [site["value"] for site in sites])
        return loss, surrogate

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """The loss, as the number that Pyro's ELBOs return, after its backward pass."""
        return torch_item(super().loss_and_grads(model, guide, *args, **kwargs))

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The loss, and its gradient as ``Trace_ELBO`` has it."""
        traces = self._get_traces(model, guide, args, kwargs)
        pairs = itertools.starmap(self._differentiable_loss_particle, traces)
        loss = sum(_with_gradient(*pair) for pair in pairs) / self.num_particles
        warn_of_ungrouped(guide, loss)
        return loss


def _with_gradient(loss: Any, surrogate: Any) -> Any:
    """A loss with the gradient of its surrogate, which is the loss itself if that is a tensor."""
    is_own = isinstance(loss, Tensor) or not isinstance(surrogate, Tensor)
    return surrogate if is_own else loss + (surrogate - surrogate.detach())


def _is_latent(site: Site) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _fill_in_kls(sites: list[tuple[Site, Site]]) -> None:
    """Puts the KL divergences of sites in the places of their densities, if there are formulas.

    Where sites are small, the first of them gets the KL divergence of all.
    """
    small: dict[float, list[tuple[Site, Site, Any]]] = defaultdict(list)
    for model_site, guide_site in sites:
        q, p = guide_site["fn"], model_site["fn"]
        if not may_have_kl(model_site, guide_site):
            continue
        pair, scale = small_pair(q, p), guide_site["scale"]
        if pair is not None and guide_site["mask"] is None and isinstance(scale, (int, float)):
            small[scale].append((model_site, guide_site, pair))
            continue
        kl = site_kl(model_site, guide_site)
        if kl is not None:
            _fill_in(model_site, guide_site, -kl, torch.zeros_like(kl))
    for scale, group in small.items():
        log_prob = -scale_and_mask(add_up(joint_kl(pair for _, _, pair in group)), scale)
        zero = log_prob.new_zeros(())
        for i, (model_site, guide_site, _) in enumerate(group):
            _fill_in(model_site, guide_site, zero if i else log_prob, zero)
            model_site["joint"] = guide_site["fn"]


def _fill_in(model_site: Site, guide_site: Site, log_prob: Tensor, zero: Tensor) -> None:
    for site, value in ((model_site, log_prob), (guide_site, zero)):
        site["log_prob"] = value
        site["log_prob_sum"] = value.sum() if value.dim() else value
    guide_site["score_parts"] = ScoreParts(zero, 0, 0)  # type: ignore[arg-type]
