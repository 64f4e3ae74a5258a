"""Training by a recipe that works for most networks and data."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuideList
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from .._tensors import map_tensors
from .._threads import PYRO
from ..guides import AutoPosterior
from ..guides._lists import checked_guides, groups_of
from ..infer import KLWarmup
from ._averaging import Averaging, check_whole
from ._batches import batches
from ._checkpoint import resume as load
from ._checkpoint import save
from ._contexts import training, unchanged_on_error
from ._held_out import EarlyStopping, log_density
from ._history import History
from ._optimizer import Clipping, optimizer_of, schedule
from ._progress import Progress
from ._ranks import together
from ._run import Objective, Run
from ._setup import (
    check_checkpoint,
    check_counts,
    check_options,
    check_rates,
    num_batches,
    parameters,
    prepare,
)
from ._shares import shared
from ._state import Module, Store, modules

_NUM_STEPS = 20_000  # predictions of small networks are those of ten times as many


def fit(
    model: Callable[..., Any],
    guide: AutoPosterior | AutoGuideList,
    data: Any,
    epochs: int | None = None,
    *,
    batch_size: int | None = None,
    num_data: int | None = None,
    lr: float = 1e-2,
    scale_lr: float = 3e-2,
    kl_weight: float = 1.0,
    warmup: float = 0.5,
    num_particles: int = 1,
    vectorize_particles: bool = False,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    clip_norm: float | None = None,
    clip_factor: float | None = 2.0,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    validation: Any = None,
    patience: int | None = 10,
    callbacks: Sequence[Callable[[Run], Any]] = (),
    device: str | torch.device | None = None,
    seed: int | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 1000,
    resume: bool = False,
    ranks: str | None = "data",
) -> History:
    r"""Trains a guide, and the deterministic parameters of its model, by maximising the ELBO.

    .. math:: \sum_n E_q[\log p(y_n \mid x_n, w)] - \beta KL(q \Vert p)

    The recipe: Adam with decay rates of 0.9 and 0.99, and separate learning rates for the scales of
    posteriors and for all other parameters. They are constant in the first half of the steps and
    fall to 0 as a cosine in the second. The weight :math:`\beta` of the KL divergence rises from 0
    to 1 in the first half (:class:`~pyro_bnn.infer.KLWarmup`). Gradients much larger than those
    before are clipped, without which deep networks may diverge. The number of steps matters more
    than that of epochs. The source is a plain loop over an ELBO module; copy it to write your own.

    Args:
        model: a Pyro model, such as a :class:`~pyro_bnn.BNN`, whose data plate scales mini-batches.
        guide: a guide of :mod:`pyro_bnn.guides` for it, or Pyro's ``AutoGuideList`` with some of
            them and others, which learn by ``lr``.
        data: a DataLoader, or a tuple or dictionary of tensors or arrays with rows in the first
            dimension. A tuple ``(x, y)`` is what the model is called with, a dictionary
            ``{"x": x, "y": y, "weight": w}`` its keywords; so are the batches of a DataLoader.
        epochs: passes over the data; by default as many as make 20,000 steps.
        batch_size: rows of a step for tensors; 128 by default, or all if they are fewer.
        num_data: the number of all data; by default it is read off ``data``. A BNN is given it.
        lr: learning rate of means and of all deterministic parameters.
        scale_lr: learning rate of the scales of posteriors.
        kl_weight: :math:`\beta` at the end. Below 1 it makes a cold posterior, narrower than the
            Bayesian one. It often predicts better; the objective is then no bound on the evidence.
        warmup: fraction of the steps in which :math:`\beta` rises; 0 for none.
        num_particles: number of samples that each step averages over.
        vectorize_particles: draw them at once, their dimension in front of the rows. :doc:`Most
            networks </models>` allow it, and it takes less time than one after the other.
        optimizer: makes another optimizer of the parameter groups,
            ``lambda groups: torch.optim.SGD(groups, momentum=0.9)``.
        clip_norm: largest norm of the gradient of the bound per datum.
        clip_factor: largest norm of the gradient relative to the mean of some 100 steps before,
            above 1; None for any.
        accumulate: number of batches whose gradients are averaged for a step.
        autocast: ``torch.bfloat16`` or ``torch.float16``, for ``torch.autocast``.
        validation: held-out data like ``data``. Their log density is computed up to 100 times;
            in the end the parameters return to where it was best after the warm-up.
        patience: stop when the log density has not improved so often in a row; None for never.
        callbacks: functions of the :class:`~pyro_bnn.models.Run`, called after each step; one that
            returns True ends the training.
        device: where to move model, guide and batches; by default, batches go where the guide is.
        seed: of all random numbers.
        progress: whether to show a bar, on a terminal.
        checkpoint: a file for :func:`~pyro_bnn.save`, written at the end, too.
        checkpoint_every: number of steps after which it is written.
        resume: go on from ``checkpoint`` if that file exists, as if the run had never stopped. All
            arguments must be those of the run that wrote it.
        ranks: what the processes of ``torch.distributed`` divide, if there are several
            (:doc:`distributed`): the rows of each batch (``"data"``), or its particles
            (``"particles"``), so that each has all rows and its own ``num_particles`` samples;
            None if each process trains another network.

    Returns:
        The :class:`~pyro_bnn.models.History` of bound, likelihood and KL divergence per datum.
        Model and guide are left in evaluation mode, after an error, too.

    Raises:
        TypeError: if ``guide`` is not one of these, or ``data`` not as above.
        ValueError: if an argument is out of range, the number of data unknown or not that of the
            model, the data do not suit it, or the checkpoint is another run's; nothing changed.

    Example:
        >>> from pyro_bnn import BNN, fit, likelihoods
        >>> x = torch.linspace(-1, 1, 40).unsqueeze(-1)
        >>> model = BNN(torch.nn.Linear(1, 1), likelihoods.Normal())
        >>> history = fit(model, AutoLRT(model), (x, 2 * x), epochs=500)
        >>> history["bound"][-1] > history["bound"][0]
        True
    """
    checked_guides(guide)
    epochs, num_data, num_particles, accumulate, patience, checkpoint_every = check_counts(
        epochs=epochs,
        num_data=num_data,
        num_particles=num_particles,
        accumulate=accumulate,
        patience=patience,
        checkpoint_every=checkpoint_every,
    )
    check_rates(lr, scale_lr, kl_weight, warmup, clip_norm, clip_factor)
    check_options(autocast, callbacks, device, seed, vectorize_particles)
    check_checkpoint(checkpoint, resume)
    among = together(ranks)
    parts = {**modules("model", model), "guide": guide}
    check_whole(parts.values())
    with PYRO, unchanged_on_error(*parts.values()):
        if seed is not None:
            pyro.set_rng_seed(seed)
        for part in parts.values():
            part.to(device=device)
        like = next(iter(guide.parameters()), torch.empty(()))
        among.device = like.device
        train = shared(batches(data, batch_size, dtype=like.dtype), among)
        held_out = None
        if validation is not None:
            size = None if isinstance(validation, DataLoader) else batch_size
            given = batches(validation, size, shuffle=False, dtype=like.dtype, name="validation")
            held_out = shared(given, among, once=True)
        steps = math.ceil(num_batches(train) / accumulate)
        epochs = math.ceil(_NUM_STEPS / steps) if epochs is None else epochs
        total = epochs * steps

        particles = {"num_particles": num_particles, "vectorize_particles": vectorize_particles}
        elbo = Objective(kl_weight=kl_weight, **particles)
        rise = None
        if warmup:
            first = max(1, int(warmup * total))
            # Not from 0, where nothing would be known of the KL divergence.
            rise = KLWarmup(elbo, first, start=kl_weight / (first + 1), kl_weight=kl_weight)
        move = lambda batch: map_tensors(lambda x: x.to(like.device, non_blocking=True), batch)
        num_data, names = prepare(elbo, model, guide, train, held_out, num_data, move)
        stored = parameters(names)
        others = [p for part in parts.values() for p in part.parameters()] + stored
        groups = groups_of(guide, others, lr, scale_lr)
        made = optimizer_of(groups, optimizer)
        scheduler = LambdaLR(made, lambda step: schedule(step / total))
        loss: Any = elbo(model, guide)  # type: ignore[arg-type]
        averaging = Averaging(loss, parts.values(), stored, among, lambda: move(train.first()))
        clipping = Clipping(clip_norm and clip_norm * num_data, clip_factor)
        run = Run(
            model, guide, elbo, averaging, made, among, num_data, total, move, clipping, autocast
        )
        store = Store(names)
        stopping = EarlyStopping([*map(Module, parts.values()), store], patience)

        state: dict[str, Any] = {**parts, "optimizer": made, "scheduler": scheduler, "run": run}
        state |= {"batches": train, "stopping": stopping, "store": store}
        state |= {} if rise is None else {"warmup": rise}
        state["settings"] = {"epochs": epochs, "steps": steps, "num_data": num_data, "lr": lr}
        state["settings"] |= {"scale_lr": scale_lr, "kl_weight": kl_weight, "clip_norm": clip_norm}
        state["settings"] |= {**particles, "autocast": autocast}
        state["settings"] |= {"validated": held_out is not None, "patience": patience}
        state["settings"] |= {"warmup": warmup, "clip_factor": clip_factor}
        among.check_same(state["settings"] | {"ranks": ranks})
        if resume and among.all_or_none(os.path.exists(str(checkpoint)), str(checkpoint)):
            load(str(checkpoint), **state)
    among.part_random_numbers(run.random_numbers)

    def write() -> None:
        run.gather()
        if among.is_first:
            save(str(checkpoint), **state)
        among.wait()

    bar = Progress(total, progress and among.is_first)
    every = max(1, total // 1000)
    with among.watched(), training(*parts.values()), bar:
        while not run.stopped and train.num_epochs < epochs:
            epoch = train.weighted()
            while not run.stopped and (group := list(itertools.islice(epoch, accumulate))):
                with PYRO:
                    run.step(group)
                scheduler.step()
                if rise is not None:
                    rise.step()
                if callbacks:
                    run.stopped = among.any(run.is_stopped_by(callbacks))
                if run.num_steps % every == 0 or run.num_steps == total or run.stopped:
                    more = {"epoch": run.num_steps / steps}
                    due = (run.num_steps // every) % 10 == 0 or run.num_steps == total
                    if held_out is not None and due:
                        rows = map(move, held_out.epoch())
                        score = log_density(model, guide, rows, total=among.total)
                        more["held_out"] = score
                        if rise is None or rise.is_finished:
                            run.stopped |= stopping.update(score)
                    bar.show(run.num_steps, run.record(**more))
                if checkpoint is not None and run.num_steps % checkpoint_every == 0:
                    write()
        if checkpoint is not None:
            write()
    stopping.restore()
    return run.history
