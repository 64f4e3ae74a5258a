"""What all likelihoods have in common: rows, targets, and parameters of the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import Distribution

from .._validation import is_checked
from ._rows import (
    as_tensor,
    by_rows,
    filled,
    fits,
    innermost,
    num_batch_dims,
    parameter,
    target_shape,
)


class Likelihood(PyroModule):
    r"""Base class: from the outputs of a network to the distribution of the targets.

    Subclasses define :meth:`distribution`, elementwise. A call makes one datum of each row:

    .. math:: p(y \mid f(x)) = \prod_n p(y_n \mid f_n)

    Returns:
        A call with the outputs, of which the first dimension is that of the rows, returns a
        distribution whose batch is the rows, and whose event is one target.

    Raises:
        TypeError: if the outputs are no tensor.
        ValueError: if they have no dimension for the rows.

    Example:
        >>> labels = Bernoulli()(torch.zeros(5, 3))
        >>> labels.batch_shape, labels.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    def forward(self, output: Any) -> Any:
        return by_rows(self.distribution(output))

    def distribution(self, output: Any) -> Any:
        """The distribution of the targets, elementwise: without an event for each row."""
        raise NotImplementedError

    def target(self, y: Any, distribution: Any, mask: Tensor | None = None) -> Tensor:
        """The targets as the distribution takes them, checked.

        Args:
            y: a tensor, array or sequence, of the shape of the distribution or of one that differs
                in dimensions of size 1 only.
            distribution: what a call with the outputs returned.
            mask: which targets count, for each row or in the shape of the targets.

        Returns:
            A tensor of the shape of the distribution.

        Raises:
            TypeError: if the targets are no real numbers.
            ValueError: if their shape, device or values do not suit the distribution; values on
                a GPU are not checked after ``pyro.enable_validation(False)``.
        """
        y, shape = as_tensor("y", y, distribution), target_shape(distribution)
        if not fits(y, shape):
            raise ValueError(
                f"`y` has the shape {tuple(y.shape)}, but the outputs are for targets of shape "
                f"{tuple(shape)}: {_shape_remedy(y, shape, distribution)}"
            )
        y = self._converted(filled(y.reshape(shape), mask), distribution)
        if is_checked(y) and (mask is None or not y.numel() or bool(mask.any())):
            self.check_values(y, distribution)
        return y

    def check_values(self, y: Tensor, distribution: Any) -> None:
        """Raises a ValueError if targets are outside of the support of the distribution."""
        if torch.jit.is_tracing():
            return
        bad, valid = ~y.isfinite(), distribution.support.check(y)  # real numbers may be infinite
        if bool(bad.any()) or not bool(valid.all()):
            if valid.shape == y.shape[: valid.dim()] and not bool(bad.any()):
                bad = ~valid
            example = f", such as {y[bad].flatten()[0].item():g}" if bool(bad.any()) else ""
            raise ValueError(
                f"`y` has values outside of {self._support(distribution)}{example}: "
                f"{self._remedy(distribution)}"
            )

    def _converted(self, y: Tensor, distribution: Any) -> Tensor:
        """The targets with the dtype that the distribution takes."""
        inner = innermost(distribution)
        if isinstance(inner, torch.distributions.Categorical):
            return as_classes(y)
        return y.to(torch.promote_types(parameter(inner).dtype, torch.float))

    def _support(self, distribution: Any) -> str:
        return f"the support of {innermost(distribution)!r}"

    def _remedy(self, distribution: Any) -> str:
        return "correct or drop these rows, or mask them by `mask=`"


class FunctionLikelihood(Likelihood):
    """A user's function from outputs to a distribution, as a likelihood."""

    def __init__(self, function: Callable[[Any], Distribution]) -> None:
        super().__init__()
        self.function = function

    def distribution(self, output: Any) -> Any:
        made = self.function(output)
        if not isinstance(made, dist.Distribution):
            raise TypeError(
                f"`likelihood` returned a {type(made).__module__}.{type(made).__name__}: it must "
                "return a distribution of `pyro.distributions`, with the outputs' rows in its "
                "first dimension"
            )
        return made


def as_likelihood(likelihood: Any) -> Likelihood:
    """A likelihood as it is, or around a function."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, type) and issubclass(likelihood, Likelihood):
        name = likelihood.__name__
        raise TypeError(f"`likelihood` is the class {name}: give an instance, `{name}()`")
    if isinstance(likelihood, Distribution) or not callable(likelihood):
        raise TypeError(
            f"`likelihood` (={likelihood!r}) must be one of `pyro_bnn.likelihoods`, or a function "
            "from outputs to a distribution: `lambda output: dist.Normal(output, 0.1)`"
        )
    return FunctionLikelihood(likelihood)


def outputs(output: Any, name: str) -> Tensor:
    """Outputs of a network as a tensor, in single precision at least."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the network returned a {type(output).__name__}, but `{name}` takes a tensor: give a "
            "function from outputs to a distribution as the likelihood, or return a tensor"
        )
    if output.dim() == 0:
        raise ValueError(
            f"the network returned a scalar, but `{name}` takes a row for each datum: let it keep "
            "the rows of `x` in the first dimension"
        )
    return output.to(torch.promote_types(output.dtype, torch.float))


def squeezed(output: Tensor) -> Tensor:
    """Outputs of shape (rows, ..., 1) without the last dimension."""
    if output.dim() > num_batch_dims() and output.shape[-1] == 1:
        return output.squeeze(-1)
    return output


def as_classes(y: Tensor) -> Tensor:
    """Class indices as integers."""
    if y.is_floating_point():
        if not bool((y == y.round()).all()):
            raise ValueError(
                "`y` has NaN or fractions, but class indices are integers: for probabilities of "
                "classes use `y.argmax(-1)`, and for numbers `pyro_bnn.likelihoods.Normal`"
            )
        if not torch.jit.is_tracing() and bool(y.isinf().any()):
            raise ValueError("`y` has infinities, but class indices are integers")
    return y.long()


def _shape_remedy(y: Tensor, shape: torch.Size, distribution: Any) -> str:
    inner = innermost(distribution)
    if not y.dim() or y.shape[0] != shape[0]:
        return "give a target for each row of `x`"
    is_classes = isinstance(inner, torch.distributions.Categorical)
    if is_classes and y.dim() > len(shape) and y.shape[-1] == inner.param_shape[-1]:
        return "give class indices, `y.argmax(-1)`"
    return "let the network return as many outputs for each row as such targets need"
