"""What LSTMs take, and how they run sequences."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._variational import VariationalLayer
from ._arguments import FeatureArguments
from ._mixture_base import BaseMixtureLayer_


class Sequences(VariationalLayer):
    """One layer of an LSTM, whose weights are drawn once for a sequence.

    Its parameters are in ``ih`` and ``hh``, as if these were two linear layers.
    """

    def _randomize(self, *args: Any) -> None:
        for name in ("_flat_weights", "_flat_weight_refs"):  # torch's second list of parameters
            vars(self).pop(name, None)
        self.ih, self.hh = nn.Module(), nn.Module()
        super()._randomize(*args)

    @property
    def in_features(self: Any) -> int:
        """Size of an input at one step."""
        return self.input_size

    @property
    def out_features(self: Any) -> int:
        """Size of the hidden state."""
        return self.hidden_size

    def _name(self, key: str, part: str) -> str:
        kind, side, _ = key.split("_")
        return f"{side}.{part}_{kind}"

    def _prior_name(self, key: str, part: str) -> str:
        kind, side, _ = key.split("_")
        return f"{side}.prior_{kind}_{part}"

    def forward(
        self: Any,
        X: Tensor,  # noqa: N803
        hidden_states: tuple[Tensor, Tensor] | None = None,
        return_kl: bool = True,
    ) -> Any:
        """Runs the sequences.

        Args:
            X: shape ``(batch, steps, in_features)``.
            hidden_states: ``(h, c)``, each of shape ``(batch, out_features)``, or
                ``(batch, steps, out_features)`` as returned, of which the last step counts.

        Returns:
            ``h, (h, c), kl`` with ``h`` and ``c`` of shape ``(batch, steps, out_features)``, or
            ``h, (h, c)`` without ``return_kl``.
        """
        if self._is_drawn:
            return self._run(X, hidden_states)
        posteriors = self._distributions()
        output = self._output(self._draws(posteriors), X, hidden_states)
        return (*output, self._kl(posteriors)) if return_kl and not self.dnn_to_bnn_flag else output

    def _run(self: Any, X: Tensor, states: Any) -> Any:  # noqa: N803
        if X.dim() != 3:
            raise ValueError(
                f"`X` has shape {tuple(X.shape)}, but must be `(batch, steps, in_features)`"
            )
        if states is None:
            h = c = X.new_zeros(len(X), self.hidden_size)
        else:
            h, c = (s[:, -1] if s.dim() == 3 else s for s in states)
        hidden = self._hidden(X, h.unsqueeze(0), c.unsqueeze(0))
        # Torch's kernels keep the cell states of the steps between to themselves, but the gates
        # follow from the hidden states.
        before = torch.cat([h.unsqueeze(1), hidden[:, :-1]], 1)
        bias = (self.bias_ih_l0, self.bias_hh_l0) if self.bias else (None, None)
        gates = F.linear(X, self.weight_ih_l0, bias[0]) + F.linear(
            before, self.weight_hh_l0, bias[1]
        )
        i, f, g, _ = gates.chunk(4, -1)
        update, keep = i.sigmoid() * g.tanh(), f.sigmoid()
        cells = []
        for step_update, step_keep in zip(update.unbind(1), keep.unbind(1), strict=True):
            c = torch.addcmul(step_update, step_keep, c)
            cells.append(c)
        return hidden, (hidden, torch.stack(cells, 1))

    @torch.compiler.disable  # which does not take torch's recurrent kernels in
    def _hidden(self: Any, X: Tensor, h: Tensor, c: Tensor) -> Tensor:  # noqa: N803
        self.check_forward_args(X, (h, c), None)
        weights = self._flat_weights
        return torch.lstm(X, (h, c), weights, self.bias, 1, 0.0, self.training, False, True)[0]

    def _returns_output(self) -> bool:
        return False  # but the states of all steps

    @property
    def _flat_weights(self: Any) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]


class LSTMArguments(Sequences, FeatureArguments):
    OPTIONS: ClassVar[dict[str, Any]] = {"batch_first": True}


class LSTMMixtureArguments(LSTMArguments, BaseMixtureLayer_):
    pass
