"""A weight draw: a tensor that remembers how it meets an input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._linear import plain_linear


class Sample(ABC):
    """What a :class:`Draw` stands for: one sample of a weight (or bias), by some estimator.

    Attributes:
        loc: mean of the posterior, without sample dimensions that only repeat it.
        shape: shape of the sample, sample dimensions included.
    """

    loc: Tensor
    shape: torch.Size

    @property
    @abstractmethod
    def value(self) -> Tensor:
        """An ordinary sample of the weight, the same one at each call."""

    @property
    @abstractmethod
    def mT(self) -> Sample:
        """The sample of the transposed weight."""

    @abstractmethod
    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """The product of the input and the weight, with the bias added."""

    @abstractmethod
    def bias_noise(self, output: Tensor, samples: int) -> Tensor:
        """The noise of the bias for an output with as many sample dimensions, mean excluded."""


class Draw(torch.Tensor):
    """A draw of a weight that meets inputs by the rule of its estimator.

    ``F.linear``, its transposes and products from the right are computed by that rule. Every
    other operation sees the ordinary :attr:`Sample.value` and returns ordinary tensors, so a
    draw is copied, pickled, stacked and printed as an ordinary tensor. The memory behind the
    tensor itself is never read; it holds nothing but NaN, lest any part of torch that bypasses
    ``__torch_function__`` go on with wrong numbers.
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
        if func is F.linear:
            return linear(*args, **kwargs)
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _TRANSPOSES and _is_transpose(*args, **kwargs):
            return draw(args[0].sample.mT)
        if func in _PRODUCTS:
            left, right = args if func is not torch.Tensor.__rmatmul__ else args[::-1]
            if isinstance(right, Draw) and right.dim() == 2:
                return linear(left, right.mT)
        if func is torch.Tensor.__deepcopy__:  # torch refuses to copy what has a history
            return func(args[0].sample.value.detach(), *args[1:])
        return func(*plain(args), **plain(kwargs))


def draw(sample: Sample) -> Draw:
    """The draw that stands for a sample."""
    poison = sample.loc.detach().new_full((), float("nan")).expand(sample.shape)
    result = poison.as_subclass(Draw)
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


def split_bias(bias: Tensor | None) -> tuple[Tensor | None, Sample | None]:
    """The mean of a bias, and what its noise comes from."""
    if isinstance(bias, Draw):
        return bias.sample.loc, bias.sample
    return bias, None


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""``F.linear`` whose weight and bias may be draws, and may carry leading sample dimensions.

    A weight of shape ``(S, 1, ..., 1, out, in)``, as a plate of ``S`` samples outside the data
    plates makes it, meets an input of shape ``(N, in)`` or ``(S, N, in)`` and gives
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
    input = plain(input)
    if isinstance(weight, Draw):
        return weight.sample.linear(input, bias)
    mean, sample = split_bias(bias)
    output = plain_linear(input, weight, mean)
    if sample is None:
        return output
    return output + sample.bias_noise(output, len(sample.shape) - 1)


def _is_transpose(x: Tensor, *dims: int, dim0: int = 0, dim1: int = 1) -> bool:
    dims = dims or (dim0, dim1)
    return isinstance(x, Draw) and x.dim() == 2 and {d % 2 for d in dims} == {0, 1}


_METADATA = {
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")),
    *(getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "__len__")),
    torch.Tensor.is_floating_point,
    torch.is_floating_point,
}
_TRANSPOSES = {
    *(getattr(torch.Tensor, name).__get__ for name in ("T", "mT")),
    *(getattr(torch.Tensor, name) for name in ("t", "transpose", "swapaxes")),
    *(torch.t, torch.transpose, torch.swapaxes),
}
_PRODUCTS = {
    *(getattr(torch.Tensor, name) for name in ("matmul", "__matmul__", "__rmatmul__", "mm")),
    *(torch.matmul, torch.mm),
}
