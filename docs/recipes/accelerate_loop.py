"""Variational inference in a loop by Accelerate."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from pyro_bnn import BNN
from pyro_bnn.guides import AutoPosterior
from pyro_bnn.infer import KLWarmup, TraceKL_ELBO


def train(
    model: BNN,
    guide: AutoPosterior,
    loader: DataLoader,
    epochs: int,
    accelerator: Accelerator,
    seed: int = 0,
) -> float:
    """Maximises the ELBO of a model that knows the number of all data; the last loss per datum."""
    groups = guide.parameter_groups(lr=1e-2, scale_lr=3e-2)
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    loss_of = TraceKL_ELBO()(model, guide)
    loss_of, optimizer, loader = accelerator.prepare(loss_of, optimizer, loader)
    warmup = KLWarmup(loss_of, max(1, epochs * len(loader) // 2))
    set_seed(seed, device_specific=True)  # alike on all ranks, they would draw the same weights
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_of(x, y)
            accelerator.backward(loss)
            optimizer.step()
            warmup.step()
    return accelerator.reduce(loss.detach(), "mean").item() / model.num_data
