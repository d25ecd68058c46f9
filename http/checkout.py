"""The page where a customer pays. Knowing the session's id is enough to see it.

The page shows the session and its order as they are at that moment. Its form contains the number of the payment attempt
that it requests, and is answered with a redirect to the page. So the page can be loaded, submitted and left at any
time, any number of times. Card numbers are never entered here: the processor asks for them on a page of its own, and in
test mode there are test tokens instead.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import urlencode, urlsplit, urlunsplit
from uuid import UUID

from pydantic import Field

from payloops.commands.merchants import MerchantNotFound, find_merchant
from payloops.commands.pay_checkout_session import pay_checkout_session
from payloops.commands.route_payment import WayToPay, enabled_processors, ways_to_pay
from payloops.commands.settle_checkout_session import MAX_ATTEMPTS, Checkout, settle_checkout_session
from payloops.events.checkout_sessions import CheckoutSession, SessionStatus
from payloops.events.orders import Order, OrderStatus
from payloops.http.checkout_sessions import session_url
from payloops.http.fields import QueryNumber
from payloops.http.html import rendered, see_other
from payloops.http.routing import EVENT_STREAM, Call, RequestModel, page, route
from payloops.http.server_sent_events import stream_versions

STREAM_SECONDS = 50
"""How long a page is notified of changes before its browser has to reconnect."""
HEARTBEAT_SECONDS = 10.0

Method = Literal["card", "upi", "netbanking", "wallet"]
METHOD_NAMES: dict[str, str] = {
    "card": "Card",
    "upi": "UPI",
    "netbanking": "Net banking",
    "wallet": "Wallet",
}
TestToken = Literal["tok_visa", "tok_chargeDeclined", "tok_3ds", "tok_slow", "tok_lost", "tok_authorize"]
TEST_TOKENS: dict[TestToken, str] = {
    "tok_visa": "The payment succeeds",
    "tok_chargeDeclined": "The card is declined",
    "tok_3ds": "The bank asks for confirmation (3-D Secure)",
    "tok_slow": "The payment takes five seconds",
    "tok_lost": "The processor's first answer is lost",
    "tok_authorize": "The money is only held",
}
DECLINES = {
    "card_declined": "Your card was declined.",
    "insufficient_funds": "Your card was declined: there was not enough money.",
    "expired_card": "Your card has expired.",
    "authentication_failed": "Your bank did not confirm the payment.",
    "payment_expired": "The payment was not confirmed in time.",
}
"""Messages by error code. The processors' own messages are for merchants only."""
DECLINED = "The payment did not go through."


class State(StrEnum):
    """The state of a checkout, as its customer sees it."""

    OPEN = "open"
    DECLINED = "declined"
    PROCESSING = "processing"
    ACTION = "action"
    PAID = "paid"
    EXPIRED = "expired"


ENDED = {State.PAID, State.EXPIRED}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the page's template needs.

    Attributes:
        version: of the page's content; if it changes, the page has to be reloaded.
        attempt: number of the payment attempt that the form requests.
        test_mode: whether to offer test tokens: only if all processors offered here are in test mode.
        other: the difference between the session's amount and its line items, in minor units: taxes, discounts.
        problem: why the last attempt failed.
        redirect_url: where the customer has to confirm the payment.
    """

    session: CheckoutSession
    merchant: str
    state: State
    version: str
    attempt: int
    ways: list[WayToPay]
    other: int
    test_mode: bool
    problem: str | None
    redirect_url: str | None
    success_url: str
    cancel_url: str


def state_of(checkout: Checkout) -> State:
    """The state that the customer sees, of a session that was just settled."""
    session, order = checkout
    match session.status:
        case SessionStatus.COMPLETED:
            return State.PAID
        case SessionStatus.EXPIRED:
            return State.EXPIRED
    match order.status if order is not None else OrderStatus.PENDING:
        case OrderStatus.PROCESSING:
            return State.PROCESSING
        case OrderStatus.REQUIRES_ACTION:
            return State.ACTION
        case OrderStatus.FAILED:
            return State.DECLINED
        case _:
            return State.OPEN


def version_of(checkout: Checkout) -> str:
    """The version of the page's content: changes whenever the customer would see something else."""
    order = checkout.order
    return f"{state_of(checkout)}-{order.attempt if order is not None else 0}"


