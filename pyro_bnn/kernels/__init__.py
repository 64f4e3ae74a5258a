"""Operations that are written for speed or memory, each beside its plain formula.

:func:`enabled` and the environment variable ``PYRO_BNN_KERNELS`` say which of the two run.
"""

from ._hierarchical_kl import location_scale_bound
from ._joint import MAX_SIZE, flatten, joint
from ._mixture_kl import mixture_bound, summed_mixture_bound
from ._normal_kl import entry_kl, gaussian_kl, is_number, unexpanded
from ._output_noise import square, with_noise
from ._signs import random_signs, random_words
from ._sums import HALF_LOG_2_PI, exact_sum, in_double, in_single, log_sum, number
from ._switch import are_enabled, enabled, is_plain

__all__ = [
    "HALF_LOG_2_PI",
    "MAX_SIZE",
    "are_enabled",
    "enabled",
    "entry_kl",
    "exact_sum",
    "flatten",
    "gaussian_kl",
    "in_double",
    "in_single",
    "is_number",
    "is_plain",
    "joint",
    "location_scale_bound",
    "log_sum",
    "mixture_bound",
    "number",
    "random_signs",
    "random_words",
    "square",
    "summed_mixture_bound",
    "unexpanded",
    "with_noise",
]
