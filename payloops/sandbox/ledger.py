"""The ledger of the sandbox processor: charges, captures, refunds and voids, in the PostgreSQL schema `sandbox`.

It answers as a real processor does. A charge is made once for each order and attempt; a capture, void or refund once
for each request id; asking again returns the first answer. What is impossible (capturing what is not authorized,
refunding more than was captured) is refused with an error code, and the refusal is stored too.

The payment's token decides what happens:

| token                | the charge                                                     |
|----------------------|----------------------------------------------------------------|
| any other, or none   | is captured (authorized if capture is manual)                  |
| `tok_authorize`      | is authorized only                                             |
| `tok_chargeDeclined` | is declined: `card_declined`                                   |
| `tok_3ds`            | waits for the customer to approve it at a `redirectUrl`        |
| `tok_slow`           | takes 5 seconds, then is captured                              |
| `tok_lost`           | is captured, but the first response is lost                    |
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from string import ascii_lowercase
from typing import Any, Literal, LiteralString, TypeVar

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from payloops.sandbox.messages import ChargeStatus

R = TypeVar("R")
Pool = AsyncConnectionPool[AsyncConnection]
OperationKind = Literal["capture", "void", "refund"]

SCHEMA: tuple[LiteralString, ...] = (
    "CREATE SCHEMA IF NOT EXISTS sandbox",
    """
CREATE TABLE IF NOT EXISTS sandbox.charges (
    order_id                 text NOT NULL,
    attempt                  integer NOT NULL CHECK (attempt > 0),
    processor                text NOT NULL,
    processor_order_id       text NOT NULL UNIQUE,
    processor_transaction_id text NOT NULL,
    amount                   bigint NOT NULL CHECK (amount > 0),
    currency                 text NOT NULL,
    manual_capture           boolean NOT NULL,
    status                   text NOT NULL CHECK (
        status IN ('requires_action', 'authorized', 'captured', 'declined', 'cancelled')),
    amount_captured          bigint NOT NULL DEFAULT 0 CHECK (amount_captured BETWEEN 0 AND amount),
    amount_refunded          bigint NOT NULL DEFAULT 0 CHECK (amount_refunded BETWEEN 0 AND amount_captured),
    redirect_url             text,
    client_secret            text,
    error_code               text,
    error_message            text,
    created_at               timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (order_id, attempt)
)
""",
    """
CREATE TABLE IF NOT EXISTS sandbox.operations (
    request_id               text PRIMARY KEY,
    kind                     text NOT NULL CHECK (kind IN ('capture', 'void', 'refund')),
    processor_order_id       text NOT NULL REFERENCES sandbox.charges (processor_order_id),
    amount                   bigint NOT NULL CHECK (amount > 0),
    processor_transaction_id text,
    error_code               text,
    error_message            text,
    created_at               timestamptz NOT NULL DEFAULT now(),
    CHECK ((processor_transaction_id IS NULL) <> (error_code IS NULL))
)
""",
    """
ALTER TABLE sandbox.charges
    ADD COLUMN IF NOT EXISTS merchant_id text,
    ADD COLUMN IF NOT EXISTS return_url text,
    ADD COLUMN IF NOT EXISTS decided_at timestamptz,
    ADD COLUMN IF NOT EXISTS told_at timestamptz,
    ADD COLUMN IF NOT EXISTS tellings integer NOT NULL DEFAULT 0
""",
    """
CREATE INDEX IF NOT EXISTS charges_untold ON sandbox.charges (decided_at)
    WHERE decided_at IS NOT NULL AND told_at IS NULL
""",
)
NO_BANK_URL = "https://sandbox.payloops.invalid"
"""Where customers are sent to approve a payment if no bank is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A row of `sandbox.charges`: one attempt to pay an order. Amounts in minor units.

    Attributes:
        return_url: where the customer comes from and is sent back to.
        decided_at: when the customer decided at the bank. Other outcomes are reported by the workflow.
        told_at: when the merchant was notified of the decision by webhook.
        tellings: number of attempts to notify the merchant.
    """

    order_id: str
    attempt: int
    processor: str
    processor_order_id: str
    processor_transaction_id: str
    amount: int
    currency: str
    manual_capture: bool
    status: ChargeStatus
    amount_captured: int
    amount_refunded: int
    redirect_url: str | None
    client_secret: str | None
    error_code: str | None
    error_message: str | None
    created_at: datetime
    merchant_id: str | None
    return_url: str | None
    decided_at: datetime | None
    told_at: datetime | None
    tellings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A row of `sandbox.operations`: a capture, void or refund. It was accepted if it has a transaction id."""

    request_id: str
    kind: OperationKind
    processor_order_id: str
    amount: int
    processor_transaction_id: str | None
    error_code: str | None
    error_message: str | None
    created_at: datetime


