"""Which processor a payment goes to, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from payloops.commands.refusals import InvalidProcessor, NoProcessor

PREFERRED = {"INR": "razorpay"}
PREFERRED_ELSEWHERE = "stripe"


@dataclass(frozen=True, slots=True)
class EnabledProcessor:
    """A processor the merchant can be paid through; a lower priority number goes first."""

    processor: str
    priority: int


@dataclass(frozen=True, slots=True)
class Route:
    """A processor, and the reason it was chosen, for the event."""

    processor: str
    reason: str


def route_payment(
    *, merchant_id: UUID, currency: str, wanted: str | None, enabled: Sequence[EnabledProcessor]
) -> Route:
    """The processor asked for; else the one preferred for the currency; else the first by priority.

    Raises:
        InvalidProcessor: the processor asked for is not enabled.
        NoProcessor: none is enabled.
    """
    names = {option.processor for option in enabled}
    if wanted is not None:
        if wanted not in names:
            raise InvalidProcessor(merchant_id, wanted)
        return Route(wanted, "named in the request")
    if not enabled:
        raise NoProcessor(merchant_id)
    preferred = PREFERRED.get(currency, PREFERRED_ELSEWHERE)
    if preferred in names:
        return Route(preferred, f"preferred for {currency}")
    first = min(enabled, key=lambda option: (option.priority, option.processor))
    return Route(
        first.processor, f"priority {first.priority}; {preferred}, preferred for {currency}, is not enabled"
    )


async def enabled_processors(pool: AsyncConnectionPool, *, merchant_id: UUID) -> list[EnabledProcessor]:
    """The merchant's enabled processors."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT processor, priority FROM processor_configs WHERE merchant_id = %s AND enabled",
            (merchant_id,),
        )
        return [EnabledProcessor(*row) for row in await cursor.fetchall()]
