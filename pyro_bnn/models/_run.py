"""One step of training, and what is remembered of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..infer import TraceKL_ELBO
from ..infer._data import arguments
from . import _rng
from ._averaging import Averaging
from ._history import History
from ._optimizer import Clipping
from ._ranks import Ranks


class Objective(TraceKL_ELBO):
    """``TraceKL_ELBO`` that remembers the log-likelihood of what it has evaluated."""

    log_likelihood: Tensor | float = 0.0
    is_scaled = True  # whether the last evaluation scaled its observations

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        traces = super()._get_trace(model, guide, args, kwargs)
        nodes = traces[0].nodes.values()
        sites = [site for site in nodes if site["type"] == "sample" and site["is_observed"]]
        for site in sites:
            self.log_likelihood = self.log_likelihood + site["log_prob_sum"].detach()
        self.is_scaled = any(isinstance(s["scale"], Tensor) or s["scale"] != 1 for s in sites)
        return traces


class _Weighted(Messenger):
    """Scales the likelihood of what is observed."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            msg["scale"] = self.weight * msg["scale"]


class Run:
    """A training run, as callbacks see it.

    Attributes:
        model: the model.
        guide: its guide.
        elbo: the ELBO module.
        optimizer: the optimizer of torch.
        history: the :class:`History` so far.
        num_steps: steps of the optimizer so far.
        total_steps: those of the whole run.
        num_data: the number of all data.
        stopped: whether to end after this step; may be set.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Any,
        elbo: Objective,
        averaging: Averaging,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        num_data: int,
        total_steps: int,
        move: Callable[[Any], Any],
        clipping: Clipping,
        autocast: torch.dtype | None,
    ) -> None:
        self.model, self.guide, self.elbo, self.optimizer = model, guide, elbo, optimizer
        self.num_data, self.total_steps = num_data, total_steps
        self.autocast = autocast
        self.history = History()
        self.num_steps = 0
        self.stopped = False
        self.random_numbers: list[Any] = []  # the generators of all ranks, if there are more
        self._move, self._averaging, self._ranks = move, averaging, ranks
        self._clipping = clipping
        self._device = next(iter(guide.parameters())).device.type
        # Of a sum over all data, unlike the means that the usual scale is made for.
        scale = 2.0**10 / num_data
        half = autocast is torch.float16
        self._scaler = torch.amp.GradScaler(self._device, init_scale=scale, enabled=half)
        self._terms: list[tuple[float, float]] = []
        self._unread: list[tuple[Tensor, Any, float]] = []  # what the device still computes

    def step(self, batches: list[tuple[Any, float]]) -> None:
        """One step of the optimizer, with the mean of the gradients of some weighted batches."""
        self.optimizer.zero_grad()
        for i, (batch, weight) in enumerate(batches, start=1):
            with self._averaging.batch(is_last=i == len(batches)):
                self._add_gradients(batch, weight, len(batches))
        self._averaging.finish()
        if self._clipping.is_needed:
            self._scaler.unscale_(self.optimizer)
            self._clipping([p for group in self.optimizer.param_groups for p in group["params"]])
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.num_steps += 1

    def _add_gradients(self, batch: Any, weight: float, num_batches: int) -> None:
        args, kwargs = arguments(self._move(batch))
        self.elbo.log_likelihood = 0.0
        mixed = self.autocast is not None
        with (
            torch.autocast(self._device, self.autocast) if mixed else nullcontext(),
            nullcontext() if weight == 1 else _Weighted(weight),
        ):
            loss = self._averaging.loss(*args, **kwargs)
        self._scaler.scale(loss / num_batches).backward()
        self._remember(loss)

    def is_stopped_by(self, callbacks: Iterable[Callable[[Run], Any]]) -> bool:
        """Calls all callbacks; whether one of them ends the training."""
        answers = [callback(self) for callback in callbacks]
        # Of NumPy's and torch's truth values, too, but not of a number that a callback returns.
        values = (torch.as_tensor(x) for x in answers if isinstance(x, (bool, np.bool_, Tensor)))
        return self.stopped or any(x.dtype is torch.bool and bool(x.all()) for x in values)

    def record(self, **more: float) -> dict[str, float]:
        """Adds the means since the last record to the history."""
        self._read()
        likelihood, kl = (sum(x) / len(x) for x in zip(*self._terms, strict=True))
        likelihood, kl = self._ranks.mean(likelihood, kl)
        self._terms = []
        record = {
            "step": self.num_steps,
            "bound": likelihood - kl,
            "log_likelihood": likelihood,
            "kl": kl,
            "kl_weight": self.elbo.kl_weight,
            "lr": self.optimizer.param_groups[0]["lr"],
            **more,
        }
        self.history.append(**record)
        return record

    def _remember(self, loss: Tensor) -> None:
        self._unread.append((loss.detach(), self.elbo.log_likelihood, self.elbo.kl_weight))

    def _read(self) -> None:
        """Takes the terms of the last steps from the device, which the host waits for."""
        if not self._unread:
            return
        losses, likelihoods, weights = zip(*self._unread, strict=True)
        self._unread = []
        like = losses[0]
        values = torch.stack([*losses, *(torch.as_tensor(x).to(like.device) for x in likelihoods)])
        loss_values, sums = values.view(2, -1).cpu().tolist()
        for loss, total, weight in zip(loss_values, sums, weights, strict=True):
            likelihood = total / self.elbo.num_particles
            kl = (loss + likelihood) / weight if weight else math.nan
            self._terms.append((likelihood / self.num_data, kl / self.num_data))

    def gather(self) -> None:
        """What only all ranks together know, before one of them writes a checkpoint."""
        if self._ranks.size > 1:
            self.random_numbers = self._ranks.gather(_rng.get_state())
            self._read()
            means = iter(self._ranks.mean(*itertools.chain(*self._terms)))
            self._terms = list(zip(means, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What is counted and remembered; the parts have states of their own."""
        self._read()
        several = {"random_numbers": self.random_numbers} if self.random_numbers else {}
        return several | {
            "num_steps": self.num_steps,
            "stopped": self.stopped,
            "terms": list(self._terms),
            "scaler": self._scaler.state_dict(),
            "clipping": self._clipping.state_dict(),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what another run has counted."""
        self.num_steps, self.stopped = state["num_steps"], state["stopped"]
        self._terms = [tuple(terms) for terms in state["terms"]]
        self.random_numbers = state.get("random_numbers", [])
        self._scaler.load_state_dict(state["scaler"])
        self._clipping.load_state_dict(state["clipping"])
        self.history.load_state_dict(state["history"])