def with_session_id(url: str, session_id: UUID) -> str:
    """Add the session's id to the query of a merchant's URL."""
    parts = urlsplit(url)
    added = urlencode({"session_id": str(session_id)})
    return urlunsplit(parts._replace(query=f"{parts.query}&{added}" if parts.query else added))


async def _settled(call: Call[Any, Any]) -> Checkout:
    return await settle_checkout_session(
        call.services.store,
        session_id=call.id(),
        merchant_id=None,
        by=replace(call.by, at=call.services.now()),
    )


async def _view(call: Call[Any, Any], checkout: Checkout) -> View:
    session, order = checkout
    store, merchant_id = call.services.store, UUID(session.merchant_id)
    merchant = await find_merchant(store.pool, merchant_id=merchant_id)
    if merchant is None:
        raise MerchantNotFound(merchant_id=merchant_id)
    enabled = await enabled_processors(store, merchant_id=merchant_id)
    ways = ways_to_pay(merchant_id=merchant_id, currency=session.currency, enabled=enabled)
    listed = sum(item["amount"] * item["quantity"] for item in session.line_items)
    return View(
        session=session,
        merchant=merchant.name,
        state=state_of(checkout),
        version=version_of(checkout),
        attempt=1 if order is None else order.attempt + 1,
        ways=ways,
        test_mode=bool(ways) and all(way.test_mode for way in ways),
        other=session.amount - listed if session.line_items else 0,
        problem=_problem(order),
        redirect_url=_redirect_url(order),
        success_url=with_session_id(session.success_url, session.id),
        cancel_url=with_session_id(session.cancel_url, session.id),
    )


def _problem(order: Order | None) -> str | None:
    if order is None or order.last_error is None:
        return None
    return DECLINES.get(order.last_error.code or "", DECLINED)


def _redirect_url(order: Order | None) -> str | None:
    """Where the processor wants the customer to go, if it is a web page."""
    url = order.payment.redirect_url if order is not None and order.payment is not None else None
    return url if url is not None and urlsplit(url).scheme in {"http", "https"} else None


@page("GET", "/checkout/{id}", auth=None, also=(410,), summary="Show the page where a customer pays")
async def read_checkout(call: Call[None]) -> bytes:
    view = await _view(call, await _settled(call))
    if view.state is State.EXPIRED:
        call.status = 410
    return rendered(
        "checkout.html", view=view, session=view.session, methods=METHOD_NAMES, test_tokens=TEST_TOKENS
    )


class CheckoutPayment(RequestModel):
    """The number of the payment attempt, and how the customer pays."""

    attempt: Annotated[QueryNumber, Field(ge=1, le=MAX_ATTEMPTS)]
    method: Method
    token: TestToken | None = None


@page(
    "POST",
    "/checkout/{id}/pay",
    auth=None,
    form=CheckoutPayment,
    status=303,
    errors=("no_processor",),
    summary="Submit the form of the checkout page",
)
async def pay_checkout(call: Call[CheckoutPayment]) -> bytes:
    session_id = call.id()
    await pay_checkout_session(
        call.services.store,
        session_id=session_id,
        attempt=call.body.attempt,
        method=call.body.method,
        token=call.body.token,
        return_url=session_url(call.services, session_id),
        by=replace(call.by, actor=f"checkout:{session_id}"),
    )
    return see_other(call, f"/checkout/{session_id}")


@route(
    "GET",
    "/checkout/{id}/events",
    auth=None,
    query=None,
    answers=str,
    media=(EVENT_STREAM,),
    streams=STREAM_SECONDS + 10,
    summary="Notify a checkout page when what it shows has changed",
)
async def follow_checkout(call: Call[None]) -> Any:
    """Server-sent events: the current version of the page's content, at once and whenever it changes."""
    return await stream_versions(call, _versions(call, await _settled(call)))


async def _versions(call: Call[None], checkout: Checkout) -> AsyncIterator[str]:
    clock = asyncio.get_running_loop().time
    ends = clock() + STREAM_SECONDS
    while True:
        yield version_of(checkout)
        if state_of(checkout) in ENDED or clock() >= ends or call.services.stopping.is_set():
            return
        followed = checkout.order or checkout.session
        seconds = min(HEARTBEAT_SECONDS, ends - clock())
        await call.services.watch.moves(followed.id, version=followed.version, seconds=seconds)
        checkout = await _settled(call)
