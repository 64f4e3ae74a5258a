"""Learning rates of a guide's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._validation import check_positive
from ..posteriors._groups import parameter_groups
from ._sites import model_parameters


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
        if not self._by_name:
            raise ValueError(
                "this guide has no posteriors yet, since only a run of the model reveals its "
                "sites: call it once, `guide(*args)`, before `parameter_groups`"
            )
        if self._model is None:
            raise ValueError(
                "this guide was unpickled without its model, whose parameters need an optimizer, "
                f"too: build it by `{type(self).__name__}(model)` and load its `state_dict`"
            )
        parameters = [*self.parameters(), *model_parameters(self._model[0])]
        groups = parameter_groups(parameters, self._by_name.values(), lr, scale_lr)
        self._is_grouped = True
        return groups

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
        check_positive(lr=lr, scale_lr=scale_lr)

        def args(name: str) -> dict[str, Any]:
            scales = {
                posterior._pyro_get_fullname(key)
                for posterior in self._by_name.values()
                for key in posterior.scales()
            }
            return kwargs | {"lr": scale_lr if name in scales else lr}

        return args
