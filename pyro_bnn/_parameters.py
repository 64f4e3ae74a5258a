"""Reads constrained parameters of modules, as Pyro does where it is at work."""

from __future__ import annotations

import weakref
from typing import Any

import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.nn import PyroModule
from pyro.poutine.runtime import effectful
from torch import Tensor
from torch.distributions import transform_to

from ._parameter_store import IsolatedContext

# Compared by type: copies and what is unpickled have constraints of their own.
_REAL, _SOFTPLUS = type(constraints.real), type(constraints.softplus_positive)


def read(module: PyroModule, name: str) -> Tensor:
    """A ``PyroParam`` of a module, at a fraction of the cost of the attribute."""
    context = module._pyro_context
    if context.active and not isinstance(context, IsolatedContext):  # part of another module
        return getattr(module, name)
    constraint, event_dim = module._pyro_params[name]
    raw: Any = module._parameters[name + "_unconstrained"]
    if type(constraint) is _REAL:
        value = raw
    elif type(constraint) is _SOFTPLUS:
        value = F.softplus(raw)  # its transform, without making and looking one up
    else:
        value = transform_to(constraint)(raw)
    if not context.active:
        return value
    # An attribute would be looked up in the parameter store, where the context has just put it.
    value.unconstrained = weakref.ref(raw)
    full_name = module._pyro_get_fullname(name)
    return _statement(full_name, value, constraint=constraint, event_dim=event_dim, name=full_name)


@effectful(type="param")
def _statement(name: str, value: Tensor, **kwargs: Any) -> Tensor:
    """Pyro's statement of a parameter, with its value as the initial one."""
    return value
