"""What a step refuses: a loss, or gradients, that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.util import torch_item
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from .._gradients import check_gradients
from .._validation import infinite_arguments, nan_arguments


def check_finite(model: Callable[..., Any], model_trace: Trace, args: Any, kwargs: Any) -> None:
    """Refuses a loss of NaN, and one that is infinite if it is to be differentiated."""
    value = torch_item(model_trace.log_prob_sum())
    if math.isfinite(value) or (math.isinf(value) and not torch.is_grad_enabled()):
        return
    sites = [
        name
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample" and not math.isfinite(torch_item(_log_prob_sum(site)))
    ]
    raise ValueError(
        f"the log probability of the sites {sites} is {value} "
        f"({_cause(model, args, kwargs) or 'no argument has NaN or infinite values'}); no "
        "parameter was changed"
    )


def check_leaves(
    model: Callable[..., Any], model_trace: Trace, guide_trace: Trace, args: Any, kwargs: Any
) -> None:
    """Lets the backward pass refuse gradients of the parameters in a step that are not finite."""
    nodes: list[tuple[str, Any]] = [*guide_trace.nodes.items(), *model_trace.nodes.items()]
    terms = (site["log_prob_sum"] for _, site in nodes if site["type"] == "sample")
    term = next((x for x in terms if isinstance(x, Tensor) and x.requires_grad), None)
    if term is not None:
        values = {name: site["value"] for name, site in nodes if site["type"] == "param"}
        held = {n: v.unconstrained() for n, v in values.items() if hasattr(v, "unconstrained")}
        leaves = {name: x for name, x in held.items() if x.is_leaf}
        check_gradients(term, leaves, lambda: _because(_cause(model, args, kwargs)))


def _cause(model: Callable[..., Any], args: Any, kwargs: Any) -> str:
    """The arguments of a model that are not finite."""
    kinds = {"NaN": nan_arguments, "infinite values": infinite_arguments}
    found = {kind: arguments(model, args, kwargs) for kind, arguments in kinds.items()}
    return "; ".join(
        f"{kind} in the arguments {', '.join(names)}" for kind, names in found.items() if names
    )


def _because(cause: str) -> str:
    return f" ({cause})" if cause else ""


def _log_prob_sum(site: Any) -> Tensor:
    """That of one site, where another has the KL divergence of both."""
    return -kl_divergence(site["joint"], site["fn"]) if "joint" in site else site["log_prob_sum"]
