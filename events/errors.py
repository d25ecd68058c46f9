"""Errors of the event store."""

from uuid import UUID


class VersionConflict(Exception):
    """The stream has newer events than the decision was based on; nothing was appended."""

    def __init__(self, stream_id: UUID) -> None:
        super().__init__(f"stream {stream_id} has moved on")
        self.stream_id = stream_id


class ReceiptConflict(Exception):
    """The idempotency key was answered or taken over by another request; nothing was appended."""


class StreamNotFound(Exception):
    """No such stream."""

    def __init__(self, stream_id: UUID) -> None:
        super().__init__(f"no stream {stream_id}")
        self.stream_id = stream_id


class StreamUnreadable(Exception):
    """This code cannot decode an event of the stream: a later version wrote it, or it was altered (see `__cause__`).

    If a later version is running beside this one, its processes can read the stream.
    """

    def __init__(self, stream_id: UUID, *, version: int, topic: str) -> None:
        super().__init__(f"{topic}, version {version} of stream {stream_id}, cannot be read by this code")
        self.stream_id = stream_id
        self.version = version
        self.topic = topic


class StoreUnavailable(Exception):
    """The database is down, or too many appends are waiting; nothing was appended."""


class OutcomeUnknown(Exception):
    """The connection was lost before the append was answered, and the log could not be read in time to check it."""
