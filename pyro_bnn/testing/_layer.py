"""The contract of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ..compat import Standalone
from ..guides import AutoFlipout, AutoLRT, AutoPosterior, AutoReparameterization
from ..infer import Predictive, TraceKL_ELBO
from ._statistics import copies, require, require_gradients, seeded

_GUIDES = (AutoReparameterization, AutoFlipout, AutoLRT)


def check_layer(
    make: Callable[[], nn.Module],
    *inputs: Tensor,
    guides: tuple[Callable[..., AutoPosterior], ...] = _GUIDES,
) -> None:
    """Checks that a layer or network with random weights does what guides and ELBOs need.

    Guides find its sites without a run; each of them is drawn once in a forward pass, and has one
    KL divergence; its output given the weights is the same in Pyro, in
    :class:`~pyro_bnn.compat.Standalone`, for copies and pickles, and for each of the vectorized
    samples of a :class:`~pyro_bnn.infer.Predictive`; every parameter of posteriors gets a gradient,
    also on a second pass.

    Args:
        make: makes the layer, a PyroModule that returns one tensor.
        inputs: what it is called with.
        guides: guides of it, which it is checked under.

    Raises:
        AssertionError: says what is wrong, and under which guide.

    Example:
        >>> check_layer(lambda: BayesianLinear(3, 2), torch.ones(5, 3))
    """
    for kind in guides:
        with seeded():
            net = make()
            guide = kind(net, init_scale=0.1)
            name = getattr(kind, "__name__", repr(kind))
            require(len(guide) > 0, f"{name} finds no sites of {type(net).__name__}")
            _check_sites(net, guide, inputs, name)
            _check_output(net, guide, inputs, name)
            _check_training(net, guide, inputs, name)


def _check_sites(net: nn.Module, guide: AutoPosterior, inputs: Any, name: str) -> None:
    sites = {n for n, _ in poutine.trace(net).get_trace(*inputs).iter_stochastic_nodes()}
    require(sites == set(guide), f"a run samples {sites}, {name} has posteriors for {set(guide)}")
    drawn = poutine.trace(guide).get_trace(*inputs)
    trace = poutine.trace(poutine.replay(net, trace=drawn)).get_trace(*inputs)
    pairs: list[tuple[Any, Any]] = [(drawn.nodes[n]["fn"], trace.nodes[n]["fn"]) for n in sites]
    expected = torch.stack([kl_divergence(q, p).sum() for q, p in pairs]).sum()
    _, kl = Standalone(net, guide)(*inputs)
    torch.testing.assert_close(
        kl, expected, msg=lambda m: f"the KL is not the sum over sites, once each: {m}"
    )


@torch.no_grad()
def _check_output(net: nn.Module, guide: AutoPosterior, inputs: Any, name: str) -> None:
    with guide.shared_draws():
        draws = [guide(*inputs) for _ in range(3)]
    outputs = [poutine.condition(net, draw)(*inputs) for draw in draws]
    same = poutine.condition(net, draws[0])(*inputs)
    torch.testing.assert_close(
        same, outputs[0], msg=lambda m: f"one draw has two outputs under {name}: {m}"
    )
    for other in copies(net):
        torch.testing.assert_close(
            poutine.condition(other, draws[0])(*inputs),
            outputs[0],
            msg=lambda m: f"a copy has another output: {m}",
        )
    samples = {site: torch.stack([draw[site] for draw in draws]) for site in draws[0]}
    predictive = Predictive(net, samples, return_sites=["_RETURN"], parallel=True)
    torch.testing.assert_close(
        predictive(*inputs)["_RETURN"],
        torch.stack(outputs),
        msg=lambda m: f"vectorized over samples, outputs differ: {m}",
    )


def _check_training(net: nn.Module, guide: AutoPosterior, inputs: Any, name: str) -> None:
    wrapped = Standalone(net, guide)
    elbo = TraceKL_ELBO()(net, guide)
    for when in ("in a first pass", "in a second pass"):
        output, kl = wrapped(*inputs)
        (output.square().sum() + kl).backward()
        require_gradients(guide.named_parameters(), f"{when}, under {name}")
        wrapped.zero_grad()
        elbo(*inputs).backward()
        elbo.zero_grad()
