"""What a trained posterior is worth: its bound, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor
from torch.distributions import Normal

from .._buffers import unchanged_buffers
from .._tensors import map_tensors
from ..distributions import GroupedNormal
from ..distributions._normal import innermost
from ..guides import AutoPosterior
from ..guides._sites import model_parameters
from ..kernels import entry_kl
from ..posteriors import ConstrainedPosterior
from ..posteriors._pruned import Pruned
from ._constant import constant_log_likelihood
from ._data import arguments
from ._diagnosis import Diagnosis
from ._draw import draw, likelihood, trace
from ._samples import check_count

_COLLAPSED = 0.01  # nats: an entry that has learned less equals its prior
_WINDOW = 1000  # steps
_PROBS = (0.05, 0.25, 0.5, 0.75, 0.95)


def diagnose(
    model: Callable[..., Any],
    guide: AutoPosterior,
    data: Sequence[Any] | Mapping[str, Any],
    *,
    losses: Sequence[float] | None = None,
    num_samples: int = 200,
) -> Diagnosis:
    r"""Evaluates the ELBO of a trained posterior, its terms, and how good the posterior is.

    With :math:`S` shared samples :math:`w_s` of the posterior,

    .. math:: w_s \sim q, \quad
        \mathrm{IW} = \log \frac1S \sum_s \frac{p(D, w_s)}{q(w_s)}
        \ge \mathrm{ELBO} = E_q[\log p(D \mid w)] - KL(q \Vert p).

    Args:
        model: the model.
        guide: its guide, trained; put the model into ``eval()`` first, if it has dropout or batch
            normalisation.
        data: the arguments of the model, a tuple ``(x, y)``, or a dictionary of its keywords; of
            all data or, where a plate scales them, of a batch that stands for them.
        losses: the losses of training, in nats of all data, one for each step.
        num_samples: number of samples :math:`S`, at least 25.

    Returns:
        A :class:`Diagnosis`.

    Raises:
        TypeError: if ``guide`` is not a guide of :mod:`pyro_bnn.guides`, ``data`` no tuple, list or
            dictionary, or ``losses`` no numbers.
        ValueError: if ``num_samples`` is below 25, the model observes nothing, or ``losses`` are
            too few or not finite.

    References:
        Burda, Grosse and Salakhutdinov (2016), "Importance weighted autoencoders",
        arXiv:1509.00519; Yao, Vehtari, Simpson and Gelman (2018), "Yes, but did it work?",
        arXiv:1802.02538.
    """
    if not isinstance(guide, AutoPosterior):
        raise TypeError(f"`guide` (={type(guide).__name__}) must be one of pyro_bnn.guides")
    check_count("num_samples", num_samples)
    if num_samples < 25:
        raise ValueError(f"`num_samples` (={num_samples}) must be at least 25, for a tail index")
    if not isinstance(data, (tuple, list, Mapping)):
        raise TypeError(
            f"`data` (={type(data).__name__}) must be the arguments of the model, in a tuple "
            "`(x, y)` or a dictionary; of a DataLoader, give a batch, `next(iter(loader))`"
        )
    batch, moved = arguments(data), _moved(losses)
    with unchanged_buffers():
        with _differentiated(model, guide):
            first, sites, observed = draw(model, guide, _outside_of_inference(batch))
        with torch.no_grad():
            draws = [first, *(draw(model, guide, batch)[0] for _ in range(num_samples - 1))]
    likelihoods: dict[str, list[float]] = {}
    for one in draws:
        for name, value in one.likelihood.items():
            likelihoods.setdefault(name, []).append(value)
    if not likelihoods:
        raise ValueError(
            "the model observes nothing with these `data`: give all of its arguments, the "
            "targets included"
        )
    terms = _doubles(sum(d.likelihood.values()) - sum(d.kl.values()) for d in draws)
    kl = {name: _mean(d.kl[name] for d in draws) for name in first.kl}
    log_weights = _doubles(sum(d.likelihood.values()) - sum(d.ratio.values()) for d in draws)
    with unchanged_buffers(), torch.no_grad():
        before = [likelihood(model, batch) for _ in range(25)]
        noisy = lambda: poutine.replay(model, trace=trace(guide, batch))
        in_training = _doubles(sum(likelihood(noisy(), batch).values()) for _ in range(25))
    prior = {name: _mean(one[name] for one in before) for name in observed}
    best = {n: constant_log_likelihood(site) for n, site in observed.items()}
    constant = sum(prior[n] if value is None else value for n, value in best.items())
    return Diagnosis(
        num_data=_num_data(observed),
        elbo=terms.mean().item(),
        elbo_error=terms.std().item() / math.sqrt(num_samples),
        objective=in_training.mean().item() - sum(kl.values()),
        objective_error=in_training.std().item() / math.sqrt(len(in_training)),
        trivial=max(sum(prior.values()), constant),
        likelihood={name: _mean(values) for name, values in likelihoods.items()},
        kl=kl,
        collapsed=_collapsed(sites),
        signal_to_noise=_signal_to_noise(guide),
        importance_bound=(log_weights.logsumexp(0) - math.log(num_samples)).item(),
        khat=_tail_index(log_weights),
        moved=moved,
        num_samples=num_samples,
        _sizes={name: p.shape().numel() for name, (_, p) in sites.items()},
    )


@contextmanager
def _differentiated(model: Callable[..., Any], guide: AutoPosterior) -> Iterator[None]:
    """Lets all parameters have gradients, which tell whether a noise is learned."""
    frozen = [p for p in (*guide.parameters(), *model_parameters(model)) if not p.requires_grad]
    with torch.inference_mode(False), torch.enable_grad():
        for parameter in frozen:
            parameter.requires_grad_(parameter.is_floating_point())
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)


def _outside_of_inference(batch: Any) -> Any:
    """Tensors made in inference mode may have no part in what has gradients, but copies may."""
    is_bound = lambda x: isinstance(x, Tensor) and x.is_inference()
    return map_tensors(lambda x: x.clone() if is_bound(x) else x, batch)


def _num_data(observed: dict[str, dict[str, Any]]) -> int:
    return max(
        round(float(torch.as_tensor(s["scale"]).double().mean()) * s["fn"].batch_shape.numel())
        for s in observed.values()
    )


@torch.no_grad()
def _collapsed(sites: dict[str, tuple[Any, Any]]) -> dict[str, float]:
    result = {}
    for name, (q, p) in sites.items():
        kept = q.kept if isinstance(q, Pruned) else None
        posterior: Any = innermost(q if kept is None else q.full)
        prior: Any = p.entries if isinstance(p, GroupedNormal) else innermost(p)
        normals = isinstance(posterior, Normal) and isinstance(prior, Normal)
        if normals and posterior.batch_shape == p.shape():
            kl = entry_kl(posterior.loc, posterior.scale, prior.loc, prior.scale)
            kl = kl.reshape(-1) if kept is None else kl[kept]
            if kl.numel():
                result[name] = (kl < _COLLAPSED).double().mean().item()
    return result


def _signal_to_noise(guide: AutoPosterior) -> dict[str, list[float]]:
    """Of what has a scale where it has a mean: in unconstrained space, 0 is no special value."""
    result = {}
    for name in guide:
        posterior = guide[name]
        if isinstance(posterior, ConstrainedPosterior):
            continue
        ratio = posterior.signal_to_noise().double().reshape(-1)
        ratio = ratio if posterior.kept is None else ratio[posterior.kept.reshape(-1)]
        if ratio.numel():
            probs = torch.tensor(_PROBS, dtype=ratio.dtype, device=ratio.device)
            result[name] = torch.quantile(ratio[: 1 << 23], probs).tolist()
    return result


def _tail_index(log_weights: Tensor) -> float:
    """The shape of a generalized Pareto distribution that is fitted to the largest weights."""
    weights = (log_weights - log_weights.max()).sort().values
    tail = math.ceil(min(0.2 * len(weights), 3 * math.sqrt(len(weights))))
    cutoff = weights[-tail - 1].clamp_min(math.log(1e-300))
    if weights[-1] - cutoff < 1e-3:
        return -math.inf  # all weights are alike, up to rounding
    largest = weights[weights > cutoff].exp() - cutoff.exp()
    if len(largest) < 5:  # a handful of draws has all of the weight
        return math.inf
    return float(fit_generalized_pareto(largest)[0])


def _moved(losses: Sequence[float] | None) -> float | None:
    """How much higher the bound is over the last 100 steps than it was 1,000 steps before."""
    if losses is None:
        return None
    try:
        values = torch.as_tensor(list(losses), dtype=torch.double)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`losses` must be a sequence of numbers, one for each step ({error})"
        ) from None
    if len(values) < _WINDOW + 100:
        raise ValueError(
            f"`losses` has {len(values)} entries; the bound of the last 1,000 steps needs 1,100"
        )
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).nonzero()[0])
        raise ValueError(f"`losses[{bad}]` (={values[bad]}) must be finite: leave it out")
    return (values[-_WINDOW - 100 : -_WINDOW].mean() - values[-100:].mean()).item()


def _doubles(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.double)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
