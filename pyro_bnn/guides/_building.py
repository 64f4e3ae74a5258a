"""What a guide learns of its model's sites, and the posteriors that it makes for them."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.autoguide.utils import deep_setattr, helpful_support_errors
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .._parameter_access import parameters_explained
from .._parameter_store import IsolatedContext
from ..distributions._parts import detached
from ..estimators import Flipout
from ..posteriors import ConstrainedPosterior, Posterior
from ..posteriors._normal import is_real
from ._dry_run import dry_run
from ._initialization import default_scale
from ._interaction import Interaction
from ._late import check_no_ddp
from ._no_data import warn_of_no_data
from ._sites import is_handled, may_observe

PosteriorFactory = Callable[..., Posterior]


class Building(Interaction):
    """The first call of a guide, which finds the sites that only a run of the model reveals."""

    _context_of_model: IsolatedContext | None = None

    def _setup_prototype(self: Any, *args: Any, **kwargs: Any) -> None:
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
            with dry_run(), parameters_explained():
                super()._setup_prototype(*args, **kwargs)  # type: ignore[misc]
            trace: Any = self.prototype_trace
            self.prototype_trace = None
        finally:
            self._model = model
        if not trace.observation_nodes and not is_handled(model[0]):  # which may hide them
            warn_of_no_data()
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
        for name in sites:  # parameters with a history can't be copied, nor pickled
            trace.nodes[name]["fn"] = detached(sites[name]["fn"])
        if isinstance(self._pyro_context, IsolatedContext):
            self._pyro_context.claim()
        self.prototype_trace = trace

    # Pyro hides observed sites here too, but they tell whether a run had the data.
    _prototype_hide_fn = staticmethod(lambda msg: msg["type"] != "sample" or site_is_subsample(msg))

    def _drop_unobserved_data(self: Any, trace: Any, suspects: set[str]) -> None:
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

    def _prototype_value(self: Any, suspects: set[str], site: dict[str, Any]) -> Tensor:
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

    def _initial_value(self: Any, site: dict[str, Any]) -> Tensor:
        with helpful_support_errors(site), torch.no_grad():
            value = self.init_loc_fn(site)
        # Detached only if it must be, since Pyro marks values that reparameterizers may replace.
        return value.detach() if value.requires_grad else value

    def _check_sites(self: Any, sites: dict[str, dict[str, Any]]) -> None:
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

    def _check_plates(self: Any, site: dict[str, Any]) -> None:
        for frame in site["cond_indep_stack"]:
            if frame.name in self._network_plates:
                continue
            if self._is_weight(site):
                raise ValueError(
                    f"the weight `{site['name']}` is sampled inside the plate `{frame.name}`: a "
                    f"network for each of its {frame.size} elements, with as many KL divergences. "
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

    def _made(self: Any, site: dict[str, Any], value: Tensor) -> Posterior:
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

    def _is_weight(self: Any, site: dict[str, Any]) -> bool:
        name, fn = site["name"], site["fn"]
        return is_real(fn.support) and (name in self._weights or fn.event_dim > 1)

    def _make(self: Any, site: dict[str, Any], value: Tensor, scale: float | Tensor) -> Posterior:
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

    def _usual_posterior(self: Any, site: dict[str, Any] | None = None) -> PosteriorFactory:
        prior = None if site is None else site["infer"].get("prior")
        estimator = self.estimator
        if estimator is None:
            return self.posterior
        if prior is not None and prior.is_also_transposed and not estimator.supports_transpose:
            estimator = Flipout()
        return partial(self.posterior, estimator=estimator)

    def _override(self: Any, name: str) -> PosteriorFactory | None:
        fits = (p for p in self._overrides if fnmatch.fnmatchcase(name, p))
        return self._overrides.get(next(fits, ""))

    def _attach(self: Any, name: str, posterior: Posterior) -> None:
        deep_setattr(self.posteriors, name, posterior)
        self._by_name[name] = posterior
