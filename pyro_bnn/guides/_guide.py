"""The common part of all guides."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from torch import Tensor
from torch.compiler import is_compiling

from .._parameter_store import IsolatedContext, isolated_context
from .._validation import is_checked, nan_arguments
from ..estimators import Estimator
from ..posteriors._posterior import all_positive, check_estimator
from ..posteriors._together import distributions
from ._building import Building, PosteriorFactory
from ._by_name import ByName
from ._initialization import checked_state, init_to_network, init_to_state
from ._late import watched
from ._ranks import is_one_of_several, warn_of_svi
from ._rates import LearningRates
from ._saving import SavedWhole
from ._sites import (
    module_sites,
    own_model_parameters,
)


class AutoPosterior(ByName, SavedWhole, Building, LearningRates, AutoGuide):  # type: ignore[misc]
    r"""Base class of the guides: one :class:`~pyro_bnn.posteriors.Posterior` for each site.

    Latent sites that are attributes of the model's modules (``PyroSample``, and the weights of
    :mod:`pyro_bnn.nn`) get their posteriors when the guide is built. Sites that only a run of
    the model reveals (``pyro.sample`` in a ``forward``, or a model that is a function) get
    mean-field Normals in unconstrained space at the first call, or when a ``state_dict`` that
    holds them is loaded. Sites whose prior has a constraint always do.

    Each posterior is sampled at the model's own site, so that ``TraceMeanField_ELBO`` and
    :class:`~pyro_bnn.infer.TraceKL_ELBO` find the KL divergence from its prior in closed form.

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
        estimator: how outputs are computed from sampled weights, instead of the usual one of the
            class: an instance, such as ``Flipout()``. Posteriors in ``sites`` keep their own.
        sites: other posteriors for some sites, by name or pattern (``"0.*"``): a mapping to a
            posterior class, or to any function that takes ``loc``, ``scale`` and ``event_dim``;
            the first pattern that fits counts.
        plates: names of the plates inside the model that may enclose network weights, which
            means one network for each element. All sites then wait for the first call.
        allow_nan: accept NaN in the arguments of the model, where it masks missing data itself.
        create_plates: as for Pyro's guides.

    Raises:
        TypeError: if ``estimator`` is not an :class:`~pyro_bnn.estimators.Estimator`.
        ValueError: at construction if ``init_scale`` is not positive, ``init_loc_fn`` is a
            ``state_dict`` of another network, or the posteriors of the class do not have the noise
            that ``estimator`` needs; at the first call if the model has no latent sites, a pattern
            in ``sites`` matches none, a weight is sampled inside a plate that is not in ``plates``,
            or the call has no observations although the model passes ``obs``, so that a site may be
            latent or data; at any call if an argument contains NaN.

    Warns:
        UserWarning: at the first call with gradients and several rows if an observed value depends
            on several rows of the output of a layer, and the guide draws noise for each row; see
            :doc:`/posteriors`.
    """

    #: Makes the posterior of a weight from ``loc``, ``scale`` and ``event_dim``.
    posterior: ClassVar[PosteriorFactory]
    #: How outputs are computed from samples; None leaves it to ``posterior``.
    estimator: Estimator | None = None
    _is_told_of_ranks = False

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        init_loc_fn: Callable[[dict[str, Any]], Tensor] | Mapping[str, Tensor] | None = None,
        init_scale: float | Callable[[dict[str, Any], Tensor], float | Tensor] | None = None,
        estimator: Estimator | None = None,
        sites: Mapping[str, PosteriorFactory] | None = None,
        plates: Collection[str] = (),
        allow_nan: bool = False,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if init_scale is not None and not callable(init_scale) and not all_positive(init_scale):
            raise ValueError(f"`init_scale` (={init_scale}) must be positive and finite")
        check_estimator(estimator)
        super().__init__(model, create_plates=create_plates)
        self.init_scale = init_scale
        if estimator is not None:
            self.estimator = estimator
        self.allow_nan = allow_nan
        self._overrides = dict(sites or {})
        self._network_plates = frozenset([plates] if isinstance(plates, str) else plates)
        self._shared = False
        self._is_loaded = False
        self._by_name = {}
        self._weights: set[str] = set()
        self.posteriors = PyroModule()
        isolated_context(self)
        known = list(module_sites(model))
        if isinstance(init_loc_fn, Mapping):
            init_loc_fn = partial(init_to_state, checked_state(init_loc_fn, model, known))
        self.init_loc_fn = init_loc_fn or init_to_network
        for site in known:
            self._weights.add(site["name"])
            if not self._network_plates:
                self._attach(site["name"], self._made(site, self._initial_value(site)))
        own_model_parameters(model)

    @property
    def is_shared(self) -> bool:
        """Whether :meth:`shared_draws` is in force."""
        return self._shared

    @contextmanager
    def shared_draws(self) -> Iterator[None]:
        """Samples one ordinary weight for all data inside the context.

        Flipout gives each example another weight, and local reparameterization samples none, so
        that the density of a sampled weight is not that of the weights used for the data. The ELBO
        is right all the same, since it is linear in the log-likelihoods of the examples.
        Importance weights (``RenyiELBO``, ``psis_diagnostic``, ``Importance``) are products over
        the data and hold for one weight only: compute them inside this context.
        """
        before, self._shared = self._shared, True
        try:
            yield
        finally:
            self._shared = before

    # Sampling.

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples every latent site of the model; takes the arguments of the model.

        Returns:
            The samples by site name.
        """
        self._check_nan(args, kwargs)
        if not self._is_told_of_ranks and is_one_of_several() and not is_compiling():
            self._is_told_of_ranks = warn_of_svi()
        if self.prototype_trace is None:
            with watched(self):
                self._setup_prototype(*args, **kwargs)
        if not self._is_told_of_rows:
            self._check_rows(args, kwargs)
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
        """Raises a ValueError for arguments of the model with NaN, unless they are allowed."""
        if self.allow_nan or torch.jit.is_tracing():
            return
        model = None if self._model is None else self._model[0]
        found = nan_arguments(model, args, kwargs, among=is_checked)
        if found:
            raise ValueError(
                f"NaN in the model's arguments {', '.join(found)}: drop or impute these values, "
                "or pass `allow_nan=True` to the guide if the model masks them"
            )

    # Copying and composing.

    def _pyro_set_supermodule(self, name: str, context: Any) -> None:
        if self.master is not None:  # lists of guides are kept apart as guides are
            isolated_context(self.master())
            context = self.master()._pyro_context
        super()._pyro_set_supermodule(name, context)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(PyroModule.__getstate__(self))
        model = None if self._model is None else self._model[0]
        if isinstance(model, PyroModule) and isinstance(model._pyro_context, IsolatedContext):
            # It knows the model again if that is in the same pickle, and takes it into none.
            state["_context_of_model"] = model._pyro_context
        return state | {"_model": None, "master": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        isolated_context(self)

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
