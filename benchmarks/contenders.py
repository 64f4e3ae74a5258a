"""Who is measured on a workload: libraries, posteriors and forms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import networks
import pyro
from measure import Step
from networks import bayesian, random
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from steps import predict, predict_in_loop, train, train_elbo, train_svi, train_tyxe
from torch import nn
from workloads import Workload

from pyro_bnn import guides
from pyro_bnn.infer import Predictive, TraceKL_ELBO

GUIDES: dict[str, Callable[..., Any]] = {
    "reparameterization": guides.AutoReparameterization,
    "flipout": guides.AutoFlipout,
    "LRT": guides.AutoLRT,
    "radial": guides.AutoRadial,
    "mixture": guides.AutoMixture,
}
PEERS: list[tuple[str, str, Callable[[nn.Module], nn.Module]]] = [
    (
        "bayesian-torch",
        "reparameterization",
        partial(networks.bayesian_torch, "reparameterization"),
    ),
    ("bayesian-torch", "flipout", partial(networks.bayesian_torch, "flipout")),
    ("bensemble", "LRT", networks.bensemble),
    ("torch-uncertainty", "reparameterization", networks.torch_uncertainty),
]


@dataclass(frozen=True)
class Contender:
    """Who takes part, and how: ``build(workload, device)`` makes a step."""

    library: str
    posterior: str
    form: str
    build: Callable[[Workload, str], Step]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.library, self.posterior, self.form)))


def contenders(workload: Workload) -> list[Contender]:
    """Those of a workload, what they are compared with first."""
    everyone = _predicting() if workload.num_samples else _training()
    if not workload.has_optimizer:
        everyone = (c for c in everyone if not re.search("SVI|fused", c.form))
    return [c for c in everyone if re.search(workload.contenders, c.name)]


def _training() -> Iterator[Contender]:
    yield from _plain("torch", "deterministic", networks.deterministic, "")
    for name, guide in GUIDES.items():
        yield from _plain("pyro_bnn", name, partial(networks.standalone, guide), "standalone")
        if name != "LRT":  # which bayesian-torch has not
            layers = partial(networks.layers_of_ours, name)
            yield Contender("pyro_bnn", name, "layers", partial(train, layers))
        yield from _pyro("pyro_bnn", name, (bayesian, guide, TraceKL_ELBO()))
    for library, posterior, network in PEERS:
        yield Contender(library, posterior, "", partial(train, network))
    for guide in (AutoNormal, AutoDiagonalNormal):
        yield from _pyro("Pyro", guide.__name__, (random, guide, Trace_ELBO()))
    for name in ("reparameterization", "flipout", "LRT"):
        yield Contender("TyXe", name, "SVI.step", partial(train_tyxe, name))


def _plain(
    library: str, posterior: str, network: Callable[[nn.Module], nn.Module], form: str
) -> Iterator[Contender]:
    """A module of plain torch, also with a faster optimizer, and compiled."""
    yield Contender(library, posterior, form, partial(train, network))
    if posterior in ("radial", "mixture"):
        return
    for suffix, build in (
        ("fused Adam", partial(train, network, fused=True)),
        ("compiled", partial(train, network, compiled=True)),
    ):
        yield Contender(library, posterior, ", ".join(filter(None, (form, suffix))), build)


def _pyro(library: str, posterior: str, inference: tuple[Any, Any, Any]) -> Iterator[Contender]:
    """A network, guide and ELBO, with a torch optimizer and with one of Pyro's."""
    yield Contender(library, posterior, "ELBO module", partial(train_elbo, *inference))
    yield Contender(library, posterior, "SVI.step", partial(train_svi, *inference))


def _predicting() -> Iterator[Contender]:
    loop = partial(pyro.infer.Predictive, parallel=False)
    ours = partial(predict, bayesian, guides.AutoLRT)
    theirs = partial(predict, random, AutoNormal)
    yield Contender("Pyro", "LRT of pyro_bnn", "Predictive", partial(ours, loop))
    yield Contender("Pyro", "AutoNormal", "Predictive", partial(theirs, loop))
    yield Contender("pyro_bnn", "LRT", "Predictive", partial(ours, Predictive))
    yield Contender(
        "pyro_bnn", "LRT", "Predictive, loop", partial(ours, partial(Predictive, parallel=False))
    )
    for library, posterior, network in PEERS:
        plain = lambda net, network=network: network(net).net
        yield Contender(library, posterior, "loop", partial(predict_in_loop, plain))
    yield Contender("torch", "by hand", "loop", partial(predict_in_loop, networks.ByHand))
