"""The weights of a network, shared ones once, and which of them are meant."""

from __future__ import annotations

import copy
import copyreg
import fnmatch
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from torch import Tensor, nn

from .._bound import kept, rebound
from ..guides._sites import samples_of
from ..nn._prior import Prior

Network = TypeVar("Network", bound=nn.Module)
Selector: TypeAlias = str | type[nn.Module] | nn.Module | Tensor | Callable[[str, nn.Module], bool]

# Torch has no common base class of these, and model libraries write their own.
_NORMALISATION = re.compile("Norm(?![a-z])")


@dataclass
class Weight:
    """A parameter, or a site that was one, with all the places that it has in a network.

    Attributes:
        name: its full name, in the first place.
        places: path of the module, module and attribute, of each place; a module that is in the
            network several times has as many.
        parameter: None for a site.
    """

    name: str
    places: list[tuple[str, nn.Module, str]] = field(default_factory=list)
    parameter: Tensor | None = None

    @property
    def module(self) -> nn.Module:
        return self.places[0][1]

    @property
    def key(self) -> str:
        return self.places[0][2]

    @property
    def is_bias(self) -> bool:
        return "bias" in self.key

    @property
    def is_frozen(self) -> bool:
        return self.parameter is not None and not self.parameter.requires_grad

    @property
    def is_normalisation(self) -> bool:
        return all(is_normalisation(module) for _, module, _ in self.places)

    @property
    def names(self) -> list[str]:
        return [full_name(path, key) for path, _, key in self.places]


def copied(net: Network, memo: dict[int, Any] | None = None) -> Network:
    """A deep copy, also of networks with tensors that torch refuses to copy.

    These are weights that hooks have computed, as those of ``torch.nn.utils.weight_norm`` do.
    """
    memo = {} if memo is None else memo
    given = set(memo)
    for module in net.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    new = copy.deepcopy(net, memo)
    for module in net.modules():  # whose state, in torch, is what is in its `__dict__`
        for name in copyreg._slotnames(type(module)):  # type: ignore[attr-defined]
            if hasattr(module, name) and not hasattr(memo[id(module)], name):
                setattr(memo[id(module)], name, copy.deepcopy(getattr(module, name), memo))
        for name, value in kept(module).items():
            if id(value) not in given:  # closures are not copied, and would use the given modules
                memo[id(module)].__dict__[name] = rebound(value, lambda x: memo.get(id(x), x))
    return new


def full_name(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def is_normalisation(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, as the name of its class tells."""
    return bool(_NORMALISATION.search(type(module).__name__))


def weights(net: nn.Module) -> list[Weight]:
    """The parameters and sites of a network, in order of registration.

    The parameters of priors, and those that Pyro constrains, are none.
    """
    found: dict[Any, Weight] = {}
    ties = []
    for path, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, Prior):
            continue
        own = vars(module)
        ties += [(path, module, key, *tie) for key, tie in own.get("_ties", {}).items()]
        attributes: dict[str, Tensor | None] = {
            key: parameter
            for key, parameter in module._parameters.items()
            if parameter is not None
            and key.removesuffix("_unconstrained") not in own.get("_pyro_params", ())
        }
        attributes |= {key: None for key, _ in samples_of(module)}
        for key, parameter in attributes.items():
            name = full_name(path, key)
            identity = (id(module), key) if parameter is None else id(parameter)
            weight = found.setdefault(identity, Weight(name, [], parameter))
            weight.places.append((path, module, key))
    sites = {(id(w.module), w.key): w for w in found.values()}
    for path, module, key, owner, own_key in ties:
        sites[id(owner), own_key].places.append((path, module, key))
    return list(found.values())


def select(net: nn.Module, where: Selector | Iterable[Selector] | None) -> list[Weight]:
    """The weights that ``where`` means; see :func:`~pyro_bnn.bayesianize`.

    Raises:
        TypeError: if ``where`` is, or contains, no selector.
        ValueError: if a selector means nothing, or there is nothing to select.
    """
    candidates = weights(net)
    if where is None:
        usual = [w for w in candidates if not w.is_frozen and not w.is_normalisation]
        if not usual:
            raise ValueError(
                f"`net` has no parameters to convert, only {_listed(candidates)}, which are frozen "
                "or those of normalisation layers: name some by `where`, or unfreeze them"
            )
        return usual
    several = isinstance(where, Iterable) and not isinstance(where, (str, nn.Module, Tensor))
    selectors: list[Any] = list(where) if several else [where]  # type: ignore[arg-type]
    if not selectors:
        raise TypeError(
            f"`where` (={where!r}) has no selector: name what is to be converted, or give None for "
            "all but normalisation layers"
        )
    chosen: set[int] = set()
    for selector in selectors:
        fits = [w for w in candidates if _fits(selector, w)]
        if not fits and isinstance(selector, str) and selector == "last_layer":
            fits = _last_layer(net, candidates)
        if not fits:
            raise ValueError(
                f"`where` has {_described(selector)}, which fits none of the parameters "
                f"{_listed(candidates)}"
            )
        if isinstance(selector, (str, nn.Module)):
            fits = [w for w in fits if not w.is_normalisation] or fits
        trainable = [w for w in fits if not w.is_frozen]
        if not trainable:
            raise ValueError(
                f"`where` has {_described(selector)}, which fits only parameters that are frozen, "
                f"{_listed(fits)}: call `requires_grad_()` on them first"
            )
        chosen |= {id(w) for w in trainable}
    return [w for w in candidates if id(w) in chosen]


def _fits(selector: Any, weight: Weight) -> bool:
    if isinstance(selector, str):
        fits = lambda name: (
            name.startswith(selector + ".")
            or fnmatch.fnmatchcase(name, selector)
            or fnmatch.fnmatchcase(name, selector + ".*")
        )
        return any(fits(name) for name in weight.names)
    if isinstance(selector, Tensor):
        return weight.parameter is selector
    modules = [module for _, module, _ in weight.places]
    if isinstance(selector, nn.Module):
        inside = {id(m) for m in selector.modules()}
        return any(id(m) in inside for m in modules)
    if isinstance(selector, type) and issubclass(selector, nn.Module):
        return any(isinstance(m, selector) for m in modules)
    if callable(selector) and not isinstance(selector, type):
        return any(selector(name, m) for name, m in zip(weight.names, modules, strict=True))
    raise TypeError(
        f"`where` has {_described(selector)}: give a class of modules, a name or pattern, a "
        'parameter, a module, "last_layer", or a function of name and module'
    )


def _last_layer(net: nn.Module, candidates: list[Weight]) -> list[Weight]:
    of_module: dict[int, list[Weight]] = {}
    for weight in candidates:
        for _, module, _ in weight.places:
            of_module.setdefault(id(module), []).append(weight)
    usual = (m for m in net.modules() if id(m) in of_module and not is_normalisation(m))
    last = deque(usual, maxlen=1)
    return of_module[id(last[0])] if last else []


def _described(selector: Any) -> str:
    return repr(selector) if not isinstance(selector, Tensor) else "a tensor"


def _listed(weights: list[Weight], most: int = 8) -> str:
    names = [w.name for w in weights]
    return str(names[:most])[:-1] + (", ...]" if len(names) > most else "]")
