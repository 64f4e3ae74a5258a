"""The contract of an estimator and a linear map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from ..estimators import Estimated, Estimator
from ._statistics import require, require_mean, seeded


def check_estimator_rule(
    estimator: Estimator,
    function: Callable[[Tensor, Tensor], Tensor] = F.linear,
    input: Tensor | None = None,
    shape: tuple[int, ...] = (4, 3),
    *,
    num_samples: int = 2000,
) -> None:
    r"""Checks an estimator with a function of input and weight, or the map registered for it.

    With a Normal posterior of known moments: each output has the mean and the variance that the
    weight gives it; two uses of one draw have the covariance that one weight gives them, and two
    with the same input the same output; the ordinary value of a draw has the moments of the
    posterior, and is always the same; gradients reach mean and scale.

    Args:
        estimator: the estimator.
        function: linear in its input and in its weight.
        input: floating-point inputs of some examples; 5 for ``F.linear`` by default.
        shape: shape of the weight.
        num_samples: number of draws.

    Raises:
        AssertionError: says what differs, by how many standard errors.

    Example:
        >>> convolve = torch.nn.functional.conv1d
        >>> check_estimator_rule(Flipout(), convolve, torch.ones(2, 3, 5), (4, 3, 2))
    """
    with seeded():
        input = torch.randn(5, shape[-1]) if input is None else input
        inputs: Any = (input.double(), torch.randn(input.shape, dtype=torch.double))
        loc = torch.randn(shape, dtype=torch.double, requires_grad=True)
        scale = (torch.rand(shape, dtype=torch.double) + 0.1).requires_grad_()
        q = Estimated(dist.Normal(loc, scale), len(shape), estimator)
        _check_outputs(q, function, inputs, num_samples)
        _check_value(q, num_samples)
        function(inputs[0], q.rsample()).square().sum().backward()
        for name, x in (("mean", loc), ("scale", scale)):
            found = x.grad is not None and bool(x.grad.isfinite().all() and (x.grad != 0).any())
            require(found, f"the {name} of the posterior has the gradient {x.grad}")


def _check_outputs(
    q: Any, function: Callable[[Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor], number: int
) -> None:
    loc, variance = q.base_dist.loc.detach(), q.base_dist.scale.detach().square()
    means = [function(x, loc) for x in inputs]
    slopes = [
        torch.autograd.functional.jacobian(lambda w, x=x: function(x, w), loc).flatten(-loc.dim())
        for x in inputs
    ]
    covariance = lambda a, b: (slopes[a] * slopes[b] * variance.flatten()).sum(-1)
    outputs: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        for _ in range(number):
            draw = q.rsample()
            for made, x in zip(outputs, inputs, strict=True):
                made.append(function(x, draw))
        again = function(inputs[0], draw)
    torch.testing.assert_close(
        again, outputs[0][-1], msg=lambda m: f"one draw has two outputs for one input: {m}"
    )
    first, second = (torch.stack(made) - mean for made, mean in zip(outputs, means, strict=True))
    name = repr(q.estimator)
    require_mean(first, 0.0, f"the mean of outputs under {name} is not that of the weight")
    require_mean(first.square(), covariance(0, 0), f"the variance of outputs under {name}")
    require_mean(
        first * second,
        covariance(0, 1),
        f"the covariance of two uses of one draw under {name}, of which an example has one weight",
    )


def _check_value(q: Any, number: int) -> None:
    with torch.no_grad():
        draws = [q.rsample() for _ in range(number)]
        values = torch.stack([torch.as_tensor(draw + 0) for draw in draws])
        require(
            torch.equal(values[0], torch.as_tensor(draws[0] + 0)),
            "the ordinary value of a draw changes from one use to the next",
        )
    loc, scale = q.base_dist.loc.detach(), q.base_dist.scale.detach()
    require_mean(values, loc, "the mean of the ordinary value")
    require_mean((values - loc).square(), scale.square(), "the variance of the ordinary value")
