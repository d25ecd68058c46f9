"""Personal data in the first event of a stream: sealed under a key of the stream, erased by deleting the key."""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalKey:
    """A stream's row of `personal_keys`, inserted by the append that begins the stream. Not for logs.

    Attributes:
        key: 32 bytes.
        customer_digest, email_digest: by which all that is held of a customer is found.
    """

    stream_id: UUID
    key: bytes
    customer_digest: bytes | None
    email_digest: bytes | None

    def __repr__(self) -> str:
        return f"PersonalKey(stream_id={self.stream_id})"
