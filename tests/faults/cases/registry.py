"""Where cases are declared."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from faults.world import World

Run = Callable[[World], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    Attributes:
        name: on the command line.
        about: one line.
        run: lets it happen; whatever it raises is wrong, too.
    """

    name: str
    about: str
    run: Run


class Skipped(Exception):
    """The case cannot be run here; the message says what it takes."""


CASES: dict[str, Case] = {}


def case(run: Run) -> Run:
    """A function is a case of its name, with dashes; its docstring's first line says what it is about."""
    name = run.__name__.replace("_", "-")
    assert run.__doc__ is not None
    CASES[name] = Case(name=name, about=run.__doc__.splitlines()[0], run=run)
    return run
