"""Saved states of guides, which are checked as a whole before they change anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._validation import plain_state, size_mismatch
from ..posteriors import ConstrainedPosterior, Posterior
from ._late import check_no_ddp, watched

_EXTRA = "_extra_state"
_SITES = "posteriors."
_LOC = ".loc_unconstrained"


class SavedWhole:
    """Mixin for guides: the families of the posteriors are saved, and a load is whole or none."""

    def get_extra_state(self: Any) -> Tensor:
        return _site_table(self)

    def set_extra_state(self, state: Any) -> None:
        """Does nothing: the state was checked before anything of it was loaded."""

    def load_state_dict(
        self: Any, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads what :meth:`state_dict` saved, whole or, if there is an error, not at all.

        The families of the posteriors are part of a state (of all but those of version 0.1.0).
        Sites that only a run reveals are made anew; a mask of pruned weights goes with the
        parameters of its site.

        Args:
            state_dict, assign: as for ``torch.nn.Module``.
            strict: whether missing and unexpected keys are errors.

        Raises:
            RuntimeError: if a site was saved as another family or shape, a mask is not boolean or
                of another shape than its weight; if ``strict``, for missing and unexpected keys.
        """
        check_load(self, state_dict, strict)
        return super().load_state_dict(state_dict, strict, assign)  # type: ignore[misc]

    def _load_from_state_dict(
        self: Any, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        _, _, missing_keys, _, error_msgs = args
        load = _planned_load(self, state_dict, prefix)
        if load.errors:
            error_msgs += load.errors
            for key in [key for key in state_dict if key.startswith(prefix)]:
                del state_dict[key]
            state_dict.update(_own_state(self, prefix))  # which the posteriors take next
            return
        check_no_ddp(self, load.new)
        with watched(self):
            for name, posterior in load.new.items():
                self._attach(name, posterior)
        start = prefix + "posteriors."
        self._is_loaded = self._is_loaded or any(key.startswith(start) for key in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]
        if prefix + "_extra_state" in missing_keys:  # a state of version 0.1.0
            missing_keys.remove(prefix + "_extra_state")

    def _blank(self: Any, name: str, loc: Tensor, family: str | None) -> Posterior:
        """A posterior of a site whose prior is not known yet, for a saved state."""
        device = next((p.device for p in self.parameters()), loc.device)
        loc = torch.zeros_like(loc, device=device)
        factory = self._override(name)
        is_weight = name in self._weights or (
            loc.dim() > 1
            if family is None
            else not family.startswith(ConstrainedPosterior.__name__)
        )
        if factory is None and is_weight:
            factory = self._usual_posterior()
        if factory is None:
            return ConstrainedPosterior(loc, 1.0, support=None, family=family)
        return factory(loc, 1.0)


@dataclass
class _Load:
    """What a state would do to a guide.

    Attributes:
        new: posteriors of sites that only a run of the model reveals, to be attached.
        missing: keys that the state lacks.
        unexpected: keys that the guide has no place for.
        errors: why the state cannot be loaded, whether ``strict`` or not.
    """

    new: dict[str, Posterior] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def _site_table(guide: Any) -> Tensor:
    """The family of each posterior, and whether its site is an attribute of the model's modules.

    As bytes, since formats such as safetensors have tensors only.
    """
    sites = {name: (guide[name].family, name in guide._weights) for name in guide}
    return torch.tensor(list(json.dumps(sites).encode()), dtype=torch.uint8, device="cpu")


def _planned_load(guide: Any, state: Mapping[str, Any], prefix: str) -> _Load:
    """Checks a state, whose keys start with ``prefix``, against a guide."""
    load, start = _Load(), prefix + _SITES
    table = _read(state.get(prefix + _EXTRA), load)  # states of version 0.1.0 have none
    locs = {
        k[len(start) : -len(_LOC)]: k for k in state if k.startswith(start) and k.endswith(_LOC)
    }
    for name in locs.keys() - set(guide):
        loc = state[locs[name]]
        if _may_be_new(guide, name, table) and isinstance(loc, Tensor):
            load.new[name] = guide._blank(name, loc, (table or {}).get(name, [None])[0])
    known = set()
    for name, posterior in {**{n: guide[n] for n in guide}, **load.new}.items():
        path = f"{start}{name}."
        keys = [path + key for key in posterior._parameters]
        known |= {*keys, path + "kept"}
        load.missing += [key for key in keys if key not in state]
        saved = (table or {}).get(name, [posterior.family])[0]
        if saved != posterior.family:
            load.errors.append(
                f"`{name}` was saved as a {saved}, and is a {posterior.family} here: build the "
                "guide by the class and the `sites` of the one that was saved"
            )
        load.errors += posterior.load_errors(state, path)
    known.add(prefix + _EXTRA)
    load.unexpected += [key for key in state if key.startswith(prefix) and key not in known]
    return load


def check_load(root: nn.Module, state: Mapping[str, Any], strict: bool) -> None:
    """Checks a state against a module and the guides in it.

    Raises:
        RuntimeError: if ``root.load_state_dict`` would; nothing has changed then.
    """
    whole, prefixes = _Load(), []
    sites: set[str] = set()
    for path, module in root.named_modules():
        if isinstance(module, SavedWhole):
            prefixes.append(path + "." if path else "")
            sites |= set(cast(Any, module))
            load = _planned_load(module, state, prefixes[-1])
            for name in ("missing", "unexpected", "errors"):
                getattr(whole, name).extend(getattr(load, name))
    outside = lambda keys: [key for key in keys if not key.startswith(tuple(prefixes))]
    own = root.state_dict(keep_vars=True)
    whole.missing += [key for key in outside(own) if key not in state]
    whole.unexpected += [key for key in outside(state) if key not in own]
    shared = (key for key in outside(own) if key in state)
    whole.errors += [e for key in shared if (e := size_mismatch(key, own[key], state[key]))]
    if strict:
        whole.errors += [plain_state(random)] if (random := sites & set(whole.unexpected)) else []
        whole.errors += _listed("Unexpected", whole.unexpected) + _listed("Missing", whole.missing)
    if whole.errors:
        raise RuntimeError(
            f"Error(s) in loading state_dict for {type(root).__name__}, which is as before:\n\t"
            + "\n\t".join(whole.errors)
        )


def _own_state(guide: Any, prefix: str) -> dict[str, Tensor]:
    """What a guide has now, under the keys that a state has it under."""
    return {
        f"{prefix}{_SITES}{name}.{key}": value
        for name in guide
        for tensors in (guide[name]._parameters, guide[name]._buffers)
        for key, value in tensors.items()
        if value is not None
    }


def _read(table: Any, load: _Load) -> dict[str, Any] | None:
    if table is None:
        return None
    try:
        return dict(json.loads(bytes(table.to(torch.uint8).tolist())))
    except (AttributeError, TypeError, ValueError):
        load.errors.append(f"`{_EXTRA}` of the state is not that of a guide of pyro_bnn")
        return None


def _may_be_new(guide: Any, name: str, table: dict[str, Any] | None) -> bool:
    """Whether a site is one that the next run of the guide's model may reveal."""
    if guide.prototype_trace is not None:
        return False
    if name in guide._weights or table is None:
        return True
    # A guide that could read sites off modules would have read those that were attributes.
    return name in table and not (table[name][1] and guide._weights)


def _listed(kind: str, keys: Iterable[str]) -> list[str]:
    quoted = ", ".join(f'"{key}"' for key in keys)
    return [f"{kind} key(s) in state_dict: {quoted}."] if quoted else []
