"""Inference."""

from ._trace_kl_elbo import TraceKL_ELBO

__all__ = ["TraceKL_ELBO"]
