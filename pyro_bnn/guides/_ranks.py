"""Steps of training that each of several processes takes for itself."""

from __future__ import annotations

import warnings

import torch

from .._callers import is_in_svi_step
from ._no_data import to_caller


def is_one_of_several() -> bool:
    """Whether other processes train together with this one."""
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def warn_of_svi() -> bool:
    """Warns if a step of ``SVI`` runs, whose optimizers know of no other process."""
    if not is_in_svi_step():
        return False
    warnings.warn(
        f"`SVI` on rank {torch.distributed.get_rank()} of {torch.distributed.get_world_size()}: "
        "`pyro.optim` averages no gradients, so that each process trains parameters of its own. To "
        "train together, call `pyro_bnn.fit`, or put the ELBO module, `TraceKL_ELBO()(model, "
        "guide)`, in DistributedDataParallel and take a torch optimizer",
        stacklevel=to_caller(),
    )
    return True
