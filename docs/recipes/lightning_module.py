"""Variational inference as a LightningModule."""

from typing import Any

import torch
from pytorch_lightning import LightningModule

from pyro_bnn import BNN
from pyro_bnn.guides import AutoPosterior
from pyro_bnn.infer import TraceKL_ELBO


class Variational(LightningModule):
    """Maximises the ELBO of a model that knows the number of all data."""

    def __init__(self, model: BNN, guide: AutoPosterior) -> None:
        super().__init__()
        self.loss_of = TraceKL_ELBO()(model, guide)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = self.loss_of.guide.parameter_groups(lr=1e-2, scale_lr=3e-2)
        return torch.optim.Adam(groups, betas=(0.9, 0.99))

    def on_train_start(self) -> None:
        # Ranks that are seeded alike would all draw the same weights.
        torch.manual_seed(torch.initial_seed() + self.global_rank)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        # The warm-up of the KL divergence, in the first half of the training.
        done = (self.global_step + 1) / self.trainer.estimated_stepping_batches
        self.loss_of.elbo.kl_weight = min(1.0, 2 * done)
        loss = self.loss_of(*batch)
        self.log("loss", loss / self.loss_of.model.num_data, sync_dist=True)
        return loss
