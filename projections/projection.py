"""The definition of a projection, and the list of all.

Every module of this package with a `PROJECTION` adds one: see docs/projections.md.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache

import payloops.projections
from payloops.projections.patches import Table
from payloops.projections.totals import Totals


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Tables that share a checkpoint.

    Attributes:
        name: of the checkpoint.
        families: first parts of the topics that it needs (`payment` of `payment.captured`). Events of these families
            that cannot be applied are parked; all others are ignored.
        totals: tables of sums over `tables`.
        version: to be increased with each change of what facts do to the tables. A projector of a newer version builds
            new tables beside the live ones, and then takes over.
    """

    name: str
    families: frozenset[str]
    tables: tuple[Table, ...]
    totals: tuple[Totals, ...] = ()
    version: int = 1

    @property
    def table_names(self) -> list[str]:
        """All tables that it writes, in the order in which they can be filled."""
        return [table.name for table in self.tables] + [each.name for each in self.totals]


class UnknownProjection(Exception):
    """There is no projection of that name."""

    def __init__(self, name: str) -> None:
        known = ", ".join(each.name for each in all_projections())
        super().__init__(f"no projection {name}; there are {known}")
        self.name = name


@cache
def all_projections() -> tuple[Projection, ...]:
    """Every projection of this version, by name."""
    modules = [
        importlib.import_module(f"{payloops.projections.__name__}.{each.name}")
        for each in pkgutil.iter_modules(payloops.projections.__path__)
    ]
    found = [module.PROJECTION for module in modules if hasattr(module, "PROJECTION")]
    return tuple(sorted(found, key=lambda each: each.name))


def find_projections(names: list[str]) -> tuple[Projection, ...]:
    """The projections with these names; all if no name is given.

    Raises:
        UnknownProjection: there is no projection with one of the names.
    """
    known = {each.name: each for each in all_projections()}
    for name in names:
        if name not in known:
            raise UnknownProjection(name)
    return tuple(known[name] for name in dict.fromkeys(names)) or all_projections()
