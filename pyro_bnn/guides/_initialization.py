"""Where posteriors start."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.infer.autoguide import init_to_median

from ..posteriors._normal import is_real


def init_to_fan_in(site: dict[str, Any] | None = None) -> Any:
    r"""Starts weights as torch does, :math:`U(-1/\sqrt{n}, 1/\sqrt{n})` for :math:`n` inputs.

    Biases (real vectors) start at 0, all else at the prior's median.

    Args:
        site: a Pyro site; without one, the function itself is returned.

    Returns:
        The initial value, shape of the site.
    """
    if site is None:
        return init_to_fan_in
    fn = site["fn"]
    if not is_real(fn.support) or fn.event_dim == 0:
        return init_to_median(site)
    value = torch.zeros_like(fn.sample())
    if fn.event_dim > 1:
        value.uniform_(-1, 1).div_(math.sqrt(_fan_in(fn)))
    return value


def default_scale(site: dict[str, Any]) -> float:
    """The initial scale of a site's posterior where the guide is given none."""
    fn = site["fn"]
    if not is_real(fn.support) or fn.event_dim == 0:
        return 0.1
    return 0.03 / math.sqrt(_fan_in(fn))


def _fan_in(fn: Any) -> int:
    return max(1, fn.event_shape[1:].numel())
