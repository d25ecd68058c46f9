"""Errors of the event store."""

from uuid import UUID


class VersionConflict(Exception):
    """The stream has events that the decision did not take into account; nothing was appended."""

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
    """An event of the stream cannot be read by this code: a later version wrote it, or it was altered.

    The exception's cause says which. A process of that later version can read it.
    """

    def __init__(self, stream_id: UUID, *, version: int, topic: str) -> None:
        super().__init__(f"{topic}, version {version} of stream {stream_id}, cannot be read by this code")
        self.stream_id = stream_id
        self.version = version
        self.topic = topic


class StoreUnavailable(Exception):
    """The database is down, or too many appends are waiting; nothing was appended."""


class OutcomeUnknown(Exception):
    """The database was lost between an append and its answer, and did not come back in time: the outcome is unknown."""
