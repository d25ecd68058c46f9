"""Errors while the embedded servers start."""


class NotStarted(Exception):
    """A part did not start. The message is one line: the part, and why."""

    def __init__(self, *, part: str, why: str) -> None:
        super().__init__(f"{part}: {' '.join(why.split())}")
        self.part = part
        self.why = why


class PortLost(NotStarted):
    """Another program took the port between choosing it and binding it. Another port may work."""
