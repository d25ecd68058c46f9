"""Named points at which a process can be told to kill itself, for tests of what a crash leaves behind.

With `CRASH_AT=<point>:<n>` (refused in production) a process ends by SIGKILL when it passes the point for the nth
time: nothing is flushed, finished or reported. The setting is read once, at start; without it, passing a point does
nothing, and no request can change that.
"""

import os
import signal
from typing import Literal, get_args

CrashPoint = Literal[
    "idempotency.reserved",  # the key is taken, nothing is decided
    "append.committed",  # a batch is in the log, and none of its callers knows
    "append_in.appended",  # an event and what it tells of are in a transaction that still holds the log
    "command.answered",  # the command is done, and the client does not know
    "projector.applied",  # a batch is in the tables, the checkpoint not moved, nothing committed
    "projector.moved",  # as before, with the checkpoint moved
    "build.begun",  # new tables are there, and empty
    "build.chunk_filled",  # a part of the log is in them, and marked as done
    "build.counted",  # all of it is, and none of them is live
    "build.swapped",  # a projection's new tables are live, those of others are not
    "subscriber.forwarded",  # a workflow was started or signalled, the checkpoint not moved
    "webhook.queued",  # a webhook is kept, its workflow not started
    "order_status.reported",  # a worker is to tell how a payment stands: charged, and nobody knows
    "order_status.recorded",  # it is on record, and Temporal does not know
    "refund_status.reported",
    "refund_status.recorded",
    "webhook.sent",  # the merchant was told, and it is not on record
    "webhook.recorded",  # it is on record, and Temporal does not know
    "processor_event.kept",  # what a processor sent is kept, and nothing follows from it yet
    "processor_event.recorded",  # what follows is on record, and not noted with the event
    "erasure.mentions_erased",  # texts that name a customer are erased, all keys are there
    "erasure.key_dropped",  # a stream's key is dropped, its copies are there
    "erasure.copies_erased",  # they are erased, and the stream is still found by its customer
    "sandbox.charged",  # the sandbox has charged, and its answer is lost
    "sandbox.operated",  # it has captured, voided or refunded, and its answer is lost
]

_armed: CrashPoint | None = None
_left = 0


class NoSuchCrashPoint(ValueError):
    """Not of the form `<point>:<n>`, or of no point that there is."""


def parse(text: str) -> tuple[CrashPoint, int]:
    """A point and how often it is passed, the last time included.

    Raises:
        NoSuchCrashPoint.
    """
    name, _, count = text.partition(":")
    for point in get_args(CrashPoint):
        if point == name and count.isdecimal() and int(count) > 0:
            return point, int(count)
    raise NoSuchCrashPoint(f"write it as <point>:<n>, with one of {', '.join(get_args(CrashPoint))}")


def arm(point: CrashPoint, *, passings: int) -> None:
    """Have this process die at a point, as it passes it for the nth time."""
    global _armed, _left  # of the process, as its death is
    _armed, _left = point, passings


def crash_point(point: CrashPoint) -> None:
    """Pass a point."""
    if _armed is not None:
        _die_if_due(point)


def _die_if_due(point: CrashPoint) -> None:
    global _left  # noqa: PLW0603
    if point == _armed:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