class IdempotencyKeyReused(Exception):
    """An idempotency key was used again for a different request."""

    def __init__(self, *, key: str) -> None:
        super().__init__(f"{key} was used before, for a different request")
        self.key = key


class NoSuchCharge(Exception):
    """There is no charge with this id."""

    def __init__(self, *, charge: str) -> None:
        super().__init__(f"There is no charge {charge}")
        self.charge = charge


async def create_schema(pool: Pool) -> None:
    """Create what is missing of the schema. Workers that start at the same time wait for each other."""
    async with pool.connection() as connection, connection.transaction():
        # IF NOT EXISTS alone fails if two processes create the same table at the same time.
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('payloops.sandbox.ledger', 0))"
        )
        for statement in SCHEMA:
            await connection.execute(statement)


async def charge(
    pool: Pool,
    *,
    order_id: str,
    attempt: int,
    processor: str,
    amount: int,
    currency: str,
    token: str | None,
    manual_capture: bool,
    merchant_id: str | None = None,
    return_url: str | None = None,
    bank_url: str | None = None,
) -> tuple[Charge, bool]:
    """Charge an order, once for each attempt.

    Args:
        return_url: where the customer is sent back to after approving the payment.
        bank_url: where the customer approves it.

    Returns:
        The charge in its current state, and whether this call created it.

    Raises:
        IdempotencyKeyReused: the attempt was charged before, with another amount or currency.
    """
    manual = manual_capture or token == "tok_authorize"  # noqa: S105  (a role, no secret)
    row = _blank_charge(
        order_id=order_id,
        attempt=attempt,
        processor=processor,
        amount=amount,
        currency=currency,
        manual_capture=manual,
        merchant_id=merchant_id,
        return_url=return_url,
    )
    match token:
        case "tok_chargeDeclined":
            row |= {"status": "declined", "error_code": "card_declined"}
            row |= {"error_message": "The card was declined."}
        case "tok_3ds":
            action = row["processor_order_id"]
            row |= {"status": "requires_action", "client_secret": f"{action}_secret_{secrets.token_hex(12)}"}
            row |= {"redirect_url": f"{bank_url or NO_BANK_URL}/authenticate/{action}"}
        case _:
            row |= {"status": "authorized"} if manual else {"status": "captured", "amount_captured": amount}
    async with _cursor(pool, Charge) as cursor:
        await cursor.execute(INSERT_CHARGE + "DO NOTHING RETURNING *", row)
        made = await cursor.fetchone()
    if made is not None:
        return made, True
    found = await find_charge(pool, order_id=order_id, attempt=attempt)
    assert found is not None, "charges are never deleted"
    if (found.processor, found.amount, found.currency) != (processor, amount, currency):
        raise IdempotencyKeyReused(key=f"order {order_id}, attempt {attempt}")
    return found, False


async def find_charge(pool: Pool, *, order_id: str, attempt: int) -> Charge | None:
    """The charge of a payment attempt; None if none ever reached the processor."""
    async with _cursor(pool, Charge) as cursor:
        await cursor.execute(
            "SELECT * FROM sandbox.charges WHERE order_id = %s AND attempt = %s", (order_id, attempt)
        )
        return await cursor.fetchone()


async def find_action(pool: Pool, *, processor_order_id: str) -> Charge | None:
    """A charge that requires the customer's approval, or required it; None if there is no such charge."""
    async with _cursor(pool, Charge) as cursor:
        await cursor.execute(
            "SELECT * FROM sandbox.charges WHERE processor_order_id = %s AND redirect_url IS NOT NULL",
            (processor_order_id,),
        )
        return await cursor.fetchone()


async def unreported_decisions(pool: Pool, *, max_attempts: int, limit: int) -> list[Charge]:
    """Charges that customers decided on, whose merchants were not notified yet, after fewer attempts than this."""
    async with _cursor(pool, Charge) as cursor:
        await cursor.execute(
            """SELECT * FROM sandbox.charges
               WHERE decided_at IS NOT NULL AND told_at IS NULL AND tellings < %s
               ORDER BY decided_at LIMIT %s""",
            (max_attempts, limit),
        )
        return await cursor.fetchall()


