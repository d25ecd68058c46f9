"""The processors, and the table `processor_configs`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

Processor = Literal["stripe", "razorpay"]
PROCESSORS: tuple[str, ...] = get_args(Processor)
CAPTURES_BY_ITSELF: frozenset[str] = frozenset({"razorpay"})
"""Processors that capture an automatic payment without being asked, and always the whole amount that was authorized."""

LONGEST_REFERENCE = 500
"""Characters of a processor's reference that are recorded: a much longer one would not fit into the indexes. Stripe's
have up to 255."""


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
