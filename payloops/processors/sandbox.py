"""Looks up payments at the sandbox, by reading its ledger."""

import psycopg

from payloops.events.orders import Failure
from payloops.processors.port import (
    PaymentQuestion,
    ProcessorPayment,
    ProcessorUnreachable,
)
from payloops.sandbox.ledger import Pool, find_charge


class SandboxProcessor:
    """The sandbox, whichever processor it simulates."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def look_up(self, question: PaymentQuestion) -> ProcessorPayment | None:
        try:
            charge = await find_charge(self._pool, order_id=question.order_id, attempt=question.attempt)
        except psycopg.errors.UndefinedTable:
            reason = "its ledger does not exist; run `payloops worker --sandbox`"
            raise ProcessorUnreachable(processor="sandbox", reason=reason) from None
        if charge is None:
            return None
        return ProcessorPayment(
            status="failed" if charge.status == "declined" else charge.status,
            processor_order_id=charge.processor_order_id,
            processor_transaction_id=charge.processor_transaction_id,
            currency=charge.currency,
            amount_captured=charge.amount_captured,
            amount_refunded=charge.amount_refunded,
            failure=Failure.of(charge),
            order_id=charge.order_id,
        )
