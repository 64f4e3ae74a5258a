"""Inference."""

from ._kl_warmup import KLWarmup
from ._predictive import Predictive
from ._trace_kl_elbo import TraceKL_ELBO

__all__ = ["KLWarmup", "Predictive", "TraceKL_ELBO"]
