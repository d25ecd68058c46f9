"""What the event store refuses or cannot do."""

from uuid import UUID


class VersionConflict(Exception):
    """The stream has other events by now than those that the decision was made on; nothing was appended."""

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


class StoreUnavailable(Exception):
    """The database is down, or more appends wait than may; nothing was appended."""


class OutcomeUnknown(Exception):
    """The database went away between the append and its answer, and did not come back in time to be asked."""
