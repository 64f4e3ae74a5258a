"""Predictions of a model with a posterior, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._buffers import unchanged_buffers
from .._threads import PYRO
from ..guides._sites import referred_modules
from ..infer import Predictive
from ..infer._samples import GrownPlates, run
from . import _rng
from ._contexts import evaluating
from ._draws import Draws
from ._inputs import inputs
from ._moments import predictions_of_moments
from ._prediction import Prediction, joined
from ._targets import Targets

Call = tuple[tuple[Any, ...], dict[str, Any]]  #: positional and keyword arguments of a model


def predict(
    model: Callable[..., Any],
    guide: Callable[..., Any] | Mapping[str, Tensor],
    x: Any,
    num_samples: int | None = None,
    *,
    batch_size: int | None = None,
    site: str | None = None,
    parallel: bool | None = None,
    moments: bool = False,
) -> Prediction:
    r"""The posterior predictive distribution of the targets, with the sources of its uncertainty.

    .. math:: p(y \mid x, D) \approx \frac1S \sum_s p(y \mid x, w_s), \quad w_s \sim q

    Rows are processed in batches, all with the same sampled weights. Results are kept, and sampled
    weights if they are small. Model and guide predict in evaluation mode, and are left as they
    were.

    Args:
        model: a Pyro model, such as a :class:`~pyro_bnn.BNN`, that samples the targets at one site
            and is called with ``x`` alone.
        guide: its guide; or samples of its weights by site name, such as those of ``MCMC``.
        x: the inputs: a tensor or array, with the rows in the first dimension; a tuple or
            dictionary of them, for a network with several; or a DataLoader. Of its batches that are
            tuples, the first entry is taken, of dictionaries the entry ``"x"``.
        num_samples: number of sampled networks :math:`S`, 100 by default.
        batch_size: rows to process at once, 128 by default. A DataLoader has its own.
        site: name of the targets; by default ``"obs"``, or the only site that the guide has not.
        parallel: see :class:`~pyro_bnn.infer.Predictive`, which samples.
        moments: whether to propagate mean and variance through the network of a BNN instead of
            sampling weights (:func:`~pyro_bnn.moments`, which says where this is exact). The
            outputs are then approximated by independent Normals, and these by ``num_samples``
            points, 64 by default: ``samples`` are not functions of the inputs.

    Returns:
        A :class:`~pyro_bnn.models.Prediction`.

    Raises:
        TypeError: if ``x`` is none of these, or ``guide`` neither a function nor samples.
        ValueError: if ``num_samples`` or ``batch_size`` is not positive, if there are no rows, or
            the targets' site is unknown.

    Example:
        >>> from pyro_bnn import BNN, fit, likelihoods, predict
        >>> model = BNN(torch.nn.Linear(4, 3), likelihoods.Categorical())
        >>> x, y, guide = torch.ones(5, 4), torch.tensor([0, 1, 2, 1, 0]), AutoLRT(model)
        >>> history = fit(model, guide, (x, y), epochs=10)
        >>> prediction = predict(model, guide, x, num_samples=10)
        >>> prediction.mean.shape, prediction.samples.shape, prediction.epistemic.shape
        (torch.Size([5, 3]), torch.Size([10, 5]), torch.Size([5]))
    """
    given = inputs(model, guide, x, batch_size)
    if moments:
        if site not in (None, "obs") or parallel is not None:
            raise ValueError(
                f"`site` (={site!r}) and `parallel` (={parallel}) are for samples: leave them out "
                "with `moments=True`"
            )
        parts = list(predictions_of_moments(model, guide, given, num_samples))
    else:
        draws = Draws(guide, num_samples)
        calls: Iterator[Call] = (((batch,), {}) for batch in given)
        parts = [part for part, *_ in predictions(model, draws, calls, site, parallel)]
    if not parts:
        raise ValueError("`x` is a DataLoader without batches: give it data")
    return joined(parts)


@torch.no_grad()
def predictions(
    model: Callable[..., Any],
    draws: Draws,
    calls: Iterable[Call],
    site: str | None = None,
    parallel: bool | None = None,
) -> Iterator[tuple[Prediction, Targets, dict[str, Tensor], Call]]:
    """The prediction for each call of a model with its arguments, and what it is made of."""
    modules = [*referred_modules(model, nn.Module), draws.guide]
    targets = None
    for args, kwargs in calls:
        with PYRO, evaluating(*modules), unchanged_buffers():
            draws.prepare(args, kwargs)
            if targets is None:
                targets = _targets(model, draws.names, site, args, kwargs)
            targets.observed = None
            parts = []
            for samples in draws.chunks(args, kwargs):
                predictive = Predictive(
                    targets(model), samples, return_sites=targets.names, parallel=parallel
                )
                parts.append(predictive(*args, **kwargs))
        values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        yield targets.prediction(values), targets, values, (args, kwargs)


def _targets(
    model: Callable[..., Any], drawn: list[str], given: str | None, args: Any, kwargs: Any
) -> Targets:
    """Finds the site of the targets."""
    with _rng.preserved():
        trace = run(GrownPlates()(model), args, kwargs)
    sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and n not in drawn}
    names = list(sites)
    site = (names[0] if len(names) == 1 else "obs") if given is None else given
    if site not in sites:
        raise ValueError(
            f"`site` (={given!r}) must be the site of the targets, one that the model samples and "
            f"`guide` does not: {names}"
        )
    return Targets(site, sites[site])
