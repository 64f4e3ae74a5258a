"""What ``torch.vmap`` needs to run a model, and what running one in a loop costs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..estimators._functions import RECURRENT
from ..estimators._recurrent import run

Samples = dict[str, Tensor]

# Networks with larger activations or weights leave a CPU no time to spare for vectorisation to
# save, recurrent ones sooner: benchmarks/predictive.py measures where they break even.
_MAX_VECTORIZED, _MAX_VECTORIZED_RECURRENT = 2**15, 2**13
_NORMALIZATIONS = (F.batch_norm, F.instance_norm)


def vectorize(predict: Callable[[Samples], Samples], samples: Samples, size: int) -> Samples:
    """Runs a function of one sample of each site on ``size`` of them at once.

    Raises:
        RuntimeError: if ``torch.vmap`` cannot run it.
    """

    def one(zero: Tensor, samples: Samples) -> Samples:
        with _Batched(zero):
            return predict(samples)

    # Checks of values cannot run in there, and fused attention has no rule: it would be a loop.
    with pyro.validation_enabled(False), sdpa_kernel(SDPBackend.MATH):
        device = next((x.device for x in samples.values()), None)
        zero = torch.zeros(size, device=device)
        return torch.vmap(one, randomness="different")(zero, samples)


class _Batched(TorchFunctionMode):
    """Helps ``torch.vmap`` where it cannot help itself.

    Distributions fill an empty tensor with random numbers, or one of zeros with probabilities,
    which are to differ between samples;
    torch's recurrent networks and some functions have no rule.

    Args:
        zero: one for each sample.
    """

    def __init__(self, zero: Tensor) -> None:
        super().__init__()
        self.zero = zero

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in RECURRENT:
            return run(func, *args)
        if func is Tensor.clamp_:
            return args[0].copy_(torch.clamp(*args, **kwargs))
        if func is torch.binomial:  # its rule asks that both have samples
            args = [x + self.zero.to(x) for x in args]
        training = _training_call(func, args, kwargs)
        result = func(*args, **kwargs) if training is None else func(**training)
        if func in (torch.empty, torch.zeros, Tensor.new, Tensor.new_empty):
            return result + self.zero.to(result)
        return result


class Work(TorchFunctionMode):
    """Watches a run: its largest tensor, and the limit above which a CPU has no time to spare."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.limit = math.inf
        self.moves_statistics = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        output = result[0] if func in RECURRENT else result
        if isinstance(output, Tensor):
            self.largest = max(self.largest, output.numel())
            if output.is_cpu:
                own = _MAX_VECTORIZED_RECURRENT if func in RECURRENT else _MAX_VECTORIZED
                self.limit = min(self.limit, own)
        self.moves_statistics |= _training_call(func, args, kwargs) is not None
        return result

    @property
    def is_faster_in_a_loop(self) -> bool:
        return self.largest > self.limit


def _training_call(func: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of a normalization in training, without the statistics that it would move."""
    if func not in _NORMALIZATIONS:
        return None
    bound = inspect.signature(func).bind(*args, **kwargs).arguments
    if bound.get("running_mean") is None or not bound.get("training", bound.get("use_input_stats")):
        return None
    return {**bound, "running_mean": None, "running_var": None}
