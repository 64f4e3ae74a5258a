"""Learning rates of a guide's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from .._validation import check_positive
from ..posteriors._groups import parameter_groups
from ._sites import model_parameters

# Guides and the parameters of their groups, until a loss has been looked at.
GROUPED: WeakKeyDictionary[Any, set[int]] = WeakKeyDictionary()


class LearningRates:
    """Rates of scales apart from all else."""

    _is_grouped = False

    def parameter_groups(self: Any, lr: float, scale_lr: float) -> list[dict[str, Any]]:
        r"""The parameters of guide and model in groups for a torch optimizer.

        Scales move by rates apart from all else: :math:`\rho`, of which they are made, has far to
        go where a mean has not.

        Args:
            lr: learning rate of the means, of the other parameters of posteriors, and of the
                model's parameters: those that are deterministic, and those of priors.
            scale_lr: learning rate of the scales of posteriors.

        Returns:
            Groups with ``params`` and ``lr``, which have every trainable parameter of the
            posteriors and of the modules that the model is or refers to, once. Frozen ones
            (``requires_grad=False``) are left out.

        Raises:
            ValueError: if a rate is not positive and finite; if the guide has no posteriors yet,
                or has been unpickled without its model. In the first call of the guide, if it finds
                sites that the groups are missing: call it once before.

        Example:
            >>> net = BayesianLinear(3, 2)
            >>> groups = AutoLRT(net).parameter_groups(lr=1e-2, scale_lr=1e-1)
            >>> optimizer = torch.optim.Adam(groups)
        """
        return grouped([self], self.parameters(), lr, scale_lr)

    def optim_args(
        self: Any, lr: float, scale_lr: float, **kwargs: Any
    ) -> Callable[[str], dict[str, Any]]:
        """The arguments of a ``pyro.optim`` optimizer for each parameter.

        Args:
            lr, scale_lr: learning rates as for :meth:`parameter_groups`.
            kwargs: other arguments of the optimizer, the same for all parameters.

        Returns:
            A function of a parameter's name in Pyro's store. It knows sites that a later run
            reveals, and parameters by ``pyro.param``, which have the rate ``lr``.

        Raises:
            ValueError: if a rate is not positive and finite.

        Example:
            >>> guide = AutoLRT(BayesianLinear(3, 2))
            >>> optimizer = pyro.optim.Adam(guide.optim_args(lr=1e-2, scale_lr=1e-1))
        """
        return rates_by_name([self], lr, scale_lr, kwargs)


def grouped(
    guides: list[Any], parameters: Iterable[Tensor], lr: float, scale_lr: float
) -> list[dict[str, Any]]:
    """The given parameters and those of the models of guides, as ``parameter_groups`` has them."""
    for guide in guides:
        if not guide._by_name:
            raise ValueError(
                "this guide has no posteriors yet, since only a run of the model reveals its "
                "sites: call it once, `guide(*args)`, before `parameter_groups`"
            )
        if guide._model is None:
            raise ValueError(
                "this guide was unpickled without its model, whose parameters need an optimizer, "
                f"too: build it by `{type(guide).__name__}(model)` and load its `state_dict`"
            )
    posteriors = [posterior for guide in guides for posterior in guide._by_name.values()]
    of_models = [p for guide in guides for p in model_parameters(guide._model[0])]
    groups = parameter_groups([*parameters, *of_models], posteriors, lr, scale_lr)
    for guide in guides:
        guide._is_grouped = True
        GROUPED[guide] = {id(p) for group in groups for p in group["params"]}
    return groups


def rates_by_name(
    guides: list[Any], lr: float, scale_lr: float, others: dict[str, Any]
) -> Callable[[str], dict[str, Any]]:
    """The arguments of ``pyro.optim`` for a parameter, as ``optim_args`` has them."""
    check_positive(lr=lr, scale_lr=scale_lr)

    def args(name: str) -> dict[str, Any]:
        posteriors = [posterior for guide in guides for posterior in guide._by_name.values()]
        scales = {p._pyro_get_fullname(key) for p in posteriors for key in p.scales()}
        return others | {"lr": scale_lr if name in scales else lr}

    return args
