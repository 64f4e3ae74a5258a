"""Any torch network, made Bayesian."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.distributions import Distribution

from .._axes import Axes
from ..guides import AutoPosterior
from ..nn._layer import DEFAULT_BIAS_PRIOR, DEFAULT_PRIOR
from ..nn._prior import Prior, Rule
from ..posteriors import Posterior
from ..priors import Pretrained
from ._classes import bayesian_class
from ._obstacles import check_convertible
from ._pyro_modules import join, make_pyro, randomize
from ._weights import Network, Selector, Weight, copied, select, weights

AnyPrior: TypeAlias = Distribution | Rule | Posterior


def bayesianize(
    net: Network,
    prior: AnyPrior | Mapping[str, AnyPrior] | AutoPosterior | None = None,
    bias_prior: AnyPrior | None = None,
    where: Selector | Iterable[Selector] | None = None,
    *,
    inplace: bool = False,
) -> Network:
    """Gives the parameters of a torch network priors, so that it is a Pyro model for any guide.

    Modules keep their identity, attributes, buffers, hooks and modes; only their classes become
    those of :mod:`pyro_bnn.nn` and of ``PyroModule[...]``. What is not converted stays a parameter,
    frozen if it was frozen. Tied weights are one site, with one KL divergence.
    A guide starts at the values that the network had (see ``init_loc_fn`` of
    :class:`~pyro_bnn.guides.AutoPosterior`).

    A network that has priors already gets others where they are given, so that the posteriors of
    one task become the priors of the next by ``bayesianize(net, prior=guide)``.

    Args:
        net: any torch module, on any device, of any floating dtype.
        prior: prior of the weights: a distribution or rule, as for the layers of
            :mod:`pyro_bnn.nn`; a mapping to them from names or patterns (``"encoder.*"``), of which
            the first that fits counts; or a guide, whose posteriors become the priors, by name. For
            modules that are not torch's, rules use the size of ``weight.shape[1:]`` as number of
            inputs.
        bias_prior: likewise for parameters with "bias" in their names.
        where: which parameters; by default all but those of normalisation layers (classes with
            "Norm" in their names) and frozen ones (``requires_grad=False``). One or several of:

            - a class of modules, ``nn.Linear``;
            - a name or pattern of parameters or modules, ``"encoder.*.weight"``;
            - ``"last_layer"``, the last module in order of registration that is no normalisation;
            - a parameter or module itself, ``net.head``;
            - a function of the full name of a parameter and its module.

            Names and modules leave out normalisation layers, unless they match nothing else. Frozen
            parameters are never converted.
        inplace: convert the network itself, not a copy.

    Returns:
        The converted network.

    Raises:
        TypeError: if a module cannot be converted (its path, the reason and the remedy are
            named), if ``where`` has no selector, or a prior is neither a distribution nor a rule.
        ValueError: if there is nothing to convert, ``where`` or a pattern of ``prior`` fits
            nothing, or a prior does not broadcast to its weight.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> list(AutoLRT(bayesianize(net)))
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> list(AutoLRT(bayesianize(net, where="last_layer")))
        ['2.weight', '2.bias']
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"`net` (={type(net).__name__}) must be a torch.nn.Module")
    chosen = select(net, where)
    check_convertible(net, chosen)
    # Priors are made before anything changes, since making them may fail.
    priors = _priors(net, chosen, prior, bias_prior)
    if not inplace:
        net = copied(net)
        named = {weight.name: weight for weight in weights(net)}
        chosen = [named[weight.name] for weight in chosen]
    make_pyro(net, {id(module) for weight in chosen for _, module, _ in weight.places})
    for weight in chosen:
        if weight.name in priors:
            randomize(weight, priors[weight.name])
    join(net)
    return net


def _priors(
    net: nn.Module,
    chosen: list[Weight],
    prior: AnyPrior | Mapping[str, AnyPrior] | AutoPosterior | None,
    bias_prior: AnyPrior | None,
) -> dict[str, Prior]:
    """The new priors by name; none for sites that keep theirs."""
    if bias_prior is not None and not any(weight.is_bias for weight in chosen):
        raise ValueError(f"`bias_prior` (={bias_prior!r}) is given, but no bias is converted")
    rules: Mapping[str, AnyPrior] | None = prior if isinstance(prior, Mapping) else None
    if isinstance(prior, AutoPosterior):
        rules = _posteriors(prior, getattr(net, "_pyro_name", ""), chosen)
    if rules is not None:
        names = [name for weight in chosen for name in weight.names]
        unused = [pattern for pattern in rules if not fnmatch.filter(names, pattern)]
        if unused:
            raise ValueError(
                f"`prior` has {unused}, which fit none of the weights {names}: leave them out of a "
                "mapping from names to priors or to posteriors, `guide[name]`"
            )
    made = {}
    for weight in chosen:
        given: Any = bias_prior if weight.is_bias else prior
        if rules is not None and not (weight.is_bias and bias_prior is not None):
            fits = [p for p in rules if fnmatch.filter(weight.names, p)]
            given = rules[fits[0]] if fits else None
        if given is None and weight.parameter is None:
            continue
        if given is None:
            given = DEFAULT_BIAS_PRIOR if weight.is_bias else DEFAULT_PRIOR
        made[weight.name] = _prior(weight, given)
    return made


def _posteriors(guide: AutoPosterior, prefix: str, chosen: list[Weight]) -> dict[str, Posterior]:
    """The posteriors of a guide under the names that a part of its model gives the weights."""
    start = prefix + "." if prefix else ""
    found = {name.removeprefix(start): guide[name] for name in guide if name.startswith(start)}
    missing = [weight.name for weight in chosen if weight.name not in found]
    if missing:
        raise ValueError(
            f"`prior` is a guide without posteriors for {missing}: leave these out by `where`, "
            "or give a mapping from names to `guide[name]` and other priors"
        )
    return found


def _prior(weight: Weight, given: Any) -> Prior:
    module, key = weight.module, weight.key
    initial: Tensor | None
    like = _tensor(module, key)
    if weight.parameter is not None:
        initial = like
    else:
        initial = getattr(getattr(module, key + "_prior", None), "initial", None)
    if isinstance(given, Pretrained):
        if initial is None:
            raise TypeError(f"`{weight.name}` is a site already, without a trained value")
        given = given.around(initial)
    if isinstance(given, Posterior):
        given, initial = given.as_prior(), given.median()
    sized = _tensor(module, key.replace("bias", "weight"))
    fan_in = bayesian_class(type(module))._fan_in(module, like if sized is None else sized)
    argument = "bias_prior" if weight.is_bias else "prior"
    initial = None if initial is None else initial.clone()
    new = Prior(given, like, fan_in, argument, initial, Axes.of(module, key, like.shape))
    looked_up = {isinstance(m, nn.Embedding) for _, m, _ in weight.places}
    new.is_also_transposed = len(looked_up) > 1
    return new


def _tensor(module: Any, key: str) -> Any:
    """A value of a parameter or site, for its shape, dtype and device."""
    ties = vars(module).get("_ties", {})
    if key in ties:
        return _tensor(*ties[key])
    if key in vars(module).get("_pyro_samples", ()):
        prior = module._pyro_samples[key]
        return (prior if hasattr(prior, "sample") else prior(module)).sample()
    parameter = module._parameters.get(key)
    return None if parameter is None else parameter.detach()