async def record_notification(pool: Pool, *, processor_order_id: str, arrived: bool) -> None:
    """Record an attempt to notify a merchant."""
    async with pool.connection() as connection:
        await connection.execute(
            """UPDATE sandbox.charges SET tellings = tellings + 1,
                   told_at = CASE WHEN %s THEN coalesce(told_at, now()) ELSE told_at END
               WHERE processor_order_id = %s""",
            (arrived, processor_order_id),
        )


async def cancel_charge(
    pool: Pool, *, order_id: str, attempt: int, processor: str, amount: int, currency: str
) -> Charge:
    """Cancel a payment attempt, unless it was captured or declined before. Returns the charge in its current state.

    An attempt that has not reached the processor is cancelled in advance: a charge request that is still on its way
    finds it cancelled, and takes no money.
    """
    row = _blank_charge(
        order_id=order_id,
        attempt=attempt,
        processor=processor,
        amount=amount,
        currency=currency,
        manual_capture=False,
    )
    async with _cursor(pool, Charge) as cursor:
        await cursor.execute(
            INSERT_CHARGE
            + """DO UPDATE SET status = 'cancelled'
                 WHERE charges.status IN ('requires_action', 'authorized') RETURNING *""",
            row | {"status": "cancelled"},
        )
        cancelled = await cursor.fetchone()
    found = cancelled or await find_charge(pool, order_id=order_id, attempt=attempt)
    assert found is not None, "charges are never deleted"
    return found


async def complete_action(
    pool: Pool,
    *,
    order_id: str,
    attempt: int,
    success: bool,
    processor_transaction_id: str | None,
    at_bank: bool = False,
) -> Charge:
    """The customer has approved or declined. A charge that does not wait for this any more is not changed.

    Args:
        at_bank: whether the customer decided at the sandbox's bank, so that the merchant has to be notified.

    Raises:
        NoSuchCharge: the attempt was never charged.
    """
    async with _cursor(pool, Charge) as cursor:
        await cursor.execute(
            """
            UPDATE sandbox.charges SET
                status = CASE WHEN NOT %(success)s THEN 'declined'
                              WHEN manual_capture THEN 'authorized' ELSE 'captured' END,
                amount_captured = CASE WHEN %(success)s AND NOT manual_capture THEN amount ELSE 0 END,
                processor_transaction_id = coalesce(%(transaction_id)s, processor_transaction_id),
                error_code = CASE WHEN NOT %(success)s THEN 'authentication_failed' END,
                error_message = CASE WHEN NOT %(success)s THEN 'The customer was not authenticated.' END,
                decided_at = CASE WHEN %(at_bank)s THEN now() END
            WHERE order_id = %(order_id)s AND attempt = %(attempt)s AND status = 'requires_action'
            RETURNING *
            """,
            {
                "order_id": order_id,
                "attempt": attempt,
                "success": success,
                "transaction_id": processor_transaction_id,
                "at_bank": at_bank,
            },
        )
        completed = await cursor.fetchone()
    found = completed or await find_charge(pool, order_id=order_id, attempt=attempt)
    if found is None:
        raise NoSuchCharge(charge=f"order {order_id}, attempt {attempt}")
    return found


