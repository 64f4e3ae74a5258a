"""What two processes do for test_frameworks.py: each writes what it has found.

They are forked after the imports, which take longer than all else, with the environment that
``torchrun`` gives them.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn
from torch.multiprocessing import start_processes
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data import DataLoader, TensorDataset

from pyro_bnn import BNN, bayesianize
from pyro_bnn.guides import AutoReparameterization
from pyro_bnn.likelihoods import Normal
from pyro_bnn.priors import Normal as NormalPrior

RECIPES = Path(__file__).parent.parent / "docs/recipes"
NUM_DATA, NOISE = 24, 0.5


def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(NUM_DATA, 3, generator=generator, dtype=torch.double)
    return x, x.sum(-1) + torch.randn(NUM_DATA, generator=generator, dtype=torch.double)


def recipe(name):
    return runpy.run_path(str(RECIPES / f"{name}.py"))


class Recorded(AutoReparameterization):
    """A guide that keeps what it draws."""

    def forward(self, *args, **kwargs):
        drawn = super().forward(*args, **kwargs)
        self.found["drawn"].append({n: x.detach().clone() for n, x in drawn.items()})
        return drawn


def recorded():
    """A linear regression and its guide, which keep what each step sees and has."""
    net = bayesianize(nn.Linear(3, 1), prior=NormalPrior(0, 1)).double()
    model = BNN(net, Normal(NOISE), num_data=NUM_DATA)
    guide = Recorded(model)
    guide.found = found = defaultdict(list)
    model.register_forward_pre_hook(lambda _, args: found["rows"].append(args))

    def before(*_):
        found["parameters"].append({n: p.detach().clone() for n, p in guide.named_parameters()})

    def after(*_):  # Lightning computes gradients within the step
        found["gradients"].append({n: p.grad.clone() for n, p in guide.named_parameters()})

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    return model, guide, found, hooks


def finished(guide, found, hooks):
    for hook in hooks:
        hook.remove()
    return dict(found) | {"end": {n: p.detach() for n, p in guide.named_parameters()}}


def loader():
    return DataLoader(TensorDataset(*data()), batch_size=3, shuffle=True)


def with_lightning(folder):
    import pytorch_lightning as lightning

    lightning.seed_everything(1, verbose=False)
    model, guide, *kept = recorded()
    module = recipe("lightning_module")["Variational"](model, guide)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, loader())
    trainer.save_checkpoint(folder / "lightning.ckpt")
    return finished(guide, *kept) | {"loss": trainer.callback_metrics["loss"].item()}


def with_accelerate(_):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    torch.manual_seed(1)
    model, guide, *kept = recorded()
    loss = recipe("accelerate_loop")["train"](model, guide, loader(), 2, accelerator)
    return finished(guide, *kept) | {"loss": loss}


def main(rank, folder, port):
    torch.set_num_threads(1)
    of_all = {
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "GROUP_RANK": 0,
        "TORCHELASTIC_RUN_ID": "none",
    }
    of_all |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    of_all |= {"RANK": rank, "LOCAL_RANK": rank}
    os.environ |= {name: str(value) for name, value in of_all.items()}
    found = {"lightning": with_lightning(folder), "accelerate": with_accelerate(folder)}
    torch.save(found, folder / f"found{rank}.pt")


if __name__ == "__main__":
    import accelerate  # noqa: F401
    import pytorch_lightning  # noqa: F401

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(main, (Path(sys.argv[1]), port), nprocs=2, start_method="fork")
