"""Inference: the ELBO and its KL divergences, prediction, diagnosis of posteriors."""

from ._calibration import sbc_ranks, uniformity
from ._diagnose import diagnose
from ._diagnosis import Diagnosis
from ._kl import KL, kl
from ._kl_warmup import KLWarmup
from ._predictive import Predictive
from ._trace_kl_elbo import TraceKL_ELBO

__all__ = [
    "KL",
    "Diagnosis",
    "KLWarmup",
    "Predictive",
    "TraceKL_ELBO",
    "diagnose",
    "kl",
    "sbc_ranks",
    "uniformity",
]
