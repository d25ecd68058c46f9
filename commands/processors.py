"""The processors, and the table `processor_configs`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID, uuid5

from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

Processor = Literal["stripe", "razorpay"]
PROCESSORS: tuple[str, ...] = get_args(Processor)
CAPTURES_BY_ITSELF: frozenset[str] = frozenset({"razorpay"})
"""Processors that capture an automatic payment without being asked, and always the whole amount that was authorized."""

LONGEST_REFERENCE = 500
"""Characters. Stripe's have up to 255."""
CUT = UUID("0a1c2b52-6f0e-5f3e-8d59-51a0c2f7a9b4")
"""Namespace of the ends of references that are longer."""


def recorded_reference(reference: str) -> str:
    """A processor's reference as it is recorded. If it is too long, which would not fit into the indexes, its end is
    replaced by a hash of the whole, so that different ones stay different.
    """
    if len(reference) <= LONGEST_REFERENCE:
        return reference
    digest = str(uuid5(CUT, reference))  # a UUID is never taken for a card number
    return f"{reference[: LONGEST_REFERENCE - len(digest)]}{digest}"


class ProcessorUnknown(Exception):
    """The platform has no processor of this name."""

    def __init__(self) -> None:
        super().__init__(f"Unknown processor: use one of {', '.join(PROCESSORS)}")


class ProcessorNotConfigured(Exception):
    """The merchant has not configured this processor."""

    def __init__(self, *, merchant_id: UUID, processor: str) -> None:
        super().__init__(f"merchant {merchant_id} has no {processor}")
        self.merchant_id = merchant_id
        self.processor = processor


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorConfig:
    """A merchant's processor, without its credentials. A lower priority number is tried first."""

    id: UUID
    processor: str
    enabled: bool
    priority: int
    test_mode: bool
    created_at: datetime
    updated_at: datetime


async def list_processors(pool: AsyncConnectionPool, *, merchant_id: UUID) -> list[ProcessorConfig]:
    """All of the merchant's processors, enabled or not, by priority."""
    async with (
        pool.connection() as connection,
        connection.cursor(row_factory=class_row(ProcessorConfig)) as cursor,
    ):
        await cursor.execute(
            "SELECT id, processor, enabled, priority, test_mode, created_at, updated_at"
            " FROM processor_configs WHERE merchant_id = %s ORDER BY priority, processor",
            (merchant_id,),
        )
        return await cursor.fetchall()
