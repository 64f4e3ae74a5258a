"""States of posteriors, which are checked whole before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .._validation import size_mismatch


class ChecksStates:
    """Loads a state only if it is one of this posterior, with its mask of pruned weights."""

    @property
    def family(self) -> str:
        """Tells what the parameters mean, since those of one family are no state of another."""
        return type(self).__name__

    def load_errors(self: Any, state: Mapping[str, Any], prefix: str) -> list[str]:
        """Why a state, whose keys start with ``prefix``, is none of this posterior."""
        own = {prefix + key: value for key, value in self._parameters.items() if value is not None}
        errors = [size_mismatch(key, own[key], state[key]) for key in own if key in state]
        kept = state.get(prefix + "kept")
        if kept is not None:
            try:
                self.check_mask(kept)
            except (TypeError, ValueError) as error:
                errors.append(f"the mask `{prefix}kept` cannot be loaded: {error}")
            if not own.keys() <= state.keys():
                errors.append(f"the mask `{prefix}kept` is without the parameters that it is for")
        return [error for error in errors if error]

    def _load_from_state_dict(
        self: Any,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        errors = self.load_errors(state_dict, prefix)
        if errors:
            error_msgs += errors
            return
        if all(prefix + key in state_dict for key in self._parameters):
            kept = state_dict.get(prefix + "kept")
            device = next((p.device for p in self.parameters()), None)
            self.kept = None if kept is None else torch.empty_like(kept, device=device)
        super()._load_from_state_dict(  # type: ignore[misc]
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
