"""Inference."""

from ._predictive import Predictive
from ._trace_kl_elbo import TraceKL_ELBO

__all__ = ["Predictive", "TraceKL_ELBO"]
