"""Posterior predictive samples, many at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..estimators._draw import RECURRENT, plain, recurrent
from ..guides import AutoPosterior

_PLATE = "_num_predictive_samples"
_MAX_ELEMENTS = 2**22  # of a chunk's weights and largest activation, some ten megabytes
# Networks with larger activations or weights leave a CPU no time to spare for vectorisation to
# save, recurrent ones sooner: benchmarks/predictive.py measures where they break even.
_MAX_VECTORIZED, _MAX_VECTORIZED_RECURRENT = 2**15, 2**13


class Predictive(pyro.infer.Predictive):
    """``pyro.infer.Predictive`` that runs many samples at once, whatever the network.

    The whole model is vectorised over samples of its weights by ``torch.vmap``, in chunks. Unlike
    Pyro's ``parallel=True``, which adds a plate, this needs no module that takes sample
    dimensions: pooling, ``nn.Linear`` and attention work as they are. Results, keys and shapes are
    those of Pyro's loop over samples.

    Args:
        model: a Pyro model.
        posterior_samples: samples by site name, with samples in the first dimension.
        guide: draws the samples, if they are not given. Weights that are not among the sites to
            return are drawn chunk by chunk, and forgotten.
        num_samples: number of samples, if they are not given.
        return_sites: sites to return, ``"_RETURN"`` for what the model returns; by default those
            that are not in ``posterior_samples``, or all with a guide.
        parallel: whether to vectorise. By default, where that is faster (everywhere but on a CPU
            for large networks) and possible (``torch.vmap`` cannot run a model that looks at values
            of tensors, or changes its own buffers, as batch normalisation does in training).
        chunk_size: how many samples to run at once; by default as many as fit in a memory of the
            order of ten megabytes.

    Returns:
        From a call with the arguments of the model: samples by site name.

    Raises:
        ValueError: if neither samples nor their number are given, if ``chunk_size`` is not
            positive; in a call, if ``parallel`` is true and ``torch.vmap`` cannot run the model.
        TypeError: in a call, if ``"_RETURN"`` is asked of a model that returns no tensor.

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
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"`chunk_size` (={chunk_size}) must be positive")
        super().__init__(model, posterior_samples, guide, num_samples, return_sites, parallel)
        self.chunk_size = chunk_size

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        model = poutine.mask(self.model, mask=False)
        with _Work() as work:
            prototype = _run(InitMessenger(init_to_sample)(model), args, kwargs)
        shapes = self._shapes(prototype)

        def predict(samples: dict[str, Tensor]) -> dict[str, Tensor]:
            trace: Any = poutine.trace(poutine.condition(model, samples)).get_trace(*args, **kwargs)
            return {name: trace.nodes[name]["value"] for name in shapes}

        parts: dict[str, list[Tensor]] = {name: [] for name in shapes}
        parallel = not work.is_faster_in_a_loop if self.parallel is None else self.parallel
        for samples, size in self._chunks(prototype, work, args, kwargs):
            values = None
            if parallel:
                values = self._vectorized(predict, samples, size)
                parallel = values is not None
            if values is None:
                each = [predict({n: x[i] for n, x in samples.items()}) for i in range(size)]
                values = {name: torch.stack([v[name] for v in each]) for name in shapes}
            for name, value in values.items():
                parts[name].append(value)
        return {n: torch.cat(parts[n]).reshape(-1, *shape) for n, shape in shapes.items()}

    def _vectorized(
        self, predict: Callable[[dict[str, Tensor]], dict[str, Tensor]], samples: Any, size: int
    ) -> dict[str, Tensor] | None:
        def one(zero: Tensor, samples: dict[str, Tensor]) -> dict[str, Tensor]:
            with _Batched(zero):
                return predict(samples)

        try:
            # Checks of values cannot run in there.
            with pyro.validation_enabled(False), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                return torch.vmap(one, randomness="different")(torch.zeros(size), samples)
        except Exception as error:
            if self.parallel:
                raise ValueError(
                    f"`torch.vmap` cannot run this model ({error}): leave `parallel` (=True) to "
                    "its default, or set it to False"
                ) from error
            return None

    def _shapes(self, prototype: Any) -> dict[str, torch.Size]:
        """The shape of one sample of each site to return."""
        nesting = _max_plate_nesting(prototype)
        sites = dict(prototype.iter_stochastic_nodes())
        sites.update((name, prototype.nodes[name]) for name in prototype.observation_nodes)
        chosen = self.return_sites
        shapes = {}
        for name, site in sites.items():
            given = name in self.posterior_samples
            if name in chosen if chosen else chosen is None or self.guide is not None or not given:
                missing = nesting - len(site["fn"].batch_shape)
                shapes[name] = torch.Size((1,) * missing) + site["value"].shape
        if chosen and "_RETURN" in chosen:
            value = prototype.nodes["_RETURN"]["value"]
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"the model returns a {type(value).__name__}, so that `_RETURN` in "
                    "`return_sites` has no shape: let it return a tensor"
                )
            shapes["_RETURN"] = value.shape
        return shapes

    def _chunks(
        self, prototype: Any, work: _Work, args: Any, kwargs: Any
    ) -> Iterator[tuple[dict[str, Tensor], int]]:
        """Samples to condition on, and their number."""
        latent = sum(site["value"].numel() for _, site in prototype.iter_stochastic_nodes())
        default = max(1, _MAX_ELEMENTS // max(1, latent + work.largest))
        chunk_size = self.chunk_size or default
        draw = None if self.guide is None else _sampler(self.guide, args, kwargs)
        for start in range(0, self.num_samples, chunk_size):
            size = min(chunk_size, self.num_samples - start)
            if draw is not None:
                yield draw(size), size
                continue
            chunk = {name: x[start : start + size] for name, x in self.posterior_samples.items()}
            for name, x in chunk.items():  # as returned, they have dimensions for plates
                if name in prototype.nodes:
                    shape = prototype.nodes[name]["value"].shape
                    chunk[name] = x.reshape(size, *shape) if x[0].numel() == shape.numel() else x
            yield chunk, size


class _Batched(TorchFunctionMode):
    """Helps ``torch.vmap`` where it cannot help itself.

    Distributions fill an empty tensor with random numbers, which are to differ between samples;
    torch's recurrent networks have no rule.

    Args:
        zero: one for each sample.
    """

    def __init__(self, zero: Tensor) -> None:
        super().__init__()
        self.zero = zero

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in RECURRENT:
            return recurrent(func, *args)
        result = func(*args, **(kwargs or {}))
        if func in (torch.empty, Tensor.new):
            return result + self.zero.to(result)
        return result


class _Work(TorchFunctionMode):
    """Watches a run: its largest tensor, and the limit above which a CPU has no time to spare."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.limit = math.inf

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        output = result[0] if func in RECURRENT else result
        if isinstance(output, Tensor):
            self.largest = max(self.largest, output.numel())
            if output.is_cpu:
                own = _MAX_VECTORIZED_RECURRENT if func in RECURRENT else _MAX_VECTORIZED
                self.limit = min(self.limit, own)
        return result

    @property
    def is_faster_in_a_loop(self) -> bool:
        return self.largest > self.limit


def _run(model: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with poutine.block():
        return prune_subsample_sites(poutine.trace(model).get_trace(*args, **kwargs))


def _max_plate_nesting(trace: Any) -> int:
    frames = [
        f for s in trace.nodes.values() if s["type"] == "sample" for f in s["cond_indep_stack"]
    ]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


def _sampler(
    guide: Callable[..., Any], args: Any, kwargs: Any
) -> Callable[[int], dict[str, Tensor]]:
    """A function that draws samples of all sites of a guide."""
    run = lambda function: dict(_run(function, args, kwargs).iter_stochastic_nodes())
    if not isinstance(guide, AutoPosterior):  # others may not take a plate around them

        def stacked(size: int) -> dict[str, Tensor]:
            draws = [run(guide) for _ in range(size)]
            return {n: torch.stack([plain(d[n]["value"]) for d in draws]) for n in draws[0]}

        return stacked

    one = _run(guide, args, kwargs)
    dim = -1 - _max_plate_nesting(one)
    shapes = {name: site["value"].shape for name, site in one.iter_stochastic_nodes()}

    def vectorized(size: int) -> dict[str, Tensor]:
        sites = run(
            lambda *args, **kwargs: pyro.plate(_PLATE, size, dim=dim)(guide)(*args, **kwargs)
        )
        return {n: plain(sites[n]["value"]).reshape(size, *shape) for n, shape in shapes.items()}

    return vectorized
