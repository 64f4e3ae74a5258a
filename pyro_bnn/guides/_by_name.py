"""A guide as a mapping from the names of sites to their posteriors."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator

from ..posteriors import Posterior


class ByName:
    """Reads the posteriors that a guide has so far."""

    _by_name: dict[str, Posterior]  # modules inside `posteriors`

    def __getitem__(self, name: str) -> Posterior:
        """The posterior of a site."""
        if name not in self._by_name:
            raise KeyError(f"no posterior for `{name}`; there are {list(self._by_name)}")
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        """The names of the sites that have posteriors so far."""
        return iter(self._by_name)

    def __len__(self) -> int:
        """The number of sites that have posteriors so far."""
        return len(self._by_name)

    def __bool__(self) -> bool:
        return True  # also before the first call, as any module is

    def items(self) -> ItemsView[str, Posterior]:
        """Names of sites and their posteriors, as of a dictionary."""
        return self._by_name.items()