async def operate(
    pool: Pool,
    *,
    kind: OperationKind,
    request_id: str,
    order_id: str,
    processor_order_id: str,
    amount: int,
    currency: str,
) -> Operation:
    """Capture, void or refund a charge, once for each request id.

    Args:
        request_id: the idempotency key: a repeated request gets the first answer.
        processor_order_id: of the charge.
        amount: in minor units. A capture takes this much and releases the rest; a void releases everything.

    Returns:
        The operation, accepted or refused.

    Raises:
        NoSuchCharge: the processor has no such charge of that order.
        IdempotencyKeyReused: the request id was used for another request.
    """
    async with pool.connection() as connection, connection.transaction():
        # The lock on the charge serializes operations on it, so that each refund sees the earlier ones.
        charges = connection.cursor(row_factory=class_row(Charge))
        await charges.execute(
            "SELECT * FROM sandbox.charges WHERE processor_order_id = %s AND order_id = %s FOR UPDATE",
            (processor_order_id, order_id),
        )
        charge = await charges.fetchone()
        if charge is None:
            raise NoSuchCharge(charge=processor_order_id)
        operations = connection.cursor(row_factory=class_row(Operation))
        await operations.execute("SELECT * FROM sandbox.operations WHERE request_id = %s", (request_id,))
        earlier = await operations.fetchone()
        if earlier is not None:
            same = (kind, processor_order_id, amount)
            if (earlier.kind, earlier.processor_order_id, earlier.amount) != same:
                raise IdempotencyKeyReused(key=request_id)
            return earlier
        refusal = refusal_of(charge, kind=kind, amount=amount, currency=currency)
        if refusal is None:
            await connection.execute(EFFECTS[kind], {"charge": processor_order_id, "amount": amount})
        code, message = refusal or (None, None)
        transaction_id = None if refusal else new_id("txn")
        await operations.execute(
            """INSERT INTO sandbox.operations (request_id, kind, processor_order_id, amount,
                   processor_transaction_id, error_code, error_message)
               VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING *""",
            (request_id, kind, processor_order_id, amount, transaction_id, code, message),
        )
        operation = await operations.fetchone()
    assert operation is not None
    return operation


def refusal_of(charge: Charge, *, kind: OperationKind, amount: int, currency: str) -> tuple[str, str] | None:
    """Why a charge does not allow an operation: error code and message; None if it does."""
    left = charge.amount_captured - charge.amount_refunded
    not_authorized = [
        (charge.status == "captured", "charge_already_captured", "The charge was captured before."),
        (charge.status == "cancelled", "charge_already_cancelled", "The charge was cancelled before."),
        (charge.status != "authorized", "charge_not_authorized", f"The charge is {charge.status}."),
    ]
    refusals = {
        "capture": [
            *not_authorized,
            (amount > charge.amount, "capture_exceeds_authorized", f"{charge.amount} was authorized."),
        ],
        "void": not_authorized,
        "refund": [
            (charge.status != "captured", "charge_not_captured", f"The charge is {charge.status}."),
            (amount > left, "refund_exceeds_captured", f"{left} is left to refund."),
        ],
    }
    if currency != charge.currency:
        return "currency_mismatch", f"The charge is in {charge.currency}."
    return next(((code, message) for applies, code, message in refusals[kind] if applies), None)


INSERT_CHARGE = """
INSERT INTO sandbox.charges (order_id, attempt, processor, processor_order_id, processor_transaction_id,
    amount, currency, manual_capture, status, amount_captured, redirect_url, client_secret,
    error_code, error_message, merchant_id, return_url)
VALUES (%(order_id)s, %(attempt)s, %(processor)s, %(processor_order_id)s, %(processor_transaction_id)s,
    %(amount)s, %(currency)s, %(manual_capture)s, %(status)s, %(amount_captured)s, %(redirect_url)s,
    %(client_secret)s, %(error_code)s, %(error_message)s, %(merchant_id)s, %(return_url)s)
ON CONFLICT (order_id, attempt)
"""

EFFECTS: dict[OperationKind, LiteralString] = {
    "capture": """UPDATE sandbox.charges SET status = 'captured', amount_captured = %(amount)s
                  WHERE processor_order_id = %(charge)s""",
    "void": "UPDATE sandbox.charges SET status = 'cancelled' WHERE processor_order_id = %(charge)s",
    "refund": """UPDATE sandbox.charges SET amount_refunded = amount_refunded + %(amount)s
                 WHERE processor_order_id = %(charge)s""",
}


def _blank_charge(**known: Any) -> dict[str, Any]:
    return {
        "merchant_id": None,
        "return_url": None,
        **known,
        "processor_order_id": new_id("order"),
        "processor_transaction_id": new_id("txn"),
        "amount_captured": 0,
        "redirect_url": None,
        "client_secret": None,
        "error_code": None,
        "error_message": None,
    }


def new_id(kind: str) -> str:
    """A random id, in letters: digits would be taken for a card number now and then, and masked where they are told."""
    return f"sb_{kind}_{''.join(secrets.choice(ascii_lowercase) for _ in range(20))}"


@asynccontextmanager
async def _cursor(pool: Pool, row: type[R]) -> AsyncIterator[AsyncCursor[R]]:
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(row)) as cursor:
        yield cursor
