"""The schedule of the weight of the KL divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from pyro.infer.elbo import ELBOModule
from torch import nn

from .._validation import check_numbers

_WRAPPERS = ("_orig_mod", "module")  # of torch.compile, and of data parallelism


class KLWarmup:
    r"""Raises the weight of the KL divergence from 0 to 1 in equal steps, at the start of training.

    .. math:: \beta_t = s + (1 - s) \min(t / T, 1)

    with the number :math:`t` of calls of :meth:`step`, one after each step of the optimizer. The
    first step of the optimizer has the weight :math:`s`; after :math:`T` calls it is 1, exactly,
    and stays. With the full weight from the start, a network that has learned nothing loses its
    weights to the prior, and many never recover.

    Losses of steps before the end are no bounds on the evidence, and cannot be compared with later
    ones: train on when :attr:`is_finished`, or choose fewer ``steps``.

    Args:
        elbo_or_wrapper: what has a ``kl_weight``: a :class:`TraceKL_ELBO`, the module that it makes
            of a model and a guide, a :class:`~pyro_bnn.compat.Standalone` or a
            :class:`~pyro_bnn.compat.WithKL`; its weight is set at once.
        steps: number of steps :math:`T`, positive; half of all steps of the training, say.
        start: weight of the first step :math:`s`, at least 0 and below 1.
        kl_weight: the weight at the end instead of 1, if that was given to ``elbo_or_wrapper``:
            below 1, of a cold posterior, whose loss is no bound.

    Attributes:
        steps: as given.
        start: as given.
        kl_weight: the weight at the end.
        num_steps: number of calls of :meth:`step` so far.

    Raises:
        TypeError: if ``elbo_or_wrapper`` has no ``kl_weight``, or ``steps`` is no integer.
        ValueError: if ``steps`` is not positive, if ``start`` is negative or not below
            ``kl_weight``, or if ``elbo_or_wrapper`` has another weight than ``kl_weight``, which
            would be lost.

    Example:
        >>> elbo = TraceKL_ELBO()
        >>> warmup = KLWarmup(elbo, steps=4)
        >>> weights = [elbo.kl_weight]
        >>> for _ in range(5):
        ...     warmup.step()
        ...     weights.append(elbo.kl_weight)
        >>> weights, warmup.is_finished
        ([0.0, 0.25, 0.5, 0.75, 1.0, 1.0], True)
    """

    def __init__(
        self, elbo_or_wrapper: Any, steps: int, *, start: float = 0.0, kl_weight: float = 1.0
    ) -> None:
        target = _weighted(elbo_or_wrapper)
        _check(steps, start, kl_weight)
        if target.kl_weight != kl_weight:
            stay = f", or pass `kl_weight={target.kl_weight}` if the weight is to stay there"
            raise ValueError(
                f"`elbo_or_wrapper` has the `kl_weight` {target.kl_weight}, which a warm-up to "
                f"{kl_weight} would replace: assign {kl_weight} to it first"
                f"{stay if target.kl_weight else ''}"
            )
        self.steps, self.start, self.kl_weight = int(steps), start, kl_weight
        self.num_steps = 0
        self._target = target
        self._set()

    @property
    def is_finished(self) -> bool:
        """Whether the weight at the end is reached."""
        return self.num_steps >= self.steps

    def step(self) -> None:
        """Counts a step, and sets the weight of the next one."""
        self.num_steps += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """The state, to be saved with that of the optimizer."""
        names = ("steps", "start", "kl_weight", "num_steps")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where another warm-up was, with its arguments, and sets the weight.

        Raises:
            TypeError: if ``state_dict`` is no dictionary, or has another thing than numbers.
            ValueError: if ``state_dict`` is not what :meth:`state_dict` returns; nothing changed.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"`state_dict` (={state_dict!r}) must be the dictionary of a KLWarmup's "
                "`state_dict()`"
            )
        expected, given = set(self.state_dict()), set(state_dict)
        if expected != given:
            raise ValueError(
                f"`state_dict` has the entries {sorted(given)}, not {sorted(expected)}: give that "
                "of a KLWarmup"
            )
        _check(*(state_dict[name] for name in ("steps", "start", "kl_weight")))
        num_steps = state_dict["num_steps"]
        if not isinstance(num_steps, Integral) or num_steps < 0:
            raise ValueError(
                f"`num_steps` (={num_steps!r}) of `state_dict` must be a number of calls"
            )
        self.__dict__.update(state_dict)
        self._set()

    def _set(self) -> None:
        fraction = min(self.num_steps, self.steps) / self.steps
        reached = self.start + (self.kl_weight - self.start) * fraction
        self._target.kl_weight = self.kl_weight if self.is_finished else reached

    def __repr__(self) -> str:
        return (
            f"KLWarmup(step {self.num_steps} of {self.steps}, kl_weight="
            f"{self._target.kl_weight:.3g}, {'finished' if self.is_finished else 'not finished'})"
        )


def _check(steps: Any, start: Any, kl_weight: Any) -> None:
    if isinstance(steps, bool) or not isinstance(steps, Integral):
        raise TypeError(f"`steps` (={steps!r}) must be an integer, a number of training steps")
    if steps < 1:
        raise ValueError(f"`steps` (={steps}) must be positive; without a warm-up, use none")
    check_numbers(start=start, kl_weight=kl_weight)
    if not 0 < kl_weight < math.inf:
        raise ValueError(
            f"`kl_weight` (={kl_weight}) must be positive and finite: it is that of the end"
        )
    if not 0 <= start < kl_weight:
        raise ValueError(
            f"`start` (={start}) must be at least 0 and below the weight at the end, {kl_weight}"
        )


def _weighted(target: Any) -> Any:
    """What has the weight, inside of an ELBO module or a wrapper of torch's."""
    inner = target
    while not hasattr(type(inner), "kl_weight"):
        names = [name for name in _WRAPPERS if isinstance(getattr(inner, name, None), nn.Module)]
        if isinstance(inner, ELBOModule):
            inner = inner.elbo
        elif names:
            inner = getattr(inner, names[0])
        else:
            raise TypeError(
                f"`elbo_or_wrapper` (={type(target).__name__}) has no `kl_weight`: give a "
                "`TraceKL_ELBO`, an ELBO module made of it, a `Standalone` or a `WithKL`"
            )
    return inner
