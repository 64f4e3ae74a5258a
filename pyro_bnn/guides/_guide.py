"""The common part of all guides."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.autoguide.utils import deep_setattr, helpful_support_errors
from pyro.nn import PyroModule
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .._parameter_store import OwnParameters, own_parameters
from .._validation import check_positive, nan_arguments
from ..posteriors import ConstrainedPosterior, Posterior
from ..posteriors._groups import parameter_groups
from ..posteriors._normal import is_real
from ..posteriors._posterior import all_positive
from ..posteriors._together import distributions
from ._dry_run import dry_run
from ._initialization import checked_state, default_scale, init_to_network, init_to_state
from ._late import check_no_ddp, watched
from ._saving import SavedWhole
from ._sites import (
    is_handled,
    may_observe,
    model_parameters,
    module_sites,
    own_model_parameters,
)

PosteriorFactory = Callable[..., Posterior]


class AutoPosterior(SavedWhole, AutoGuide):
    r"""Base class of the guides: one :class:`~pyro_bnn.posteriors.Posterior` for each site.

    Latent sites that are attributes of the model's modules (``PyroSample``, and the weights of
    :mod:`pyro_bnn.nn`) get their posteriors when the guide is built. Sites that only a run of
    the model reveals (``pyro.sample`` in a ``forward``, or a model that is a function) get
    mean-field Normals in unconstrained space at the first call, or when a ``state_dict`` that
    holds them is loaded. Sites whose prior has a constraint always do.

    Each posterior is sampled at the model's own site, so that ``TraceMeanField_ELBO`` and
    :class:`~pyro_bnn.infer.TraceKL_ELBO` find the divergence from its prior in closed form.

    Args:
        model: a Pyro model: a PyroModule, which may be inside handlers such as
            ``poutine.block``, or a function.
        init_loc_fn: initial value of a site: one of Pyro's initialization functions; or the
            ``state_dict`` of a deterministic network, for the weights that are attributes of
            modules. By default, and for what a ``state_dict`` does not have, the value that a
            network had when :func:`~pyro_bnn.bayesianize` converted it, or else
            :func:`init_to_fan_in`.
        init_scale: initial standard deviation of each entry, in unconstrained space; or a function
            of the site and its initial value that returns it, such as :func:`init_to_fraction`. By
            default :math:`0.03 / \sqrt{n}` for a weight with :math:`n` inputs, 0.03 for a bias, and
            0.1 for scalars and for sites whose prior has a constraint; see :doc:`/defaults`.
        sites: other posteriors for some sites, by name or pattern (``"0.*"``): a mapping to a
            posterior class, or to any function that takes ``loc``, ``scale`` and ``event_dim``;
            the first pattern that fits counts.
        plates: names of the plates inside the model that may enclose network weights, which
            means one network for each element. All sites then wait for the first call.
        allow_nan: accept NaN in the arguments of the model, where it masks missing data itself.
        create_plates: as for Pyro's guides.

    Raises:
        ValueError: at construction if ``init_scale`` is not positive, or ``init_loc_fn`` a
            ``state_dict`` of another network; at the first call if the
            model has no latent sites, a pattern in ``sites`` fits none, a weight is sampled
            inside a plate that is not in ``plates``, or the call has no observations although the
            model passes ``obs``, so that a site may be latent or data; at any call if an argument
            has NaN.
    """

    #: Makes the posterior of a weight from ``loc``, ``scale`` and ``event_dim``.
    posterior: ClassVar[PosteriorFactory]
    _is_grouped = False
    _context_of_model: OwnParameters | None = None

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        init_loc_fn: Callable[[dict[str, Any]], Tensor] | Mapping[str, Tensor] | None = None,
        init_scale: float | Callable[[dict[str, Any], Tensor], float | Tensor] | None = None,
        sites: Mapping[str, PosteriorFactory] | None = None,
        plates: Collection[str] = (),
        allow_nan: bool = False,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if init_scale is not None and not callable(init_scale) and not all_positive(init_scale):
            raise ValueError(f"`init_scale` (={init_scale}) must be positive and finite")
        super().__init__(model, create_plates=create_plates)
        self.init_scale = init_scale
        self.allow_nan = allow_nan
        self._overrides = dict(sites or {})
        self._network_plates = frozenset([plates] if isinstance(plates, str) else plates)
        self._shared = False
        self._is_loaded = False
        self._by_name: dict[str, Posterior] = {}  # modules inside `posteriors`
        self._weights: set[str] = set()
        self.posteriors = PyroModule()
        own_parameters(self)
        known = list(module_sites(model))
        if isinstance(init_loc_fn, Mapping):
            init_loc_fn = partial(init_to_state, checked_state(init_loc_fn, model, known))
        self.init_loc_fn = init_loc_fn or init_to_network
        for site in known:
            self._weights.add(site["name"])
            if not self._network_plates:
                self._attach(site["name"], self._made(site, self._initial_value(site)))
        own_model_parameters(model)

    # What the guide knows of its sites.

    def __getitem__(self, name: str) -> Posterior:
        """The posterior of a site."""
        if name not in self._by_name:
            raise KeyError(f"no posterior for `{name}`; there are {list(self._by_name)}")
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        """The names of the sites that have posteriors so far."""
        return iter(self._by_name)

    @property
    def is_shared(self) -> bool:
        """Whether :meth:`shared_draws` is in force."""
        return self._shared

    @contextmanager
    def shared_draws(self) -> Iterator[None]:
        """Draws one ordinary weight for all data while the context is open.

        Flipout gives each example a weight of its own and local reparameterization gives it
        none, so that a density of the sampled weight is not that of the weights that met the
        data. The ELBO does not mind, since it is linear in the log-likelihoods of the examples.
        Importance weights (``RenyiELBO``, ``psis_diagnostic``, ``Importance``) are products over
        the data and hold for one weight only: compute them inside this context.
        """
        before, self._shared = self._shared, True
        try:
            yield
        finally:
            self._shared = before

    # Learning rates.

    def parameter_groups(self, lr: float, scale_lr: float) -> list[dict[str, Any]]:
        r"""The parameters of guide and model in groups for a torch optimizer.

        Scales move by rates apart from all else: :math:`\rho`, of which they are made, has far to
        go where a mean has not.

        Args:
            lr: learning rate of the means, of the other parameters of posteriors, and of the
                model's parameters: those that are deterministic, and those of priors.
            scale_lr: learning rate of the scales of posteriors.

        Returns:
            Groups with ``params`` and ``lr``, which have every trainable parameter of the
            posteriors and of the modules that the model is or refers to, once. Frozen ones
            (``requires_grad=False``) are left out.

        Raises:
            ValueError: if a rate is not positive and finite; if the guide has no posteriors yet,
                or has been unpickled without its model. In the first call of the guide, if it finds
                sites that the groups are missing: call it once before.

        Example:
            >>> net = BayesianLinear(3, 2)
            >>> groups = AutoLRT(net).parameter_groups(lr=1e-2, scale_lr=1e-1)
            >>> optimizer = torch.optim.Adam(groups)
        """
        if not self._by_name:
            raise ValueError(
                "this guide has no posteriors yet, since only a run of the model reveals its "
                "sites: call it once, `guide(*args)`, before `parameter_groups`"
            )
        if self._model is None:
            raise ValueError(
                "this guide was unpickled without its model, whose parameters need an optimizer, "
                f"too: build it by `{type(self).__name__}(model)` and load its `state_dict`"
            )
        parameters = [*self.parameters(), *model_parameters(self._model[0])]
        groups = parameter_groups(parameters, self._by_name.values(), lr, scale_lr)
        self._is_grouped = True
        return groups

    def optim_args(
        self, lr: float, scale_lr: float, **kwargs: Any
    ) -> Callable[[str], dict[str, Any]]:
        """The arguments of a ``pyro.optim`` optimizer for each parameter.

        Args:
            lr, scale_lr: learning rates as for :meth:`parameter_groups`.
            kwargs: other arguments of the optimizer, the same for all parameters.

        Returns:
            A function of a parameter's name in Pyro's store. It knows sites that a later run
            reveals, and parameters by ``pyro.param``, which have the rate ``lr``.

        Raises:
            ValueError: if a rate is not positive and finite.

        Example:
            >>> guide = AutoLRT(BayesianLinear(3, 2))
            >>> optimizer = pyro.optim.Adam(guide.optim_args(lr=1e-2, scale_lr=1e-1))
        """
        check_positive(lr=lr, scale_lr=scale_lr)

        def args(name: str) -> dict[str, Any]:
            scales = {
                posterior._pyro_get_fullname(key)
                for posterior in self._by_name.values()
                for key in posterior.scales()
            }
            return kwargs | {"lr": scale_lr if name in scales else lr}

        return args

    # Sampling.

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples every latent site of the model; takes the arguments of the model.

        Returns:
            The samples by site name.
        """
        if not self.allow_nan and not torch.jit.is_tracing():
            self._check_nan(args, kwargs)
        if self.prototype_trace is None:
            with watched(self):
                self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        prototype: Any = self.prototype_trace
        sites = dict(prototype.iter_stochastic_nodes())
        outside = [name for name, site in sites.items() if not site["cond_indep_stack"]]
        made = distributions(map(self.__getitem__, outside), shared=self._shared)
        found = dict(zip(outside, made, strict=True))
        result = {}
        for name, site in sites.items():
            if name in found:
                result[name] = pyro.sample(name, found[name])
                continue
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                posterior = self[name].distribution(shared=self._shared)
                result[name] = pyro.sample(name, posterior)
        return result

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of each entry of each site: a dictionary by site name."""
        return {name: self[name].median() for name in self}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Tensor | list[float], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of each entry of each site.

        Args:
            quantiles: probabilities, at least one, each in the open interval (0, 1).

        Returns:
            A dictionary from site name to a tensor with ``len(quantiles)`` in front.

        Raises:
            ValueError: if ``quantiles`` is empty, or has other numbers.
            NotImplementedError: if a site has a radial posterior.
        """
        probs = torch.as_tensor(quantiles)
        return {name: self[name].quantiles(probs) for name in self}

    def _check_nan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        model = None if self._model is None else self._model[0]
        found = nan_arguments(model, args, kwargs)
        if found:
            raise ValueError(
                f"NaN in the model's arguments {', '.join(found)}: drop or impute these values, "
                "or pass `allow_nan=True` to the guide if the model masks them"
            )

    # Building.

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        if self._model is None and self._context_of_model is not None:
            root = self._context_of_model.root
            self._model = None if root is None else (root,)
        if self._model is None:
            raise ValueError(
                "this guide was unpickled before its first call, without its model: build it by "
                f"`{type(self).__name__}(model)` and load its `state_dict`"
            )
        model = self._model
        suspects: set[str] = set()
        self._model = (InitMessenger(partial(self._prototype_value, suspects))(model[0]),)
        try:
            with dry_run():
                super()._setup_prototype(*args, **kwargs)
            trace: Any = self.prototype_trace
            self.prototype_trace = None
        finally:
            self._model = model
        self._drop_unobserved_data(trace, suspects)
        sites = dict(trace.iter_stochastic_nodes())
        self._check_sites(sites)
        new = {n: self._made(s, s["value"]) for n, s in sites.items() if n not in self._by_name}
        if new and self._is_grouped:
            raise ValueError(
                "`parameter_groups` was called before the first call of the guide, which finds "
                f"further sites, {list(new)}, whose parameters no optimizer would have: call the "
                "guide once, then `parameter_groups`"
            )
        check_no_ddp(self, new)
        for name in sites.keys() - new.keys():
            self[name].adapt(sites[name]["fn"])
        for name, posterior in new.items():
            self._attach(name, posterior)
        for name in list(trace.nodes):
            if name not in sites:  # these nodes hold the data
                trace.remove_node(name)
        if isinstance(self._pyro_context, OwnParameters):
            self._pyro_context.claim()
        self.prototype_trace = trace

    # Pyro hides observed sites here too, but they tell whether a run had the data.
    _prototype_hide_fn = staticmethod(lambda msg: msg["type"] != "sample" or site_is_subsample(msg))

    def _drop_unobserved_data(self, trace: Any, suspects: set[str]) -> None:
        """Leaves out what a first call without data would take for latent variables."""
        new = [name for name, _ in trace.iter_stochastic_nodes() if name not in self._by_name]
        if trace.observation_nodes or is_handled(self._model[0]):
            return
        if self._is_loaded:
            for name in new:  # what was saved had no posterior for it: it is to be predicted
                trace.remove_node(name)
            return
        unclear = [name for name in new if name in suspects]
        if unclear:
            raise ValueError(
                f"the first call of this guide observes nothing, so that {unclear} may be latent "
                "variables or the data, since `obs` is None in their `pyro.sample`: call it once "
                "with the observations, or load a state_dict"
            )

    def _prototype_value(self, suspects: set[str], site: dict[str, Any]) -> Tensor:
        name = site["name"]
        if may_observe():
            suspects.add(name)
        if self._is_loaded and name not in self._by_name and name not in self._weights:
            return site["fn"].sample()  # most likely data, to be predicted
        self._check_plates(site)  # here, since the run may not get past the network
        if name in self._by_name and self[name].is_complete:
            median = self[name].median()
            if median.shape == site["fn"].shape():  # it covers all of a subsampled plate
                return median
        return self._initial_value(site)

    def _initial_value(self, site: dict[str, Any]) -> Tensor:
        with helpful_support_errors(site), torch.no_grad():
            value = self.init_loc_fn(site)
        # Detached only if it must be, since Pyro marks values that reparameterizers may replace.
        return value.detach() if value.requires_grad else value

    def _check_sites(self, sites: dict[str, dict[str, Any]]) -> None:
        if not sites:
            raise ValueError(
                "the model has no latent sites: give its weights priors, say by "
                "`pyro_bnn.nn.BayesianLinear` or `PyroSample`"
            )
        unused = [p for p in self._overrides if not fnmatch.filter(sites, p)]
        unread = [name for name in self._by_name if name not in sites]
        if unread:
            warnings.warn(
                f"the first run of the model did not sample {unread}, so that they will not be "
                "trained",
                stacklevel=2,
            )
        if unused:
            raise ValueError(f"`sites` has patterns {unused} that fit none of {list(sites)}")

    def _check_plates(self, site: dict[str, Any]) -> None:
        for frame in site["cond_indep_stack"]:
            if frame.name in self._network_plates:
                continue
            if self._is_weight(site):
                raise ValueError(
                    f"the weight `{site['name']}` is sampled inside the plate `{frame.name}`: a "
                    f"network for each of its {frame.size} elements, with as many divergences. "
                    "Call the network before the plate is entered; or, if one network for each "
                    f"element is meant, pass `plates=['{frame.name}']` to the guide"
                )
            if site["name"] in self._weights:
                raise ValueError(
                    f"the attribute `{site['name']}` is first read inside the plate "
                    f"`{frame.name}`, where each of its {frame.size} elements gets a value of its "
                    "own. Read it before the plate is entered; or, if that is meant, pass "
                    f"`plates=['{frame.name}']` to the guide"
                )

    def _made(self, site: dict[str, Any], value: Tensor) -> Posterior:
        fn = site["fn"]
        for frame in site["cond_indep_stack"]:
            full = frame.full_size or frame.size
            if full != frame.size:  # a subsampled plate needs parameters for all of it
                dim = frame.dim - fn.event_dim
                index = torch.arange(full, device=value.device) % frame.size
                value = value.index_select(dim, index)
        scale: Any = default_scale(site) if self.init_scale is None else self.init_scale
        scale = scale(site, value) if callable(scale) else scale
        with helpful_support_errors(site):
            return self._make(site, value, scale)

    def _is_weight(self, site: dict[str, Any]) -> bool:
        name, fn = site["name"], site["fn"]
        return is_real(fn.support) and (name in self._weights or fn.event_dim > 1)

    def _make(self, site: dict[str, Any], value: Tensor, scale: float | Tensor) -> Posterior:
        name, fn = site["name"], site["fn"]
        override = self._override(name)
        if override is not None:
            if not is_real(fn.support):
                raise ValueError(
                    f"`sites` names `{name}`, whose prior has the constraint {fn.support}: only "
                    "sites of real numbers have a choice of posterior"
                )
            return override(value, scale, event_dim=fn.event_dim)
        if self._is_weight(site):
            return self._usual_posterior(site)(value, scale, event_dim=fn.event_dim)
        return ConstrainedPosterior(value, scale, fn.event_dim, support=fn.support)

    def _usual_posterior(self, site: dict[str, Any]) -> PosteriorFactory:
        return self.posterior

    def _override(self, name: str) -> PosteriorFactory | None:
        fits = (p for p in self._overrides if fnmatch.fnmatchcase(name, p))
        return self._overrides.get(next(fits, ""))

    def _attach(self, name: str, posterior: Posterior) -> None:
        deep_setattr(self.posteriors, name, posterior)
        self._by_name[name] = posterior

    # Copying and composing.

    def _pyro_set_supermodule(self, name: str, context: Any) -> None:
        if self.master is not None:  # lists of guides are kept apart as guides are
            own_parameters(self.master())
            context = self.master()._pyro_context
        super()._pyro_set_supermodule(name, context)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(PyroModule.__getstate__(self))
        model = None if self._model is None else self._model[0]
        if isinstance(model, PyroModule) and isinstance(model._pyro_context, OwnParameters):
            # It knows the model again if that is in the same pickle, and takes it into none.
            state["_context_of_model"] = model._pyro_context
        return state | {"_model": None, "master": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        own_parameters(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoPosterior:
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        if self._model is not None:
            # A copy keeps its model, or takes the copy of it if both are copied together.
            model = self._model[0]
            new._model = (memo.get(id(model), model),)
            own_model_parameters(new._model[0])
        return new
