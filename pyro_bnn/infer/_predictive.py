"""Posterior predictive samples, many at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample
from torch import Tensor

from .._buffers import unchanged_buffers
from .._threads import PYRO
from ._samples import (
    GrownPlates,
    check_arguments,
    check_names,
    fitted,
    max_plate_nesting,
    run,
    sampler,
)
from ._vectorized import Samples, vectorize
from ._vectorized import Work as _Work

_MAX_ELEMENTS = 2**22  # of a chunk's weights and largest activation, some ten megabytes
_CALLER = 6  # frames from `_predict` to the caller of the module
_TRAINING = (
    "the model is in training mode: its normalization layers use the mean and variance of these "
    "inputs, and not their running statistics, which stay as they are. Call `model.eval()` before "
    "the prediction"
)


class Predictive(pyro.infer.Predictive):
    """``pyro.infer.Predictive`` that runs many samples at once, whatever the network.

    The whole model is vectorised over samples of its weights by ``torch.vmap``, in chunks. Unlike
    Pyro's ``parallel=True``, which adds a plate, this needs no module that takes sample
    dimensions: pooling, ``nn.Linear`` and attention work as they are. Results, keys and shapes are
    those of Pyro's loop over samples.

    Args:
        model: a Pyro model.
        posterior_samples: samples by site name, with samples in the first dimension.
        guide: makes the samples, if they are not given. Weights that are not among the sites to
            return are sampled chunk by chunk, and not kept.
        num_samples: number of samples, if they are not given.
        return_sites: sites to return, ``"_RETURN"`` for what the model returns; by default those
            that are not in ``posterior_samples``, or all with a guide.
        parallel: whether to vectorise. By default, where that is faster (everywhere but on a CPU
            for large networks) and possible: ``torch.vmap`` cannot run a model that looks at values
            of tensors, and a warning says so.
        chunk_size: how many samples to run at once; by default as many as fit in a memory of the
            order of ten megabytes.

    Returns:
        A call with the arguments of the model returns samples by site name. The number of rows may
        exceed the size of the model's data plate. Buffers of the model stay as they were.

    Raises:
        ValueError: if neither samples nor their number are given, if ``num_samples``,
            ``chunk_size`` or the number of samples of a site is not positive, or that number
            differs between sites. In a call, if the samples are of other sites than the model
            has, or of other shapes, and weights would be drawn from their priors; if
            ``return_sites`` are no sites; if ``parallel`` is true and ``torch.vmap`` cannot run
            the model.
        TypeError: if arguments are of other types than these; in a call, if ``"_RETURN"`` is asked
            of a model that returns no tensor.

    Example:
        >>> from pyro.nn import PyroModule
        >>> net = PyroModule[torch.nn.Sequential](BayesianConv2d(1, 4, 3), torch.nn.MaxPool2d(4))
        >>> guide = AutoLRT(net)
        >>> predictive = Predictive(net, guide=guide, num_samples=10, return_sites=["_RETURN"])
        >>> predictive(torch.ones(5, 1, 10, 10))["_RETURN"].shape
        torch.Size([10, 5, 4, 2, 2])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        posterior_samples: dict[str, Tensor] | None = None,
        guide: Callable[..., Any] | None = None,
        num_samples: int | None = None,
        return_sites: Collection[str] | None = (),
        parallel: bool | None = None,
        *,
        chunk_size: int | None = None,
    ) -> None:
        check_arguments(posterior_samples, num_samples, return_sites, chunk_size)
        sites = None if return_sites is None else tuple(return_sites)
        super().__init__(model, posterior_samples, guide, num_samples, sites, parallel)
        self.chunk_size = chunk_size

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        with PYRO, unchanged_buffers():
            return self._predict(args, kwargs)

    def _predict(self, args: Any, kwargs: Any) -> Samples:
        model = GrownPlates()(poutine.mask(self.model, mask=False))
        with _Work() as work:
            prototype = run(InitMessenger(init_to_sample)(model), args, kwargs)
        if work.moves_statistics:
            warnings.warn(_TRAINING, stacklevel=_CALLER)
        dims = self._plate_dims(prototype)

        def predict(samples: Samples) -> Samples:
            trace: Any = poutine.trace(poutine.condition(model, samples)).get_trace(*args, **kwargs)
            return {name: trace.nodes[name]["value"] for name in dims}

        parts: dict[str, list[Tensor]] = {name: [] for name in dims}
        parallel = not work.is_faster_in_a_loop if self.parallel is None else self.parallel
        for samples, size in self._chunks(prototype, work, args, kwargs):
            values = None
            if parallel:
                values = self._vectorized(predict, samples, size)
                parallel = values is not None
            if values is None:
                each = [predict(_at(samples, i)) for i in range(size)]
                values = {name: torch.stack([v[name] for v in each]) for name in dims}
            for name, value in values.items():
                parts[name].append(value)
        values = {name: torch.cat(part) for name, part in parts.items()}
        return {n: x.reshape(len(x), *(1,) * dims[n], *x.shape[1:]) for n, x in values.items()}

    def _vectorized(
        self, predict: Callable[[Samples], Samples], samples: Samples, size: int
    ) -> Samples | None:
        try:
            return vectorize(predict, samples, size)
        except RuntimeError as error:
            limit = error
        predict(_at(samples, 0))  # raises what is wrong with the model itself
        reason = f"`torch.vmap` cannot run this model ({str(limit).splitlines()[0]})"
        if self.parallel:
            raise ValueError(
                f"{reason}: leave `parallel` (=True) to its default, or set it to False"
            ) from limit
        warnings.warn(
            f"{reason}, so that it runs once for each sample: `parallel=False` says that this is "
            "known",
            stacklevel=_CALLER + 1,
        )
        return None

    def _plate_dims(self, prototype: Any) -> dict[str, int]:
        """The sites to return, and how many dimensions of plates each of them lacks."""
        nesting = max_plate_nesting(prototype)
        sites = dict(prototype.iter_stochastic_nodes())
        sites.update((name, prototype.nodes[name]) for name in prototype.observation_nodes)
        chosen = self.return_sites
        unknown = [name for name in chosen or () if name not in sites and name != "_RETURN"]
        if unknown:
            raise ValueError(
                f"`return_sites` has {unknown}, which are not sites of the model: there are "
                f"{[*sites, '_RETURN']}"
            )
        dims = {}
        for name, site in sites.items():
            given = name in self.posterior_samples
            if name in chosen if chosen else chosen is None or self.guide is not None or not given:
                dims[name] = nesting - len(site["fn"].batch_shape)
        if chosen and "_RETURN" in chosen:
            value = prototype.nodes["_RETURN"]["value"]
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"the model returns a {type(value).__name__}, so that `_RETURN` in "
                    "`return_sites` has no shape: let it return a tensor"
                )
            dims["_RETURN"] = 0
        return dims

    def _chunks(
        self, prototype: Any, work: _Work, args: Any, kwargs: Any
    ) -> Iterator[tuple[Samples, int]]:
        """Samples to condition on, and their number."""
        latent = sum(site["value"].numel() for _, site in prototype.iter_stochastic_nodes())
        default = max(1, _MAX_ELEMENTS // max(1, latent + work.largest))
        chunk_size = self.chunk_size or default
        given = self.posterior_samples
        draw = None if self.guide is None else sampler(self.guide, args, kwargs)
        for start in range(0, self.num_samples, chunk_size):
            size = min(chunk_size, self.num_samples - start)
            if draw is None:
                samples = {name: x[start : start + size] for name, x in given.items()}
            else:
                samples = draw(size)
            if start == 0 and (given or draw is not None):
                source = "guide" if draw is not None else "posterior_samples"
                check_names(self.model, prototype, samples, source)
            yield fitted(samples, prototype), size


def _at(samples: Samples, index: int) -> Samples:
    return {name: x[index] for name, x in samples.items()}
