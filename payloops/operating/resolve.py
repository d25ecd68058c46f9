"""`payloops resolve`: shows an order and what would be recorded of it, asks for confirmation, and records it."""

import getpass
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from payloops.commands.cipher import Cipher
from payloops.commands.refusals import NotResolvable, OrderNotFound
from payloops.commands.resolve_order import Sighting, resolve, resolve_order
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.money import money_text
from payloops.events.orders import Order, References, TransactionStatus, TransactionType
from payloops.events.stream import StreamEvent
from payloops.events.timestamps import utc_now
from payloops.operating.confirming import confirm
from payloops.printing import camel_case, make_console, print_plain_json
from payloops.processors.opening import FindProcessor, open_processors
from payloops.processors.port import PaymentQuestion
from payloops.projections.order_explanation import explain_order
from payloops.projections.order_history import fold, order_facts
from payloops.projections.order_wording import event_title
from payloops.projections.payments import find_order_by_reference
from payloops.reconcile.lost_workflows import clear_parked
from payloops.settings import StoreSettings
from payloops.wiring import open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The order after what was, or would be, recorded. Amounts in minor units.

    Attributes:
        events: types of the events.
    """

    order_id: UUID
    recorded: bool
    events: list[str]
    status: str
    currency: str
    amount_captured: int
    amount_refunded: int


async def run_resolve(
    settings: StoreSettings,
    *,
    order_id: UUID,
    seen: Sighting,
    ask: bool,
    dry_run: bool,
    as_json: bool,
    cipher: Cipher | None = None,
    sandbox: bool = False,
) -> None:
    """Show the order and what would be recorded, ask for confirmation, record it, and show the order then.

    Args:
        cipher: opens the processor's credentials: a payment's reference is checked there.
        sandbox: asks the sandbox instead.

    Raises:
        ProcessorUnreachable.
        NotConfirmed, OrderNotFound, NotResolvable, ContradictsRecord: see there. Others as `EventStore.append`.
    """
    by = Metadata(at=utc_now(), actor=f"operator:{getpass.getuser()}", correlation_id=str(uuid7()))
    async with open_store(settings, application_name="payloops resolve") as store:
        facts = await order_facts(store, order_id=order_id)
        if facts is None:
            raise OrderNotFound(order_id)
        order = fold(facts)
        if not as_json:
            _print_order(facts)
        if seen.shows == "reference":
            assert cipher is not None
            async with open_processors(store.pool, cipher=cipher, sandbox=sandbox) as find:
                await _check_reference(store, order, seen, find=find)
        would = _outcome(order, resolve(order, seen, by=by), recorded=False)
        if dry_run:
            _print_outcome(would, as_json=as_json)
            return
        if not as_json:
            _print_outcome(would, as_json=False)
        if ask:
            confirm("Record it?")
        done = _outcome(*await resolve_order(store, order_id=order_id, seen=seen, by=by), recorded=True)
        await clear_parked(store, order_id)
    _print_outcome(done, as_json=as_json)


async def _check_reference(store: EventStore, order: Order, seen: Sighting, *, find: FindProcessor) -> None:
    """Ask the processor for the payment: money is captured, voided and refunded by its reference.

    Raises:
        NotResolvable: it is not this payment's.
        ProcessorUnreachable.
    """
    payment = order.payments.get(seen.attempt or 0)
    if payment is None:
        return  # refused below
    merchant_id = UUID(order.merchant_id)
    recorded = await find_order_by_reference(
        store, merchant_id=merchant_id, references=References(seen.reference)
    )
    if recorded not in (None, order.id):
        raise NotResolvable(f"{seen.reference} is recorded as the reference of order {recorded}")
    question = PaymentQuestion(
        order_id=str(order.id), attempt=payment.attempt, processor_order_id=seen.reference
    )
    theirs = await (await find(merchant_id, payment.processor)).look_up(question)
    if theirs is None or theirs.processor_order_id not in (None, seen.reference):
        raise NotResolvable(f"{payment.processor} knows no such payment as {seen.reference}")
    if theirs.order_id not in (None, str(order.id)):
        raise NotResolvable(
            f"at {payment.processor}, {seen.reference} is labelled as of order {theirs.order_id}"
        )
    captured = order.total(payment, TransactionType.CAPTURE, TransactionStatus.SUCCESS)
    there_too = theirs.amount_captured == captured if captured else theirs.amount_captured <= payment.amount
    if theirs.currency != order.currency or not there_too:
        there = money_text(theirs.amount_captured, theirs.currency)
        raise NotResolvable(f"at {payment.processor}, {there} is captured under {seen.reference}")


def _outcome(order: Order, events: list[str], *, recorded: bool) -> Outcome:
    return Outcome(
        order_id=order.id,
        recorded=recorded,
        events=events,
        status=order.status.value,
        currency=order.currency,
        amount_captured=order.amount_captured,
        amount_refunded=order.amount_refunded,
    )


def _print_order(facts: Sequence[StreamEvent]) -> None:
    explanation = explain_order(facts, now=utc_now())
    console = make_console()
    console.print(explanation.state, style="bold")
    for sentence in [*explanation.history, *explanation.pending]:
        console.print(f"- {sentence}")


def _print_outcome(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        shown: dict[str, Any] = camel_case(outcome)
        print_plain_json(shown)
        return
    console = make_console()
    captured, refunded = (
        money_text(each, outcome.currency) for each in (outcome.amount_captured, outcome.amount_refunded)
    )
    console.print("\nRecorded" if outcome.recorded else "\nTo be recorded", style="bold")
    for topic in outcome.events:
        console.print(f"- {topic}: {event_title(topic)}")
    then = "is" if outcome.recorded else "is then"
    console.print(f"The order {then} {outcome.status}: {captured} captured, {refunded} refunded.")
