"""A weight draw: a tensor that remembers how it is applied to an input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._recomputation import again
from .._torch import DisableTorchFunctionSubclass, FakeTensor, disable_current_modes
from ._functions import METADATA, PLACES, PRODUCTS, TRANSPOSES
from ._inputs import problem
from ._maps import LINEAR, LinearMap
from ._one_weight import CONVOLUTIONS, Convolution, Lookup
from ._sample import Sample
from ._sampled import sampled, unsampled


class SharedSample(Sample):
    """An ordinary weight."""

    def __init__(self, value: Tensor) -> None:
        self.loc = value
        self.shape = value.shape

    @property
    def value(self) -> Tensor:
        return again(self.loc)

    @property
    def mT(self) -> Sample:
        return SharedSample(self.loc.mT)

    def apply(self, map: LinearMap, input: Tensor, bias: Tensor | None) -> Tensor:
        mean, noise = split_bias(bias)
        output = map(input, again(self.loc), mean)
        if noise is None:
            return output
        samples = max(self.loc.dim() - map.weight_dim, len(noise.shape) - 1)
        return output + noise.bias_noise(map, input, output, samples)

    def bias_noise(self, map: LinearMap, input: Tensor, output: Tensor, samples: int) -> Tensor:
        return output.new_zeros(())


class Draw(torch.Tensor):
    """A sampled weight that is applied to inputs by the rule of its estimator.

    ``F.linear``, its transposes and products from the right, ``F.conv1d`` to ``F.conv3d``,
    ``F.conv_transpose1d`` to ``F.conv_transpose3d``, ``F.embedding`` and torch's recurrent
    networks (``torch.lstm``, ``gru``, ``rnn_tanh`` and ``rnn_relu``) are computed by that rule.
    Every other operation sees the ordinary :attr:`Sample.value` and returns ordinary tensors, so a
    draw is copied, pickled, stacked and printed as an ordinary tensor. The memory behind the
    tensor itself is never read; it is filled with NaN, so that parts of torch which bypass
    ``__torch_function__`` cannot compute wrong numbers unnoticed.
    """

    sample: Sample

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in RULES:
            return RULES[func](*args, **kwargs)
        if func in METADATA:
            with DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in PLACES:
            return func(args[0].sample.loc)
        if func in TRANSPOSES and _is_transpose(*args, **kwargs):
            weight = args[0] if args else kwargs["input"]
            return draw(weight.sample.mT)
        if func in PRODUCTS and "out" not in kwargs:
            left, right = _factors(*args, **kwargs)
            if func is torch.Tensor.__rmatmul__:
                left, right = right, left
            if isinstance(right, Draw) and right.dim() == 2:
                return linear(left, right.mT)
        if func is torch.Tensor.__deepcopy__:  # torch refuses to copy what has a history
            return func(args[0].sample.value.detach(), *args[1:])
        return func(*plain(args), **plain(kwargs))


def draw(sample: Sample) -> Draw:
    """The draw that stands for a sample: what :meth:`Estimator.draw` returns."""
    memory = sample.loc.new_full((), float("nan"))
    if isinstance(memory, FakeTensor):  # of which torch makes no other subclass
        with disable_current_modes():
            memory = torch.empty((), dtype=memory.dtype, device="meta")
            result = memory.expand(sample.shape).as_subclass(Draw)
    else:
        result = memory.expand(sample.shape).as_subclass(Draw)
    result.sample = sample
    return result


def plain(x: Any) -> Any:
    """``x`` with every draw in it, also in lists and dictionaries, as an ordinary tensor."""
    if isinstance(x, Draw):
        return x.sample.value
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)) and type(x) in (list, tuple):
        return type(x)([plain(value) for value in x])
    return x


def wants_grad(x: Tensor) -> bool:
    """Whether what is computed from ``x`` now has a gradient; if not, it is not to be kept."""
    return x.requires_grad and torch.is_grad_enabled()


def split_bias(bias: Tensor | None) -> tuple[Tensor | None, Sample | None]:
    """The mean of a bias, and what its noise comes from."""
    if isinstance(bias, Draw):
        return again(bias.sample.loc), bias.sample
    return bias, None


def apply_map(map: LinearMap, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a map makes of an input, a weight and a bias, each of which may be a draw."""
    sample = weight.sample if isinstance(weight, Draw) else SharedSample(weight)
    samples = len(sample.shape) - map.weight_dim
    try:
        output = sample.apply(map, unsampled(plain(input), samples, 1 + map.space), bias)
    except (AttributeError, RuntimeError, TypeError) as error:
        if "function being vmapped" in str(error):  # torch's words, which name no weight
            raise ValueError(
                "a weight was drawn inside of `torch.vmap`, where each example has another draw, "
                "and is used outside of it, too: call the layer on the batch in both places, or "
                "draw one weight for all examples, by `AutoReparameterization` or "
                "`guide.shared_draws()`"
            ) from error
        found = problem(map, input, sample.loc.dtype)
        if found is None:
            raise
        raise TypeError(found) from error
    return sampled(output) if samples > 0 else output


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""``F.linear`` for sampled weights and biases, which may have leading sample dimensions.

    A weight of shape ``(S, 1, ..., 1, out, in)``, as a plate of ``S`` samples outside the data
    plates makes it, takes an input of shape ``(N, in)`` or ``(S, N, in)`` and gives
    ``(S, N, out)``. The last of several sample dimensions counts the rows of the input, as the
    innermost data plate does, and the ones before it broadcast; a single one does not count rows.

    Args:
        input: shape ``(..., in)``.
        weight: shape ``samples + (out, in)``.
        bias: shape ``samples + (out,)``, or None.

    Returns:
        Shape ``(..., out)``, with the sample dimensions in front.

    Raises:
        ValueError: if the input has another width than the weight, or has no dimension for
            rows where weight or bias has sample dimensions.

    Example:
        >>> linear(torch.ones(5, 3), torch.ones(7, 1, 2, 3)).shape
        torch.Size([7, 5, 2])
    """
    return apply_map(LINEAR, input, weight, bias)


def convolve(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """One of torch's convolutions, whose weight and bias may be draws."""
    return apply_map(Convolution.of(function, *args, **kwargs), input, weight, bias)


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """``F.embedding``, whose weight may be a draw."""
    if max_norm is not None:  # torch changes the weight itself
        return F.embedding(
            input, plain(weight), padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
    return apply_map(Lookup(padding_idx, scale_grad_by_freq, sparse), input, weight)


def _is_transpose(input: Tensor, *dims: int, **named: int) -> bool:
    dims = dims + tuple(named.values()) or (0, 1)
    return isinstance(input, Draw) and input.dim() == 2 and {d % 2 for d in dims} == {0, 1}


def _factors(input: Tensor, *right: Tensor, **named: Tensor) -> tuple[Tensor, ...]:
    return input, *right, *named.values()  # torch's names of the right one differ


# Others are added where they are (`_recurrent`), and by `register_map`.
RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: linear,
    F.embedding: embedding,
    **{function: partial(convolve, function) for function in CONVOLUTIONS},
}
