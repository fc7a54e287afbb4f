"""Named plug-ins: every module of a package, and entry points of other distributions."""

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from glscl.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to plug-ins of one kind, ``what`` in words for messages ("head").

    Modules of ``package`` and third-party entry points of ``group`` register themselves when they are imported; that
    happens on the first look-up, so that adding a plug-in is writing one file.
    """

    def __init__(self, what: str, package: str, group: str) -> None:
        self.what = what
        self.package = package
        self.group = group
        self._entries: dict[str, T] = {}
        self._loaded = False

    def add(self, name: str, entry: T) -> None:
        """Register an entry. Raises `UserError`: the name is taken by something else."""
        if name in self._entries and self._entries[name] is not entry:
            raise UserError(f"two plug-ins register the {self.what} '{name}'; rename one of them")
        self._entries[name] = entry

    def entries(self) -> dict[str, T]:
        """Every name with its entry, sorted. Raises `UserError`: an entry point cannot be imported."""
        if not self._loaded:
            self._loaded = True
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            for point in entry_points(group=self.group):
                try:
                    point.load()
                except Exception as error:
                    raise UserError(
                        f"the {self.what} plug-in '{point.name}' ({point.value}) does not import: {error}; "
                        "mend or uninstall the package that brings it"
                    ) from error
        return dict(sorted(self._entries.items()))

    def get(self, name: str) -> T:
        """Look an entry up. Raises `UserError`: nothing has that name."""
        known = self.entries()
        if name not in known:
            raise UserError(f"unknown {self.what} '{name}'{did_you_mean(name, known)} (known: {', '.join(known)})")
        return known[name]
