"""Named points at which a process can be told to kill itself, for tests of what a crash leaves behind.

With `CRASH_AT=<point>:<n>` (refused in production) a process ends by SIGKILL when it passes the point for the nth
time: nothing is flushed, finished or reported. The setting is read once, at start; without it, passing a point does
nothing, and no request can change that.
"""

import os
import signal
from typing import Literal, get_args

CrashPoint = Literal[
    "idempotency.reserved",  # the key is reserved, nothing decided yet
    "append.committed",  # a batch is in the log, its callers do not know yet
    "append_in.appended",  # an event and a change of tables are in a transaction that still holds the log's lock
    "command.answered",  # the command is done, the response not sent
    "projector.applied",  # a batch is in the tables, the checkpoint not moved, nothing committed
    "projector.moved",  # as before, with the checkpoint moved
    "build.begun",  # new tables exist, and are empty
    "build.chunk_filled",  # a part of the log is applied to them, and marked as done
    "build.counted",  # all of the log is applied to them, none is live
    "build.swapped",  # one projection's new tables are live, those of others are not
    "subscriber.forwarded",  # a workflow was started or signalled, the checkpoint not moved
    "webhook.queued",  # a webhook is stored, its workflow not started
    "order_status.reported",  # the processor has charged, a worker is about to report it
    "order_status.recorded",  # the report is recorded, Temporal does not know that the activity is done
    "refund_status.reported",  # as `order_status.reported`, of a refund
    "refund_status.recorded",  # as `order_status.recorded`, of a refund
    "webhook.sent",  # a webhook was sent, the attempt not recorded
    "webhook.recorded",  # the attempt is recorded, Temporal does not know that the activity is done
    "processor_event.kept",  # a processor's event is stored, not yet applied
    "processor_event.recorded",  # it is applied to the order, its effect not yet stored beside it
    "erasure.mentions_erased",  # texts that mention a customer are erased, all keys still exist
    "erasure.key_dropped",  # a stream's key is dropped, copies of its data still exist
    "erasure.copies_erased",  # the copies are erased, the stream can still be found by its customer
    "sandbox.charged",  # the sandbox has charged, its response is lost
    "sandbox.operated",  # the sandbox has captured, voided or refunded, its response is lost
]

_armed: CrashPoint | None = None
_left = 0


class NoSuchCrashPoint(ValueError):
    """Not of the form `<point>:<n>`, or the point does not exist."""


def parse(text: str) -> tuple[CrashPoint, int]:
    """The point, and the pass at which the process dies, from 1.

    Raises:
        NoSuchCrashPoint.
    """
    name, _, count = text.partition(":")
    for point in get_args(CrashPoint):
        if point == name and count.isdecimal() and int(count) > 0:
            return point, int(count)
    raise NoSuchCrashPoint(f"write it as <point>:<n>, with one of {', '.join(get_args(CrashPoint))}")


def arm(point: CrashPoint, *, passings: int) -> None:
    """Make this process kill itself when it passes a point for the nth time."""
    global _armed, _left  # there is one per process
    _armed, _left = point, passings


def crash_point(point: CrashPoint) -> None:
    """Pass a point; the process dies here if it was armed for it."""
    if _armed is not None:
        _die_if_due(point)


def _die_if_due(point: CrashPoint) -> None:
    global _left  # noqa: PLW0603
    if point == _armed:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
