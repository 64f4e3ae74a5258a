"""All that is used of Pyro beyond its public interface, and why.

No other module imports a private name of Pyro; what subclasses of its classes cannot do without is
listed in :data:`INTERNALS`. With each name goes the public call that would replace it.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from pyro.distributions import constraints
from pyro.infer import Importance, RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.infer.importance import vectorized_importance_weights
from pyro.infer.mcmc.util import initialize_model
from pyro.nn.module import _Context, _make_name, _PyroModuleMeta
from pyro.poutine.messenger import _bound_partial
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# What the modules of a network have in common while it runs: the draws of its sites. A public hook
# at the begin of a run of a PyroModule would replace it.
Context = _Context

# The full name of a site, from those of a module and of its attribute: `f"{prefix}.{name}"`, as
# long as that is what Pyro makes of them.
make_name = _make_name

# The classes that `PyroModule[...]` has made, by the class that each is of. A public way to add
# one, and to ask whether a class is one, would replace it.
MADE_CLASSES: dict[type, type] = _PyroModuleMeta._pyro_mixin_cache

# A method of a model inside a handler, as `poutine.block(model.forward)`; a public way to take
# handlers off a model would replace it.
BoundPartial = _bound_partial

# The handlers that are at work. `pyro.poutine.runtime` tells that there are some, not which.
STACK = _PYRO_STACK

# Who makes importance weights of the densities that are computed, by the code that runs then, and
# who a bound. An argument of `log_prob`, or a handler around the guide, would replace these.
WEIGHTS = {
    Importance._traces.__code__: "Importance",
    vectorized_importance_weights.__code__: "an importance weight",
    RenyiELBO._get_trace.__code__: "RenyiELBO",
}
BOUND = Trace_ELBO._get_trace.__code__

# What runs a model to find its sites, before anything else does. A handler around it would do.
FIRST_RUNS = (initialize_model.__code__, AutoGuide._setup_prototype.__code__)

# The parameters that the store holds, as they are. `dict(store.named_parameters())` would copy all
# of them at every step, and `store.items()` constrain each.
held_parameters = attrgetter("_params")


def put(store: Any, name: str, parameter: Tensor, constraint: constraints.Constraint) -> None:
    """Gives a parameter its name in the store, whoever had it before.

    ``store.setdefault`` keeps the one that is there, and ``store[name] = value`` copies the value.
    """
    _names(store)[parameter] = name
    store._params[name] = parameter
    store._constraints[name] = constraint


def _names(store: Any) -> Any:
    """The store's names by parameter, which keep no parameter alive of a model that is gone.

    Optimizers ask for the name of a parameter long after another model has taken it, so that an
    entry may go with its parameter only.
    """
    names = store._param_to_name
    if not isinstance(names, WeakTensorKeyDictionary):  # also after `clear()` and `scope()`
        names = store._param_to_name = WeakTensorKeyDictionary(names)
    return names


def waiting_states(optimizer: Any) -> dict[Any, Any]:
    """Of an optimizer of ``pyro.optim``: what was loaded for parameters that make no step yet.

    ``get_state()`` leaves it out, so that a run that is saved then could not go on.
    """
    return optimizer._state_waiting_to_be_consumed


#: Attributes of Pyro's classes that a subclass reads or defines, and what would replace each.
INTERNALS = {
    # Of a PyroModule: its place in the network, and what its attributes are made of. The public
    # ways, `getattr` and `setattr`, draw samples, or enter parameters into the global store.
    "_pyro_name": "a public name of a module",
    "_pyro_context": "a public hook at the begin of a run",
    "_pyro_params": "a public mapping from names to constraints",
    "_pyro_samples": "a public mapping from names to priors",
    "_pyro_get_fullname": "a public name of a parameter",
    "_pyro_set_supermodule": "a public hook for a module that becomes part of another",
    # Of a guide, as Pyro's own guides define and read them.
    "_model": "`guide.model`, which lists of guides and pickles leave out",
    "_setup_prototype": "a public hook at the first call of a guide",
    "_prototype_hide_fn": "an argument of the guide",
    "_create_plates": "a public method",
    # Of an ELBO, as Pyro's own define them; of a handler, its methods by kind of statement.
    "_get_trace": "a public hook for the traces of a step",
    "_get_vectorized_trace": "the same",
    "_vectorized_num_particles": "the same",
    "_differentiable_loss_particle": "a public hook for the loss of a particle",
    "_get_traces": "a public iterator over the traces of particles",
    "_pyro_sample": "a public hook for a statement",
    "_mask": "a public attribute of a masked distribution",
    # Set by initialization functions, where reparameterizers may put another value.
    "_pyro_custom_init": "an argument of `init_loc_fn`",
}
